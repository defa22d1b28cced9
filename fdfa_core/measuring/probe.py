"""Measuring estimators against the true gradient: draws → scalars → moments → rows of a table.

Each draw g_r of a parameter's gradient is reduced to a few inner products; those of a block or of the network are sums over
its parameters. Only moments of these scalars over the draws are kept (columns in docs/architecture.md). Gradients of linear
layers are never formed for it (`fdfa_core.linearisation.factored`), and draws that would not fit in memory are made twice
from the same random numbers, first for their mean, then for the scalars.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.base import Estimator
from fdfa_core.gradients import true_gradient
from fdfa_core.linearisation import factored
from fdfa_core.linearisation.maps import hooked
from fdfa_core.linearisation.trace import Gradients
from fdfa_core.measuring.activations import activation_rms
from fdfa_core.measuring.reference import Reference
from fdfa_core.measuring.scalars import measure_draws, remembered
from fdfa_core.measuring.summary import own_columns, summarise_all
from fdfa_core.networks.blocks import Block, BlockNetwork

SAMPLINGS = ("given_batch", "fresh_batches")
CHUNK_BYTES = 2**28  # of dense draws held at a time
FRESH_BYTES = 2**24  # the same for draws made one by one, where more at a time gain nothing
CHUNK_NUMBERS = 2**25  # of factored draws made at a time


def probe(
    net: BlockNetwork,
    x: Tensor,
    y: Tensor,
    estimators: Mapping[str, Estimator],
    reference: Reference,
    *,
    replicates: int,
    sampling: str = "given_batch",
    generator: torch.Generator | None = None,
    loss="cross_entropy",
    options: Mapping[str, Mapping[str, object]] | None = None,
    raw: dict[str, Tensor] | None = None,
) -> list[dict[str, object]]:
    """Measure estimators on the network as it is; nothing of it changes, except for the estimators' random streams.

    Args:
        net: the network.
        x: the current batch (N, …); its size is the batch size of "fresh_batches" too.
        y: its targets.
        estimators: by label.
        reference: the reference gradient at the present weights.
        replicates: R ≥ 2, draws of each estimator (and the number of replicas of those that have them).
        sampling: "given_batch" draws on (x, y), with its BP gradient as the target; "fresh_batches" gives each draw a batch of
            its own, drawn with replacement from the reference set, with the reference gradient as the target.
        generator: draws the fresh batches.
        loss: as in `make_estimator`.
        options: per label, the options that were given (for the table).
        raw: filled with the gradients themselves if given: "bp/…", "reference/…" and "<label>/…" (R, *shape).

    Returns:
        Rows of probes.parquet (docs/architecture.md) without step and epoch.

    Raises:
        InvalidInput: R below 2, or unknown sampling.
    """
    if not isinstance(replicates, int) or replicates < 2:
        raise InvalidInput("replicates", replicates, "an integer of at least 2: a variance needs two draws")
    if sampling not in SAMPLINGS:
        raise InvalidInput("sampling", sampling, " or ".join(map(repr, SAMPLINGS)))
    given = sampling == "given_batch"
    target = true_gradient(net, x, y, loss) if given else reference.gradient
    if raw is not None:
        raw |= {f"bp/{name}": g for name, g in target.items()} if given else {}
        raw |= {f"reference/{name}": g for name, g in reference.gradient.items()}
    batches = None if given else _fresh_batches(reference, len(x), replicates, generator)
    groups = _groups(net)
    activations = activation_rms(net, [inputs for inputs, _ in reference.disjoint_batches()])
    about = {
        key: {
            "reference_variance": sum(reference.variance[name] for name in names),
            "reference_stability": reference.stability(names),
            "reference_batches": reference.batches,
            "size": sum(target[name].numel() for name in names),
            "activation_rms": activations[key[1]] if key[0] == "block" and key[2] == "hidden" else math.nan,
        }
        for key, names in groups.items()
    }
    place = {name: i for i, name in enumerate(target)}
    members = [[place[name] for name in names] for names in groups.values()]
    heads: list[dict[str, object]] = []
    values, fixed, owned = [], [], []
    objective = [(x, y)] if given else _objective_batches(net, reference)
    for label, estimator in estimators.items():
        of_its_own = estimator.own_gradients(*objective[0], replica=0) is not None  # makes a state whose shapes were unknown
        produce = draws_on_batch(estimator, x, y, replicates) if given else draws_on_fresh_batches(estimator, batches)
        produce = remembered(produce)
        scalars = measure_draws(produce, target, reference.gradient)
        if raw is not None:
            chunks = list(produce())
            raw |= {f"{label}/{name}": torch.cat([factored.dense(c[name]) for c in chunks]) for name in target}
        of_each = torch.stack([scalars[name].values for name in place]).numpy(force=True)
        fixed_of_each = torch.stack([scalars[name].fixed for name in place]).numpy(force=True)
        values += [of_each[some].sum(0) for some in members]
        fixed += [fixed_of_each[some].sum(0) for some in members]
        own = measure_own(estimator, produce, objective) if of_its_own else None
        owned += [own_columns(own, names) for names in groups.values()]
        settings = json.dumps(dict((options or {}).get(label, {})), sort_keys=True, default=str)
        head = {"estimator": label, "method": estimator.name, "options": settings, "sampling": sampling, "draws": replicates}
        heads += [head | dict(zip(_KEYS, key, strict=True)) | about[key] for key in groups]
    columns = zip(heads, summarise_all(np.stack(values), np.stack(fixed)), owned, strict=True)
    return [head | measured | own for head, measured, own in columns]


_KEYS = ("level", "block", "role", "parameter")


def _groups(net: BlockNetwork) -> dict[tuple[str, int, str, str], list[str]]:
    """What rows sum over: (level, block, role, parameter) → names of parameters that train."""
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    if not names:
        raise InvalidInput("net", "no parameter that requires a gradient", "a network of which something trains")
    last = len(net) - 1
    groups: dict[tuple[str, int, str, str], list[str]] = {}
    for name in names:
        block = net.block_of(name)
        groups["parameter", block, "readout" if block == last else "hidden", name] = [name]
    for block in range(len(net)):
        members = [name for name in names if net.block_of(name) == block]
        if members:
            groups["block", block, "readout" if block == last else "hidden", ""] = members
    hidden = [name for name in names if net.block_of(name) != last]
    if hidden:
        groups["hidden", -1, "hidden", ""] = hidden
    groups["network", -1, "network", ""] = names
    return groups


def draws_on_batch(estimator: Estimator, x: Tensor, y: Tensor, replicates: int) -> Callable[[], Iterator[Gradients]]:
    """All draws on one batch, in chunks; replicated states come all at once."""
    floats = sum(p.numel() for p in estimator.net.parameters())
    start = estimator.generator.get_state()

    def produce() -> Iterator[Gradients]:
        estimator.generator.set_state(start)
        # as if all draws were dense, until the first of them show how much they hold
        size = replicates if estimator.replicas is not None else max(1, CHUNK_BYTES // (floats * estimator.dtype.itemsize))
        made = 0
        while made < replicates:
            count = min(size, replicates - made)
            chunk = estimator.draws(x, y, count)
            yield chunk
            made += count
            size = max(size, CHUNK_NUMBERS * count // max(1, sum(map(factored.numbers, chunk.values()))))

    return produce


def draws_on_fresh_batches(estimator: Estimator, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], Iterator[Gradients]]:
    """One draw on each batch, draw r by replica r where there are replicas; dense, since layer inputs differ."""
    floats = sum(p.numel() for p in estimator.net.parameters())
    chunk = max(1, FRESH_BYTES // (floats * estimator.dtype.itemsize))
    start = estimator.generator.get_state()

    def produce() -> Iterator[Gradients]:
        estimator.generator.set_state(start)
        for first in range(0, len(batches), chunk):
            each = [
                estimator.draws(*batch, 1, replica=first + i if estimator.replicas is not None else None)
                for i, batch in enumerate(batches[first : first + chunk])
            ]
            yield {name: torch.cat([factored.dense(g[name]) for g in each]) for name in each[0]}

    return produce


def measure_own(
    estimator: Estimator, produce: Callable[[], Iterator[Gradients]], batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Hold the draws of a method against its own objective, whose gradient a replica of its state gives.

    Args:
        estimator: the method.
        produce: its draws, see `draws_on_batch`.
        batches: over which the gradient t_r of the objective is averaged.

    Returns:
        Per parameter ‖g_r − t_r‖² and ‖t_r‖² (2, R), float64.
    """
    squares: dict[str, list[Tensor]] = {}
    replicas, dims = estimator.replicas, {name: p.dim() for name, p in estimator.net.named_parameters()}
    numbers = sum(p.numel() for p in estimator.net.parameters())
    at_once = replicas is not None and replicas * numbers * estimator.dtype.itemsize <= CHUNK_BYTES
    own, made = {}, 0
    if at_once or replicas is None:
        own = _mean({n: factored.dense(g) for n, g in estimator.own_gradients(*batch).items()} for batch in batches)
    for chunk in produce():
        count = next(iter(chunk.values())).shape[0]
        for part in [chunk] if own else [{n: factored.pick(g, r) for n, g in chunk.items()} for r in range(count)]:
            of_part = own or _mean(estimator.own_gradients(*batch, replica=made) for batch in batches)
            for name, g in part.items():
                target = of_part[name]
                # one for each replica, or one for all
                target = target[made : made + count] if target.dim() > dims[name] else target.unsqueeze(0)
                distance2 = factored.norm2(factored.dense(g) - target)
                norm2 = factored.norm2(target).expand_as(distance2)
                squares.setdefault(name, []).append(torch.stack([distance2, norm2]))
            made += count if own else 1
    return {name: torch.cat(pairs, 1) for name, pairs in squares.items()}


