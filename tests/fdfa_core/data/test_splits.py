"""Splits of a data set: batches in [-1, 1], epochs, subsets, validation, augmentation."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from fdfa_core.data import Dataset, Split, load
from fdfa_core.data.dataset import stratified
from fdfa_core.data.transforms import RandomResizedCrop, Resize
from fdfa_core.errors import InvalidInput


@pytest.fixture
def dataset():
    images = torch.from_numpy(np.random.default_rng(1).integers(256, size=(100, 3, 6, 4), dtype=np.uint8))
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    labels = torch.arange(100) % 5
    return Dataset("random", images[:80], labels[:80], images[80:], labels[80:], tuple("abcde"), sha256="0")


@pytest.fixture
def split(dataset):
    return dataset.train


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_scales_pixels_to_minus_one_to_one(split, dtype):
    x, _ = split.batch(torch.tensor([0, 7]), dtype=dtype)
    expected = (split.images[[0, 7]].to(dtype) / 255 - 0.5) / 0.5
    assert x.dtype == dtype
    torch.testing.assert_close(x, expected)


def test_batch_uses_the_full_range_exactly(split):
    x, _ = split.batch(torch.tensor([0]))
    assert x[0, 0, 0, :2].tolist() == [-1, 1]


def test_batch_in_the_unit_interval_uses_the_full_range_exactly(dataset):
    for part in dataset.split(0.2, unit=True):
        x, _ = part.all(dtype=torch.float64)
        torch.testing.assert_close(x, part.images.double() / 255)
    train, _ = dataset.split(unit=True)
    assert train.subset(80, 0).unit and train.without_augmentation().unit
    x, _ = train.batch(torch.tensor([0]))
    assert x[0, 0, 0, :2].tolist() == [0, 1]


def test_batch_of_digits_uses_the_full_range():
    x, _ = load("digits").train.all()
    assert (x.min(), x.max()) == (-1, 1)


def test_batch_flattens_for_dense_networks(split):
    indices = torch.tensor([3, 3, 1])
    assert torch.equal(split.batch(indices, flatten=True)[0], split.batch(indices)[0].reshape(3, 72))


def test_batch_leaves_the_pixels_as_they_are(split):
    before = split.images.clone()
    split.batch(torch.arange(80))
    assert torch.equal(split.images, before)


def test_batch_returns_the_labels_of_its_indices(split):
    assert split.batch(torch.tensor([7, 0, 79]))[1].tolist() == [2, 0, 4]


@pytest.mark.parametrize("index", [80, -1])
def test_index_outside_the_split_is_refused(split, index):
    with pytest.raises(InvalidInput, match="accepted: 0 … 79, the samples of this split"):
        split.batch(torch.tensor([0, index]))


def test_epoch_visits_every_sample_once(split):
    batches = list(split.epoch(32, torch.Generator().manual_seed(0)))
    assert [len(b) for b in batches] == [32, 32, 16]
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(80))


def test_epoch_can_drop_a_smaller_last_batch(split):
    assert [len(b) for b in split.epoch(32, drop_last=True)] == [32, 32]


def test_epoch_keeps_a_full_last_batch(split):
    assert [len(b) for b in split.epoch(40, drop_last=True)] == [40, 40]


def test_epoch_is_in_order_without_a_generator(split):
    assert torch.equal(torch.cat(list(split.epoch(32))), torch.arange(80))


@pytest.mark.parametrize("batch_size", [0, 81])
def test_batch_size_that_does_not_fit_the_data_is_refused(split, batch_size):
    with pytest.raises(InvalidInput, match=f"batch_size: got {batch_size}; accepted: 1 to 80"):
        split.epoch(batch_size)


def test_subset_is_the_same_for_the_same_seed(split):
    assert torch.equal(split.subset(10, seed=3).images, split.subset(10, seed=3).images)


def test_subset_differs_between_seeds(split):
    assert not torch.equal(split.subset(10, seed=3).images, split.subset(10, seed=4).images)


@pytest.mark.parametrize("n", [0, 81])
def test_subset_that_is_no_part_is_refused(split, n):
    with pytest.raises(InvalidInput, match=f"n: got {n}; accepted: 1 to 80"):
        split.subset(n, seed=0)


def test_moments_are_those_of_the_training_pixels(dataset):
    pixels = dataset.train_images.double() / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(dataset.std).double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


# --- validation split -------------------------------------------------------------------------------------------------


def identity(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_without_validation_the_test_images_are_evaluated_on(dataset):
    train, evaluation = dataset.split()
    assert (len(train), identity(evaluation)) == (80, identity(dataset.test))


def test_validation_and_training_images_partition_the_training_set(dataset):
    train, validation = dataset.split(0.25, seed=1)
    assert len(validation) == 20 and not identity(train) & identity(validation)
    assert identity(train) | identity(validation) == identity(dataset.train)


def test_validation_keeps_class_proportions(dataset):
    assert dataset.split(0.25, seed=1)[1].labels.bincount().tolist() == [4] * 5


def test_validation_depends_on_its_seed_alone(dataset):
    first, again, other = (identity(dataset.split(0.25, seed=seed)[1]) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 0.01, 0.99])
def test_validation_fraction_without_all_classes_in_both_parts_is_refused(dataset, fraction):
    with pytest.raises(InvalidInput, match=f"validation_fraction: got {fraction}"):
        dataset.split(fraction)


@pytest.mark.parametrize(("sizes", "held_out", "n"), [((1000, 2), 0.01, 11), ((1000, 2), 0.99, 992), ((900, 2, 3, 2), 4, 4)])
def test_a_rare_class_is_in_both_parts(sizes, held_out, n):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    parts = stratified(labels, held_out, seed=0)
    assert [set(labels[part]) for part in parts] == [set(range(len(sizes)))] * 2
    assert len(parts[1]) == n and np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


def test_a_rare_class_is_held_out_by_chance():
    labels = np.repeat([0, 1], (1000, 4))
    assert {i for seed in range(40) for i in stratified(labels, 0.01, seed)[1] if labels[i]} == {1000, 1001, 1002, 1003}


def test_a_class_of_one_sample_is_refused():
    with pytest.raises(InvalidInput, match="validation_fraction: got 0.5; accepted: a share that leaves every class"):
        stratified(np.array([0, 0, 0, 1]), 0.5, seed=0)


@pytest.mark.parametrize(("n", "seed"), [(20, 0), (150, 1), (1000, 2)])
def test_classes_that_are_in_both_parts_are_split_as_by_scikit_learn(n, seed):
    """Recorded runs with validation sets rest on these indices."""
    labels = np.random.default_rng(seed).permutation(np.arange(n) % 5)
    expected = train_test_split(np.arange(n), test_size=0.25, random_state=seed, stratify=labels)
    assert all(np.array_equal(part, np.sort(e)) for part, e in zip(stratified(labels, 0.25, seed), expected, strict=True))


# --- transforms -------------------------------------------------------------------------------------------------------


def test_image_size_scales_both_parts(dataset):
    assert [part.batch(torch.arange(2))[0].shape for part in dataset.split(image_size=16)] == [(2, 3, 16, 16)] * 2


def test_shape_is_that_of_a_transformed_image(dataset):
    assert [part.shape for part in dataset.split(image_size=16, augment=True)] == [(3, 16, 16)] * 2


def test_augmentation_keeps_the_size_by_default(dataset):
    train, _ = dataset.split(augment=True)
    assert train.batch(torch.arange(2), generator=torch.Generator())[0].shape == (2, 3, 6, 4)


def test_evaluation_images_are_never_augmented(dataset):
    _, evaluation = dataset.split(augment=True)
    assert torch.equal(evaluation.all()[0], dataset.test.all()[0])


def test_augmentation_is_the_same_for_the_same_generator_state(dataset):
    train, _ = dataset.split(image_size=8, augment=True)
    a, b = (train.batch(torch.arange(9), generator=torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(a, b)


def test_augmentation_differs_between_draws(dataset):
    train, _ = dataset.split(image_size=8, augment=True)
    generator = torch.Generator().manual_seed(5)
    a, b = (train.batch(torch.arange(9), generator=generator)[0] for _ in range(2))
    assert not torch.equal(a, b)


def test_augmentation_leaves_the_global_stream_alone(dataset):
    before = torch.get_rng_state()
    dataset.split(augment=True)[0].batch(torch.arange(9), generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_without_a_generator_is_refused(dataset):
    with pytest.raises(InvalidInput, match="generator: got None; accepted: a torch.Generator"):
        dataset.split(augment=True)[0].batch(torch.arange(2))


def test_without_augmentation_the_images_are_only_scaled(dataset):
    train, evaluation = dataset.split(image_size=8, augment=True)
    assert train.without_augmentation().transform == evaluation.transform == Resize((8, 8))


def test_whole_image_crop_is_the_image():
    x = torch.randn(4, 3, 8, 8)
    whole = RandomResizedCrop((8, 8), area=(1, 1), aspect=(1, 1), flip=False)
    torch.testing.assert_close(whole(x, torch.Generator()), x)


def test_flip_mirrors_about_half_of_the_images():
    x = torch.randn(400, 1, 4, 4)
    y = RandomResizedCrop((4, 4), area=(1, 1), aspect=(1, 1))(x, torch.Generator().manual_seed(0))
    kept = torch.isclose(y, x, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(y, x.flip(3), atol=1e-5).flatten(1).all(1)
    assert (kept ^ mirrored).all() and 150 < mirrored.sum() < 250  # 150 … 250 of 400: all but 1 in 10⁶ seeds


def test_crop_stays_inside_the_image():
    """On a ramp along one axis a bilinear crop takes values of the ramp alone, and keeps its direction without a flip."""
    ramp = torch.linspace(-1, 1, 16).expand(200, 1, 16, 16)
    y = RandomResizedCrop((16, 16), flip=False)(ramp, torch.Generator().manual_seed(0))
    assert y.abs().max() <= 1 and (y.diff(dim=3) >= -1e-6).all()
