"""Factored draws against their dense form, in float64."""

from __future__ import annotations

import pytest
import torch

from fdfa_core.linearisation import factored as draws
from fdfa_core.linearisation.factored import Outer

SHAPES = {  # R, summands M, n_out, n_in
    "few-summands": (5, 3, 4, 6),
    "many-summands": (5, 9, 4, 6),
    "more-outputs": (4, 6, 8, 7),
    "one-draw": (1, 3, 4, 6),
    "one-sample": (5, 1, 4, 6),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def outer(shape, seed=0):
    r, m, n_out, n_in = shape
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(r, m, 2 * n_out, generator=generator, dtype=torch.float64)[..., :n_out]  # strided
    return Outer(left, torch.randn(m, n_in, generator=generator, dtype=torch.float64))


def naive(gradient):
    return torch.stack([sum(torch.outer(u, h) for u, h in zip(left, gradient.right, strict=True)) for left in gradient.left])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_shape
def test_dense_form_is_the_sum_of_outer_products(shape):
    gradient = outer(shape)
    close(draws.dense(gradient), naive(gradient))
    assert gradient.shape == tuple(gradient.dense().shape)


@every_shape
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_norms_need_no_dense_form(shape, chunk, monkeypatch):
    monkeypatch.setattr(draws, "CHUNK_NUMBERS", chunk)
    gradient = outer(shape)
    close(draws.norm2(gradient), naive(gradient).square().sum((1, 2)))


@every_shape
def test_inner_products_need_no_dense_form(shape):
    gradient = outer(shape)
    others = torch.randn(3, *shape[2:], dtype=torch.float64)
    close(draws.inner(gradient, *others), torch.einsum("roi,koi->rk", naive(gradient), others))


@every_shape
def test_dense_draws_have_the_same_norms_and_inner_products(shape):
    gradient = naive(outer(shape))
    others = torch.randn(3, *shape[2:], dtype=torch.float64)
    close(draws.norm2(gradient), gradient.square().sum((1, 2)))
    close(draws.inner(gradient, *others), torch.einsum("roi,koi->rk", gradient, others))


@every_shape
def test_mean_difference_and_running_mean_stay_factored(shape):
    gradient = outer(shape)
    mean = draws.mean(gradient)
    assert isinstance(mean, Outer)
    close(draws.dense(mean), naive(gradient).mean(0, keepdim=True))
    close(draws.dense(draws.minus(gradient, mean)), naive(gradient) - naive(gradient).mean(0))
    other = Outer(gradient.left[:1], gradient.right)
    close(draws.dense(draws.blend(mean, other, 0.25)), 0.75 * naive(mean) + 0.25 * naive(other))


@every_shape
def test_sums_with_factored_and_with_dense_draws(shape):
    one, two = outer(shape, 1), outer(shape, 2)
    close(draws.dense(one + two), naive(one) + naive(two))
    close(draws.dense(one + naive(two)), naive(one) + naive(two))
    close(draws.dense(naive(two) + one), naive(one) + naive(two))


def test_a_draw_that_is_repeated_without_copies_is_known_as_constant():
    gradient = torch.randn(4, 3)
    assert draws.constant(gradient[:1].expand(4, 3))
    assert not draws.constant(gradient)
    assert draws.numbers(gradient[:1].expand(4, 3)) == 0


def test_float32_norms_are_summed_in_float64():
    gradient = Outer(torch.full((1, 4096, 2), 1e-4), torch.full((4096, 5000), 1e-4))
    expected = 2 * 5000 * (4096 * 1e-8) ** 2
    assert draws.norm2(gradient).item() == pytest.approx(expected, rel=1e-6)


@every_shape
def test_distances_come_from_differences(shape):
    gradient, other = outer(shape), torch.randn(shape[2:], dtype=torch.float64)
    close(draws.distance2(gradient, other), (naive(gradient) - other).square().sum((1, 2)))
    close(draws.distance2(naive(gradient), other), (naive(gradient) - other).square().sum((1, 2)))


def test_the_mean_of_equal_draws_is_one_of_them():
    gradient = torch.rand(1, 3).expand(7, 3)
    assert torch.equal(draws.mean(gradient), gradient[:1])


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3), (5, 2, 3, 4, 4)])
def test_norms_and_inner_products_of_parameters_of_any_shape(shape):
    gradient, other = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1:], dtype=torch.float64)
    flat = gradient.reshape(5, -1)
    close(draws.norm2(gradient), flat.square().sum(1))
    close(draws.inner(gradient, other)[:, 0], flat @ other.flatten())


def test_inner_products_over_a_million_components_keep_six_digits():
    """As long as those of a hidden layer of the paper; a single product of matrices would keep three."""
    draw = torch.randn(800, 784, generator=torch.Generator().manual_seed(0))
    norm2 = draw.double().square().sum()
    torch.testing.assert_close(draws.inner(draw.unsqueeze(0), draw, -draw)[0] / norm2, torch.tensor([1.0, -1.0]).double(),
                               rtol=1e-6, atol=0)  # fmt: skip