# Of these a sample's output depends on that sample alone, and on no random number.
_APART = (BlockNetwork, Block, nn.Linear, nn.Conv2d, nn.Flatten, nn.Identity, nn.ReLU, nn.Tanh)


def _objective_batches(net: BlockNetwork, reference: Reference) -> list[tuple[Tensor, Tensor]]:
    """Return the batches over which the gradient of an own objective is averaged.

    They are the reference's disjoint batches. Where samples are certainly apart, the mean over these is the gradient on all of
    them at once, which takes one backward pass in place of many.
    """
    apart = all(type(module) in _APART and not hooked(module) for module in net.modules())
    return [(reference.x, reference.y)] if apart else reference.disjoint_batches()


def _mean(gradients: Iterator[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of gradients, of which few are held at a time: a reference set has many batches."""
    total, count = {}, 0
    for count, gradient in enumerate(gradients, 1):  # noqa: B007
        for name, g in gradient.items():
            total[name] = g if count == 1 else total[name] + g
    return {name: g / count for name, g in total.items()}


def _fresh_batches(
    reference: Reference, batch_size: int, count: int, generator: torch.Generator | None
) -> list[tuple[Tensor, Tensor]]:
    index = torch.randint(len(reference.x), (count, batch_size), generator=generator).to(reference.x.device)
    return [(reference.x[i], reference.y[i]) for i in index]
