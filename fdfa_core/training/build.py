"""What a run is made of, from its configuration alone: samples and initial network.

Training builds its runs from these functions, and whoever wants to compare a logged run with theory builds the same again.
"""

from __future__ import annotations

from torch import Tensor

from fdfa_core.data import Dataset, Split
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.registry import build
from fdfa_core.seeds import derive

_SUBSETS = 0  # seed of what is held out and of the reference sets: the same samples in all runs, so that runs compare


def splits(config: RunConfig, dataset: Dataset) -> tuple[Split, Split]:
    """Return what a run trains on, and what it is judged on."""
    table = config.data
    fraction = table.validation_fraction if table.evaluate_on == "validation" else 0.0
    train, test = dataset.split(
        fraction, _SUBSETS, image_size=table.image_size, augment=table.augment, unit=table.scale == "unit"
    )
    return (train if table.train_size is None else train.subset(table.train_size, _SUBSETS)), test


def reference(train: Split, size: int) -> Split:
    """Return fixed training samples, as many as asked for or as there are; a smaller set is the beginning of a larger one."""
    return train.without_augmentation().subset(min(size, len(train)), _SUBSETS)


def network(config: RunConfig, train: Split, dataset: Dataset) -> BlockNetwork:
    """Return the network as it is before the first step."""
    seed = derive(config.seed, "network")
    return build(config.network.architecture, train.shape, len(dataset.classes), seed=seed, **config.network.options)


def takes_vectors(net: BlockNetwork) -> bool:
    """Return whether images are flattened before they enter the network."""
    return net.input_shape is not None and len(net.input_shape) == 1


def samples(split: Split, net: BlockNetwork) -> tuple[Tensor, Tensor]:
    """Return all inputs and labels of a split, in the shape that the network takes."""
    return split.all(flatten=takes_vectors(net))
