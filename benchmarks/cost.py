"""Data of the figures `cost_scaling` and `cost_vs_alignment`, as rows of CSV files.

cost_scaling.csv: milliseconds of one gradient estimate with its state's update (no optimiser step), as one size changes.

| column | meaning |
| --- | --- |
| `quantity` | what changes, from 784-800-800-10 at batch 64: "width", "depth", "batch_size", "outputs" or "draws" |
| | and from four layers of nn.TransformerEncoder, 256 wide, on 64 tokens at batch 8: "tokens" or "layers" |
| `size` | its value |
| `estimator` | registered name; with "draws" "fg-a: gradients", "fg-a: scalars" (no gradient is formed), "fdfa: replicas" |
| `milliseconds`, `low`, `high` | median and quartiles; with "draws" of one draw |
| `bp_milliseconds` | the same of a BP gradient, in turns |
| `ratio`, `ratio_low`, `ratio_high` | of the two, round by round |
| `threads` | |

cost_vs_alignment.csv: what an estimate costs and how well it points, on the digits.

| column | meaning |
| --- | --- |
| `estimator`, `method`, `options` | label, registered name, options as JSON |
| `milliseconds`, `low`, `high`, `bp_milliseconds` | as above |
| `mean_cosine`, `cosine_se` | with the batch's BP gradient, over the hidden blocks; mean over draws, standard error |
| `relative_error` | mean squared error over the squared norm of the BP gradient |
| `draws`, `steps` | R; BP steps that the network was trained before |
| `threads` | |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.gallery import encoder
from benchmarks.networks import BATCH_SIZE, make_batch
from benchmarks.timing import ratio, spread, take_turns
from fdfa_core import BlockNetwork, available_estimators, cut, fully_connected, make_estimator, true_gradient
from fdfa_core.estimators import label
from fdfa_core.networks.blocks import has_pre_site

SCALED = ("bp", "dfa", "fdfa", "fg-a", "fg-w")
SIZES = {
    "width": (100, 200, 400, 800, 1600),
    "depth": (1, 2, 4, 8),
    "batch_size": (16, 64, 256, 1024),
    "outputs": (10, 100, 1000),
}
TRANSFORMER_SIZES = {"tokens": (16, 64, 256), "layers": (1, 2, 4, 8)}


def _milliseconds(seconds: np.ndarray) -> dict[str, float]:
    shown = spread(1e3 * seconds)
    return {"milliseconds": shown["value"], "low": shown["low"], "high": shown["high"]}


def _compared(seconds: np.ndarray, bp: np.ndarray) -> dict[str, float]:
    shown = spread(ratio(seconds, bp))
    bp_milliseconds = 1e3 * float(np.median(bp))
    return {"bp_milliseconds": bp_milliseconds, "ratio": shown["value"], "ratio_low": shown["low"], "ratio_high": shown["high"]}


def cost_scaling() -> Iterator[dict[str, object]]:
    """Yield the rows of cost_scaling.csv."""
    for quantity, sizes in SIZES.items():
        for size in sizes:
            at = {"width": 800, "depth": 2, "batch_size": BATCH_SIZE, "outputs": 10} | {quantity: size}
            net = fully_connected([784, *[at["width"]] * at["depth"], at["outputs"]], batch_norm=True, seed=0)
            batch = make_batch(net, at["batch_size"], at["outputs"])
            yield from _scaled(quantity, size, net, batch, 9)
    for quantity, sizes in TRANSFORMER_SIZES.items():
        for size in sizes:
            at = {"tokens": 64, "layers": 4} | {quantity: size}
            torch.manual_seed(0)
            model, x, y = encoder(at["tokens"], 8, at["layers"])()
            yield from _scaled(quantity, size, cut(model, example=x), (x, y), 5)
    yield from _draws()


def _scaled(quantity: str, size: int, net: BlockNetwork, batch: tuple, rounds: int) -> Iterator[dict[str, object]]:
    """Yield the rows of one size."""
    site = {} if has_pre_site(net[0]) else {"site": "post"}  # general blocks have no other
    functions = {
        name: partial(make_estimator(name, net, **(site if name == "fg-a" else {})).backward, *batch) for name in SCALED
    }
    seconds = take_turns(functions, rounds)
    for name in SCALED:
        row = {"quantity": quantity, "size": size, "estimator": name}
        yield row | _milliseconds(seconds[name]) | _compared(seconds[name], seconds["bp"])


def _draws() -> Iterator[dict[str, object]]:
    from fdfa_core.measuring.probe import draws_on_batch
    from fdfa_core.measuring.scalars import measure_draws, remembered

    net = fully_connected([784, 800, 800, 10], seed=0)
    batch = make_batch(net)
    target = true_gradient(net, *batch)
    estimator, bp = make_estimator("fg-a", net), make_estimator("bp", net)
    for count in (1, 4, 16, 64, 256):
        replicated = make_estimator("fdfa", net, replicas=count)
        produce = draws_on_batch(estimator, *batch, count)
        functions = {
            "bp": partial(bp.backward, *batch),
            "fg-a: gradients": partial(estimator.sample, *batch, count),
            "fg-a: scalars": lambda p=produce: measure_draws(remembered(p), target, target),
            "fdfa: replicas": partial(replicated.advance, *batch),
        }
        seconds = take_turns(functions, 5, warmup=1)
        for name in list(functions)[1:]:
            each = seconds[name] / count
            row = {"quantity": "draws", "size": count, "estimator": name}
            yield row | _milliseconds(each) | _compared(each, seconds["bp"])


VARIANTS = [  # beside every estimator with its defaults
    ("fg-w", {"tangents": 8}),
    ("fg-w", {"per_sample": True}),
    ("fg-a", {"perturbation": "rademacher"}),
    ("fg-a", {"tangents": 8}),
    ("fg-a", {"tangents": 8, "combine": "projection"}),
    ("fdfa", {"feedback_lr": 0.1}),
    ("fdfa", {"tangents": 8}),
    ("fdfa", {"joint": False}),
]


def cost_vs_alignment(draws: int = 32, steps: int = 100) -> Iterator[dict[str, object]]:
    """Yield the rows of cost_vs_alignment.csv."""
    from fdfa_core.data import load
    from fdfa_core.measuring.probe import probe
    from fdfa_core.measuring.reference import Reference

    train = load("digits").train
    net = fully_connected([64, 128, 128, 10], seed=0)
    optimizer, bp = torch.optim.Adam(net.parameters(), lr=1e-3), make_estimator("bp", net)
    order = torch.randint(len(train), (steps + 1, BATCH_SIZE), generator=torch.Generator().manual_seed(0))
    for indices in order[:steps]:
        bp.backward(*train.batch(indices, flatten=True))
        optimizer.step()
    batch = train.batch(order[-1], flatten=True)
    reference = Reference.on_batch(net, *batch)
    requests = [(name, {}) for name in available_estimators()] + VARIANTS
    single: dict[str, Callable[[], object]] = {}
    angles: dict[str, dict[str, object]] = {}
    for name, options in requests:
        key = label(name, options)
        estimator = make_estimator(name, net, replicas=draws, **options)
        for _ in range(estimator.stationary_steps() if estimator.stateful else 0):
            estimator.advance(*batch)
        rows = probe(net, *batch, {key: estimator}, reference, replicates=draws)
        angles[key] = next(row for row in rows if row["level"] == "hidden")
        single[key] = partial(make_estimator(name, net, **options).backward, *batch)
    seconds = take_turns(single, 25)
    for name, options in requests:
        key = label(name, options)
        row = angles[key]
        yield {
            "estimator": key,
            "method": name,
            "options": json.dumps(options, sort_keys=True),
            **_milliseconds(seconds[key]),
            "bp_milliseconds": 1e3 * float(np.median(seconds["bp"])),
            "mean_cosine": row["cosine_mean"],
            "cosine_se": math.sqrt(row["cosine_m2"] / (draws - 1)),
            "relative_error": row["error_mean"] / row["target_norm"] ** 2,
            "draws": draws,
            "steps": steps,
        }


TABLES: dict[str, Callable[[], Iterator[dict[str, object]]]] = {
    "cost_scaling": cost_scaling,
    "cost_vs_alignment": cost_vs_alignment,
}
