"""Operations and memory of one training step, counted while steps of the run's own network and estimator are taken.

Matrix products and convolutions are counted (`torch.utils.flop_counter`; a multiply–add is two operations): forward, tangent
and backward. Element-wise work and random numbers are not, nor is the optimiser, which is the same for all estimators: seconds,
logged beside, show what that hides. Memory is what the tensors of a step take at their peak, gradients among them
(`fdfa_core.memory.peak_memory`), and the estimator's state. Parameters and the optimiser's state are the same for all.

A count takes seconds, and figures need one for every method and network. It is kept on disk under the hash of its question and
of all code that it depends on, as closed forms are, so that no process counts twice what nothing has changed.
"""

from __future__ import annotations

import functools
import json

import pandas as pd

from analysis.rebuilt import cache
from fdfa_core import paths
from fdfa_core.estimators.index import packaged
from fdfa_core.experiments.tables import RunConfig, require_known
from fdfa_core.networks.registry import ARCHITECTURES
from fdfa_core.references import is_reference

CACHE = paths.CACHE / "operations"
# Channels, height and width of an image, and number of classes: enough to count without the data set at hand
IMAGES: dict[str, tuple[tuple[int, int, int], int]] = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar-10": ((3, 32, 32), 10),
    "cifar-100": ((3, 32, 32), 100),
    "tiny-imagenet": ((3, 64, 64), 200),
}


def per_step(config: RunConfig | str) -> int:
    """Return the operations of one step of a run.

    Args:
        config: of the run, or its canonical JSON.

    Raises:
        UnknownName: the run's data set is not in `IMAGES`.
    """
    return _count(_question(config))[0]


def memory(config: RunConfig | str) -> int:
    """Return the bytes that one step of a run takes at its peak, and the estimator's state; see `per_step`."""
    return _count(_question(config))[1]


def _question(config: RunConfig | str) -> str:
    """Return what the counts of a run depend on, as JSON."""
    table = json.loads(config if isinstance(config, str) else config.canonical())
    table["seed"] = 0  # one count serves all seeds, rates and lengths, and data sets with images of one shape
    name = table["data"]["name"]
    if not is_reference(name):
        require_known("data.name", name, IMAGES)
        name = next(other for other, shape in IMAGES.items() if shape == IMAGES[name])
    table["data"] = {"name": name, "image_size": table["data"].get("image_size")}
    table["training"] = {key: table["training"][key] for key in ("batch_size", "loss")} | {"steps": 1}
    for irrelevant in ("probe", "evaluation"):
        table.pop(irrelevant, None)
    return json.dumps(table, sort_keys=True)


@functools.cache
def _count(text: str) -> tuple[int, int]:
    """Return the counts, from disk if the same code and libraries made them before."""
    config = RunConfig.from_json(text)
    if not _ours(config):
        return counted(config)
    key = cache.digest(text, _code_and_libraries())
    frame = cache.kept(CACHE, key, lambda: pd.DataFrame([counted(config)], columns=["operations", "memory"]))
    return int(frame["operations"].iloc[0]), int(frame["memory"].iloc[0])


def _ours(config: RunConfig) -> bool:
    """Return whether estimator and network are of this package: the hash knows nothing of code from elsewhere."""
    network = isinstance(ARCHITECTURES.get(config.network.architecture), str)
    return config.estimator.name in packaged() and network and not is_reference(config.data.name)


@functools.cache
def _code_and_libraries() -> str:
    return cache.code(__name__) + cache.versions("torch")


def counted(config: RunConfig) -> tuple[int, int]:
    """Return the operations of one step, and the bytes that the next one takes, counted while they are taken."""
    import torch
    from torch.utils._pytree import tree_leaves

    from fdfa_core import data
    from fdfa_core.estimators import make_estimator
    from fdfa_core.measuring.cost import operations, peak_memory
    from fdfa_core.networks.registry import build
    from fdfa_core.training.build import takes_vectors

    if is_reference(config.data.name):
        dataset = data.load(config.data.name)
        (channels, *size), classes = dataset.shape, len(dataset.classes)
    else:
        (channels, *size), classes = IMAGES[config.data.name]
    size = size if config.data.image_size is None else [config.data.image_size] * 2
    with torch.random.fork_rng():
        net = build(config.network.architecture, (channels, *size), classes, seed=0, **config.network.options)
        estimator = make_estimator(config.estimator.name, net, loss=config.training.loss, **config.estimator.options)
        x = torch.randn(config.training.batch_size, channels, *size, generator=torch.Generator().manual_seed(0))
        x = x.flatten(1) if takes_vectors(net) else x
        y = torch.arange(len(x)) % classes
        operations_of_step = operations(lambda: estimator.backward(x, y))
        net.zero_grad(set_to_none=True)
        peak = peak_memory(lambda: estimator.backward(x, y))
    state = sum(value.nbytes for value in tree_leaves(estimator.state_dict()) if isinstance(value, torch.Tensor))
    return operations_of_step, peak + state
