"""Floating-point operations of one training step, counted while a step of the run's own network and estimator is taken.

Matrix products and convolutions are counted (`torch.utils.flop_counter`; a multiply–add is two operations): forward, tangent
and backward. Element-wise work and random numbers are not, nor is the optimiser, which is the same for all estimators: seconds,
logged beside, show what that hides.
"""

from __future__ import annotations

import functools
import json

import torch
from torch.utils.flop_counter import FlopCounterMode

from fdfa_core import data
from fdfa_core.estimators import make_estimator
from fdfa_core.experiments.tables import RunConfig, require_known
from fdfa_core.networks.registry import build
from fdfa_core.references import is_reference
from fdfa_core.training.build import takes_vectors

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
    table = json.loads(config if isinstance(config, str) else config.canonical())
    table["seed"] = 0  # one count serves all seeds, rates and lengths
    table["training"] = {key: table["training"][key] for key in ("batch_size", "loss")} | {"steps": 1}
    for irrelevant in ("probe", "evaluation"):
        table.pop(irrelevant, None)
    return _count(json.dumps(table, sort_keys=True))


@functools.cache
def _count(text: str) -> int:
    config = RunConfig.from_json(text)
    if is_reference(config.data.name):
        dataset = data.load(config.data.name)
        (channels, *size), classes = dataset.shape, len(dataset.classes)
    else:
        require_known("data.name", config.data.name, IMAGES)
        (channels, *size), classes = IMAGES[config.data.name]
    size = size if config.data.image_size is None else [config.data.image_size] * 2
    with torch.random.fork_rng():
        net = build(config.network.architecture, (channels, *size), classes, seed=0, **config.network.options)
        estimator = make_estimator(config.estimator.name, net, loss=config.training.loss, **config.estimator.options)
        x = torch.randn(config.training.batch_size, channels, *size, generator=torch.Generator().manual_seed(0))
        x = x.flatten(1) if takes_vectors(net) else x
        y = torch.arange(len(x)) % classes
        with FlopCounterMode(display=False) as counter:
            estimator.backward(x, y)
    return counter.get_total_flops()
