"""Estimators against the true gradient on a user's own network and batch, in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators import Estimator, available_estimators, label, make_estimator
from fdfa_core.gradients import Reference
from fdfa_core.moments import SAMPLINGS, probe
from fdfa_core.network import BlockNetwork

Request = str | tuple[str, Mapping[str, object]]


def measure(
    net: BlockNetwork,
    x: Tensor,
    y: Tensor,
    estimators: Sequence[Request] | None = None,
    replicates: int = 256,
    *,
    loss="cross_entropy",
    seed: int = 0,
    sampling: str = "given_batch",
    batch_size: int | None = None,
    burn_in: int | None = None,
) -> pd.DataFrame:
    """Measure variance, bias, error and angle of gradient estimators on a network as it is.

    Estimators whose state learns (FDFA) are measured over R independent replicas of the state, taken towards its stationary
    distribution at these weights. The network does not change.

    Args:
        net: the network.
        x: inputs (N, …).
        y: targets.
        estimators: names or (name, options) pairs; None for all that can serve this network with their defaults.
        replicates: R ≥ 2 independent draws of each.
        loss: as in `make_estimator`.
        seed: of all random streams; equal seeds give equal numbers.
        sampling: "given_batch": draws on (x, y), compared to its gradient. "fresh_batches": each draw on its own batch of
            `batch_size` samples drawn with replacement from (x, y), compared to the gradient on (x, y).
        batch_size: of "fresh_batches".
        burn_in: steps of the states' own learning before the draws; None lets each estimator say how many it needs.

    Returns:
        A row per estimator × parameter, block and network, with the columns of probes.parquet (docs/architecture.md) and
        `mse` (the mean squared error), `relative_bias2` (bias² over the target's squared norm), `norm_ratio` (root mean
        square of an estimate's norm over the target's) and `seconds` (of one estimate, its state's update included).

    Raises:
        UnknownName: an estimator or option that is not known.
        InvalidInput: a batch, R or option that cannot be used.
        Unsupported: an estimator that was asked for by name cannot serve this network.
    """
    if sampling not in SAMPLINGS:
        raise InvalidInput("sampling", sampling, " or ".join(map(repr, SAMPLINGS)))
    given = sampling == "given_batch"
    if not given and (not isinstance(batch_size, int) or not 1 <= batch_size <= len(x)):
        raise InvalidInput("batch_size", batch_size, f"an integer from 1 to {len(x)}, the number of samples")
    stream = torch.Generator().manual_seed(seed)

    def batch() -> tuple[Tensor, Tensor]:
        if given:
            return x, y
        index = torch.randint(len(x), (batch_size,), generator=stream).to(x.device)
        return x[index], y[index]

    reference = Reference.on_batch(net, x, y, loss)
    rows: list[dict[str, object]] = []
    for i, request in enumerate(available_estimators() if estimators is None else estimators):
        name, options = (request, {}) if isinstance(request, str) else request
        try:
            estimator = make_estimator(name, net, loss=loss, seed=seed + i, replicas=replicates, **options)
            steps = estimator.stationary_steps() if burn_in is None else burn_in
            for _ in range(steps if estimator.stateful else 0):
                estimator.advance(*batch())
            one = make_estimator(name, net, loss=loss, seed=seed + i, **options)
            seconds = _seconds(one, *batch())
            found = probe(
                net,
                *batch(),
                {label(name, options): estimator},
                reference,
                replicates=replicates,
                sampling=sampling,
                generator=stream,
                loss=loss,
                options={label(name, options): options},
            )
        except Unsupported:
            if estimators is None:
                continue
            raise
        rows += [row | {"seconds": seconds} for row in found]
    frame = pd.DataFrame(rows)
    frame["mse"] = frame["error_mean"]
    frame["relative_bias2"] = frame["bias2"] / frame["target_norm"] ** 2
    frame["norm_ratio"] = frame["norm2_mean"] ** 0.5 / frame["target_norm"]
    return frame


def _seconds(estimator: Estimator, x: Tensor, y: Tensor, repetitions: int = 5) -> float:
    """Median time of one estimate with its state's update; the first, which may set things up, does not count."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        estimator.estimate(x, y)
        estimator.advance(x, y)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repetitions // 2]
