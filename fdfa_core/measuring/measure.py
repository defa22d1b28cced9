"""Estimators against the true gradient on a user's own network and batch, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from fdfa_core.errors import FdfaError, InvalidInput, Unsupported
from fdfa_core.estimators import Estimator, available_estimators, estimator_options, label, make_estimator
from fdfa_core.estimators.options import free_memory
from fdfa_core.measuring.cost import peak_memory
from fdfa_core.measuring.plan import CHOICES, TRIAL, WORTH_SAYING, Work, announce, choose, notes
from fdfa_core.measuring.probe import SAMPLINGS, probe
from fdfa_core.measuring.reference import Reference
from fdfa_core.measuring.table import Measurements
from fdfa_core.networks.batch import packed
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.cutting import cut
from fdfa_core.networks.inputs import require_tensor
from fdfa_core.seeds import derive

Request = str | tuple[str, Mapping[str, object]]


def measure(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    estimators: Sequence[Request] | None = None,
    replicates: int | None = None,
    *,
    loss="cross_entropy",
    seed: int = 0,
    sampling: str = "given_batch",
    batch_size: int | None = None,
    burn_in: int | None = None,
    progress: bool | None = None,
) -> Measurements:
    """Measure variance, bias, error, angle and cost of gradient estimators on a network as it is.

    An estimator whose state learns (FDFA) is measured over R independent replicas of the state. Each replica first learns
    at these weights until it is near its stationary distribution. The network does not change.

    Args:
        net: a `BlockNetwork`, or an `nn.Sequential`, which is cut at its activations (`fdfa_core.cut`).
        x: inputs (N, …).
        y: targets.
        estimators: names or (name, options) pairs; None for all that can serve this network with their defaults, or else
            with ``site="post"``. Why others cannot is in ``frame.attrs["unsupported"]``, a dict name → reason.
        replicates: R ≥ 2 independent draws of each. None takes 256, or fewer (at least 8) that fit into about 20 seconds on the
            machine; where 8 do not fit, states that learn get fewer steps before the draws, and ``frame.attrs["notes"]`` and
            the printed table say so. Give a number where results must not depend on the machine's speed.
        loss: as in `make_estimator`.
        seed: of all random streams; equal seeds give equal numbers.
        sampling: "given_batch": draws on (x, y), compared to its gradient. "fresh_batches": each draw on its own batch of
            `batch_size` samples drawn with replacement from (x, y), compared to the gradient on (x, y). The R states of an
            estimator that learns have followed one history of batches, drawn by `seed`, as they would in a training run:
            variance, bias and their errors are those given that history. Average over seeds for all histories.
        batch_size: of "fresh_batches".
        burn_in: steps of the states' own learning before the draws; None lets each estimator say how many it needs.
        progress: say how long it will take, and show a progress bar, on standard error. None does so from three seconds on.

    Returns:
        One row per estimator × parameter, block, all hidden blocks and network, with the columns of probes.parquet
        (docs/architecture.md) and `mse` (the mean squared error), `relative_variance`, `relative_bias2`, `relative_mse` (over
        the target's squared norm), `norm_ratio` (root mean square of an estimate's norm over the target's), and of one
        estimate with its state's update `seconds` and `peak_memory` (bytes of tensors made by it and alive together).

    Raises:
        UnknownName: an estimator or option that is not known.
        InvalidInput: a network that cannot be cut, a batch, R or option that cannot be used, or R replicas of a state that do
            not fit into memory.
        Unsupported: an estimator that was asked for by name cannot serve this network.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from fdfa_core import measure
        >>> frame = measure(net, x, y, ["bp", "fg-a"], replicates=16)
        >>> whole = frame[frame["level"] == "network"].set_index("estimator")
        >>> whole["relative_variance"].round(1).to_dict()
        {'bp': 0.0, 'fg-a': 13.0}
    """
    if not isinstance(x, Mapping):
        require_tensor("x", x)
    if not isinstance(net, BlockNetwork):
        net = cut(net, example=x)
    x = packed(net, x)
    require_tensor("x", x)
    _check(replicates, sampling, batch_size, burn_in, len(x))
    requests = requested(available_estimators() if estimators is None else estimators)
    _require_finite(net, x)
    reference = Reference.on_batch(net, x, y, loss)
    jobs: list[_Job] = []
    unsupported: dict[str, str] = {}
    refusals: list[FdfaError] = []
    for name, options in requests:
        choices = [options]
        if estimators is None and estimator_options(name).get("site") == "pre":
            choices.append({"site": "post"})
        for options in choices:
            try:
                batches = _Batches(x, y, sampling, batch_size, seed)
                jobs.append(_Job(net, name, options, loss, seed, batches, burn_in, replicates, progress))
            except (Unsupported, InvalidInput) as error:
                if estimators is not None:
                    raise
                refusals.append(error)
                unsupported[name] = str(error)
            else:
                unsupported.pop(name, None)
                break
    works = [job.work for job in jobs]
    count = choose(works) if replicates is None else replicates
    shown = sum(work.seconds(count) for work in works) > WORTH_SAYING if progress is None else progress
    if shown:
        announce(works, count)
    rows: list[dict[str, object]] = []
    with tqdm(total=sum(1 + work.steps for work in works), desc="measure", disable=not shown) as bar:
        for job in jobs:
            try:
                rows += job.rows(count, reference, bar.update)
            except (Unsupported, InvalidInput) as error:
                if estimators is not None:
                    raise
                refusals.append(error)
                unsupported[job.name] = str(error)
    if not rows:
        raise refusals[0]
    frame = Measurements(rows)
    target2 = frame["target_norm"] ** 2
    frame["mse"] = frame["error_mean"]
    frame["relative_variance"] = frame["variance"] / target2
    frame["relative_bias2"] = frame["bias2"] / target2
    frame["relative_mse"] = frame["mse"] / target2
    frame["norm_ratio"] = frame["norm2_mean"] ** 0.5 / frame["target_norm"]
    frame.attrs["unsupported"] = unsupported
    frame.attrs["notes"] = notes(works)
    return frame


def requested(estimators: Sequence[Request]) -> list[tuple[str, Mapping[str, object]]]:
    """Return the name and the options of each estimator that is asked for; raises `InvalidInput` for what asks for none."""
    if isinstance(estimators, str) or not isinstance(estimators, Iterable):
        raise InvalidInput("estimators", estimators, 'a list of names or (name, options) pairs, e.g. ["bp", "fdfa"]')
    pairs = [(request, {}) if isinstance(request, str) else request for request in estimators]
    for pair in pairs:
        pairlike = isinstance(pair, tuple | list) and len(pair) == 2
        if not (pairlike and isinstance(pair[0], str) and isinstance(pair[1], Mapping)):
            raise InvalidInput("estimators", pair, 'names or (name, options) pairs, e.g. ("fdfa", {"feedback_lr": 0.1})')
    if not pairs:
        raise InvalidInput("estimators", [], "at least one name, or None for all")
    return [(name, options) for name, options in pairs]


class _Batches:
    """The batches of one estimator, the same ones for every estimator."""

    def __init__(self, x: Tensor, y: Tensor, sampling: str, size: int | None, seed: int):
        self.x, self.y, self.sampling, self.size = x, y, sampling, size
        self.stream = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the batch itself, or a fresh one drawn from it."""
        if self.sampling == "given_batch":
            return self.x, self.y
        index = torch.randint(len(self.x), (self.size,), generator=self.stream).to(self.x.device)
        return self.x[index], self.y[index]


class _Job:
    """One estimator that serves the network, with its cost and the time that it takes."""

    def __init__(self, net, name, options, loss, seed, batches, burn_in, replicates, progress):
        self.net, self.name, self.options, self.batches, self.loss = net, name, options, batches, loss
        self.called = label(name, options)
        self.own = dict(loss=loss, seed=derive(seed, self.called), **options)  # whatever else is measured
        one = make_estimator(name, net, **self.own)
        batch = batches.next()
        self.cost = _cost(one, *batch)
        needed = one.stationary_steps() if one.stateful else 0
        steps = needed if burn_in is None else burn_in if one.stateful else 0
        self.work = Work(self.called, needed=needed if burn_in is None else 0, steps=steps)
        if replicates is not None:
            _check_memory(one, replicates)
        elif one.stateful:
            self.work.most = _fitting(one)[0]
        longest = self.cost["seconds"] * (replicates or CHOICES[0]) * (1 + steps)
        if longest > WORTH_SAYING and (replicates is None or progress is not False):
            self.work.time(make_estimator(name, net, replicas=min(TRIAL, replicates or TRIAL), **self.own), *batch)

    def rows(self, replicates: int, reference: Reference, tick: Callable[[], object]) -> list[dict[str, object]]:
        """Take the states to where they are measured, and measure."""
        estimator = make_estimator(self.name, self.net, replicas=replicates, **self.own)
        for _ in range(self.work.steps):
            estimator.advance(*self.batches.next())
            tick()
        given = dict(replicates=replicates, sampling=self.batches.sampling, generator=self.batches.stream, loss=self.loss)
        batch = self.batches.next()
        rows = probe(self.net, *batch, {self.called: estimator}, reference, options={self.called: self.options}, **given)
        tick()
        return [row | self.cost for row in rows]


def _check(replicates: int | None, sampling: str, batch_size: int | None, burn_in: int | None, samples: int) -> None:
    if sampling not in SAMPLINGS:
        raise InvalidInput("sampling", sampling, " or ".join(map(repr, SAMPLINGS)))
    if sampling == "fresh_batches" and (not isinstance(batch_size, int) or not 1 <= batch_size <= samples):
        raise InvalidInput("batch_size", batch_size, f"an integer from 1 to {samples}, the number of samples")
    if sampling == "given_batch" and batch_size is not None:
        raise InvalidInput("batch_size", batch_size, 'None with sampling="given_batch", which draws on all of (x, y)')
    if replicates is not None and (not isinstance(replicates, int) or isinstance(replicates, bool) or replicates < 2):
        raise InvalidInput("replicates", replicates, "an integer of at least 2: a variance needs two draws")
    if burn_in is not None and (not isinstance(burn_in, int) or burn_in < 0):
        raise InvalidInput("burn_in", burn_in, "a number of steps, or None for what each estimator needs")


def _require_finite(net: BlockNetwork, x: Tensor) -> None:
    """Raise `InvalidInput` for parameters or a batch with NaN or infinity, of which every measured number would be NaN.

    Buffers may hold what they like: the mask of an attention is infinite on purpose.
    """
    held = {f"net: {name}": value for name, value in net.named_parameters()} | {"x": x}
    for name, value in held.items():
        value = value.detach() if value.layout is torch.strided else value.detach().coalesce().values()
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            raise InvalidInput(name, f"{int((~finite).sum())} of {value.numel()} values NaN or infinite", "finite values alone")


def _check_memory(estimator: Estimator, replicates: int) -> None:
    """Raise if R replicas of a state that learns would not fit into what memory is free."""
    if not estimator.stateful:
        return
    most, size, free = _fitting(estimator)
    if replicates * size > free:
        given = f"{replicates}, which is {replicates * size / 1e9:.3g} GB of states of {estimator.name}"
        raise InvalidInput("replicates", given, f"at most {most}, what {free / 1e9:.3g} GB of free memory hold")


def _fitting(estimator: Estimator) -> tuple[int, int, int]:
    """How many replicas of a state fit into what memory is free, the bytes of one, and the bytes that are free."""
    size = sum(held.nbytes for held in tree_leaves(estimator.own_state()) if isinstance(held, Tensor))
    free = free_memory(estimator.device)
    return free // max(1, size), size, free


def _cost(estimator: Estimator, x: Tensor, y: Tensor, repetitions: int = 5) -> dict[str, float]:
    """Median seconds and peak bytes of one estimate with its state's update; the first, which sets up, does not count."""

    def once() -> None:
        estimator.estimate(x, y)
        estimator.advance(x, y)
        if estimator.device.type == "cuda":
            torch.cuda.synchronize(estimator.device)

    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return {"seconds": sorted(times[1:])[repetitions // 2], "peak_memory": peak_memory(once)}
