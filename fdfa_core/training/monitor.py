"""Instruments for a training loop that this project did not write.

The user's loop calls `Monitor.observe` before every step. Probes and shadows are those of the runs of experiment files
(`fdfa_core.training.instruments`), and what they measure becomes a run directory of the same layout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdfa_core import paths
from fdfa_core.errors import InvalidInput, RunError
from fdfa_core.experiments.tables import require_known
from fdfa_core.measuring.measure import Request, requested
from fdfa_core.networks.batch import check_batch, packed
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.cutting import cut
from fdfa_core.networks.inputs import require_tensor
from fdfa_core.random_state import preserve_random_stream
from fdfa_core.runs.directory import claim, is_complete, open_root
from fdfa_core.runs.partial import PartialRun
from fdfa_core.runs.schema import METRICS
from fdfa_core.training import provenance
from fdfa_core.training.instruments import Instruments
from fdfa_core.training.own_run import Call, describe_data, own_run, schedule_of

LOGGED = tuple(name for name in METRICS if name not in ("step", "epoch"))  # what a loop may log
_APART = "give another name or seed to a run that differs"


class Monitor:
    """Measures estimators on a network while a loop of the user's trains it, and touches nothing.

    The weights, their ``.grad``, buffers, modes and random streams are, bit for bit, those of the same loop without a monitor.
    Call `observe` with every batch, before the step that learns from it: estimators with a state follow the weights. Every
    `every` steps all estimators are measured as in the probes of an experiment (docs/experiments.md).

    `close`, or leaving a ``with`` without an error, writes the run directory ``<directory>/<id>``. Before that there is only
    ``<id>.partial``. The id is a hash of `name`, `seed`, network and what is measured. The loop itself is not part of it: give
    loops that differ different names.

    Args:
        net: a `BlockNetwork`; or an `nn.Sequential`, which is cut at its activations (`fdfa_core.cut`). Cut any other module
            yourself; the cut network shares its layers, so that the loop may go on to train the module.
        estimators: names or (name, options) pairs.
        reference: samples (x, y) that stand for the training set, at least two batches of them.
        directory: directory of runs: a new one, or one made for runs.
        every: measure at the steps 0, k, 2k, …; or a schedule as in an experiment file, ``{"kind": "geometric"}``. Measuring a
            few estimators takes as long as some dozens of steps, about half of it for the gradient on the reference.
        loss: as in `make_estimator`; it has to be the loss that the loop minimises.
        replicates: R ≥ 2 draws of each estimator, and replicas of each state.
        sampling: "given_batch" or "fresh_batches", as in `fdfa_core.measure`.
        name: of the loop, in figures. Runs of one name that differ in their seed count as replicates of one another.
        seed: of the estimators' and probes' random streams; take that of the loop.
        data: what figures call the data.
        steps_per_epoch: lets logs count epochs; without it their `epoch` is NaN, and figures over epochs are not drawn.
        feedback: compare FDFA's feedback with the exact mean Jacobian (``feedback.parquet``).
        raw_gradients: store the gradients themselves.
        common_random_numbers: let estimators whose feedback learns from the same perturbations share them, step by step, as
            FDFA at several rates does: what they differ in is then all that tells them apart, and the perturbations are made
            and followed once.

    Attributes:
        step: batches observed so far.
        net: the network of blocks that is measured.
        config: the configuration of the run.
        path: where the finished run is, or will be.

    Raises:
        InvalidInput: an argument that cannot be used; the error names it.
        UnknownName: an estimator or option that is not known.
        Unsupported: an estimator that cannot serve this network.
        RunError: the directory cannot be used, holds this run already, or another monitor is writing it.

    Examples:
        >>> import torch
        >>> from fdfa_core import Monitor, fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 128).view(32, 4), torch.arange(32) % 3
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with Monitor(net, ["bp", "fg-a"], reference=(x, y), directory="runs", every=2, replicates=4) as monitor:
        ...     for _ in range(4):
        ...         monitor.observe(x[:8], y[:8])
        ...         loss = torch.nn.functional.cross_entropy(net(x[:8]), y[:8])
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> sorted(path.name for path in monitor.path.iterdir())
        ['config.json', 'metrics.parquet', 'probes.parquet', 'provenance.json', 'summary.json', 'timing.parquet']
    """

    def __init__(
        self,
        net: nn.Module,
        estimators: Sequence[Request],
        *,
        reference: tuple[Tensor, Tensor],
        directory: str | Path,
        every: int | Mapping[str, Any] = 1000,
        loss="cross_entropy",
        replicates: int = 32,
        sampling: str = "given_batch",
        name: str = "own",
        seed: int = 0,
        data: str = "own",
        steps_per_epoch: int | None = None,
        feedback: bool = False,
        raw_gradients: bool = False,
        common_random_numbers: bool = False,
    ):
        if not isinstance(net, nn.Module):
            raise InvalidInput("net", type(net).__name__, "a BlockNetwork, or an nn.Sequential")
        if not (isinstance(reference, tuple | list) and len(reference) == 2):
            raise InvalidInput("reference", type(reference).__name__, "a pair (x, y) of tensors: samples of the training set")
        for part, value in zip("xy", reference, strict=True):
            require_tensor(f"reference {part}", packed(net, value) if isinstance(net, BlockNetwork) and part == "x" else value)
        if steps_per_epoch is not None and (type(steps_per_epoch) is not int or steps_per_epoch < 1):
            raise InvalidInput("steps_per_epoch", steps_per_epoch, "a positive integer, or None where epochs are not counted")
        self._trained = net
        self._device = next((p.device for p in net.parameters()), torch.device("cpu"))
        with preserve_random_stream(self._device, net, host=True):
            self.net = net if isinstance(net, BlockNetwork) else cut(net, example=reference[0])
            reference = check_batch(self.net, *reference)
            probe = {
                "schedule": dict(every) if isinstance(every, Mapping) else {"kind": "every", "k": every},
                "estimators": [{"name": wanted, **options} for wanted, options in requested(estimators)],
                "sampling": sampling,
                "replicates": replicates,
                "reference_size": len(reference[0]),
                "raw_gradients": raw_gradients,
                "feedback": feedback or None,
                "common_random_numbers": common_random_numbers or None,
            }
            self.config = own_run(self.net, probe, loss, name, seed, data)
            self._steps_per_epoch = steps_per_epoch
            self.instruments = Instruments(
                self.net,
                self.config.probe,
                schedule_of(self.config, steps_per_epoch),
                reference,
                seed=seed,
                loss=loss,
                locate=Call.locate,
            )
        self.step = 0
        self._diverged: int | None = None
        self._rows: list[dict[str, float]] = []  # of metrics, one a step at which something was logged
        self._instrument_seconds: list[float] = []  # of each of these rows
        self._seconds = 0.0
        self._origin = provenance.describe(self._device, seed, describe_data(data, reference))
        self._open(directory)

    # What a loop calls -----------------------------------------------------------------------------------------------

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Measure if this step is due, and let the states follow: the network as it is, on the batch of the coming step.

        Args:
            x: the batch (N, …). The size of the first batch counts as that of training.
            y: its targets.

        If the weights are no longer finite when a measurement is due, the run counts as diverged, and nothing is measured or
        logged any more.

        Raises:
            InvalidInput: x and y do not fit each other or the network, or the reference holds fewer than two batches.
            Unsupported: an estimator cannot serve this network.
            RunError: the monitor is closed, or what an interrupted run had measured has not been loaded.
        """
        self._require_open()
        if self._interrupted is not None:
            raise RunError(
                f"{self._partial.path}: holds an unfinished run that had come to step {self._interrupted}; load what its "
                "state_dict() returned into this monitor to go on, or remove the directory to begin anew"
            )
        if self._diverged is None and self.instruments.due(self.step):
            start = time.perf_counter()
            with preserve_random_stream(self._device, self.net, host=True):
                self._take_mode()
                self._look(packed(self.net, x), y)
            self._seconds += time.perf_counter() - start
        self.step += 1

    def log(self, **metrics: float) -> None:
        """Log what the loop knows of itself after the steps so far, for ``metrics.parquet``.

        Args:
            **metrics: any of batch_loss, train_loss, train_accuracy, test_loss, test_accuracy (a share of one) and
                learning_rate. What is not logged at a step is NaN there. Several calls between two steps make one row.

        A loss that is not finite makes the run count as diverged from here on.

        Raises:
            InvalidInput: another name, a value that cannot be, or a second value at the same step.
            RunError: the monitor is closed.
        """
        self._require_open()
        values = {}
        for name, value in metrics.items():
            require_known("log", name, LOGGED)
            values[name] = _checked(name, value)
        if self._diverged is not None or not values:
            return
        if not all(map(math.isfinite, values.values())):
            self._diverged = self.step
            return
        if not self._rows or self._rows[-1]["step"] != self.step:
            self._rows.append({"step": self.step, "epoch": self.epoch} | dict.fromkeys(LOGGED, math.nan))
            self._instrument_seconds.append(self._seconds)
        row = self._rows[-1]
        for name, value in values.items():
            if not math.isnan(row[name]) and row[name] != value:
                raise InvalidInput(name, value, f"one value at step {self.step}, which has {row[name]} already")
            row[name] = value

    def close(self) -> Path:
        """Write the run directory, and return its path; a second call does nothing.

        Raises:
            RunError: no batch has been observed, or the directory cannot be written to.
        """
        if self._closed:
            return self.path
        if not self.step:
            self.leave()
            raise RunError(f"{self._partial.path}: the monitor has observed no batch, and there is no run to write")
        unknown = {"training_seconds": math.nan, "evaluation_seconds": math.nan}
        timing = [
            {"step": row["step"], "instrument_seconds": seconds} | unknown
            for row, seconds in zip(self._rows, self._instrument_seconds, strict=True)
        ]
        tables = {"metrics": self._rows, "timing": timing} | self.instruments.tables()
        self._partial.finish(tables, self._origin | {"finished": provenance.now()}, self._summary())
        self.leave()
        return self.path

    def leave(self) -> None:
        """Let go of the run without finishing it: the partial directory stays, and another monitor may take it up."""
        self._closed = True
        self._held.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the run, or after an error leave it unfinished."""
        self.close() if kind is None else self.leave()

    @property
    def epoch(self) -> float:
        """Passes through the training set so far; NaN where steps_per_epoch is not known."""
        return self.step / self._steps_per_epoch if self._steps_per_epoch else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return all that the coming measurements depend on, and what was measured: tensors and plain values.

        Save it together with the loop's own state. From now on an interrupted run begins anew only if its partial directory is
        removed.
        """
        self._require_open()
        self._partial.write_checkpoint({"step": self.step})
        return {
            "run": self.config.id,
            "step": self.step,
            "diverged": self._diverged,
            "rows": [dict(row) for row in self._rows],
            "instrument_seconds": list(self._instrument_seconds),
            "seconds": self._seconds,
            "origin": self._origin,
            "batch_size": self.instruments.batch_size,
            "instruments": self.instruments.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; if the loop restores its state of that step, the measurements go on as they were.

        Raises:
            InvalidInput: the state is that of another run.
        """
        self._require_open()
        if state.get("run") != self.config.id:
            accepted = f"that of run {self.config.id}: equal network, estimators, schedule, name and seed"
            raise InvalidInput("state", f"the state of run {state.get('run')}", accepted)
        self.step, self._diverged, self._seconds = state["step"], state["diverged"], state["seconds"]
        self._rows, self._instrument_seconds = [dict(row) for row in state["rows"]], list(state["instrument_seconds"])
        self._origin = provenance.taken_up(state["origin"], self.step, self._origin)
        self.instruments.batch_size = state["batch_size"]
        self.instruments.load_state_dict(state["instruments"])
        self._interrupted = None

    # Inside ----------------------------------------------------------------------------------------------------------

    def _look(self, x: Tensor, y: Tensor) -> None:
        if self.instruments.schedule(self.step) and not all(bool(p.isfinite().all()) for p in self.net.parameters()):
            self._diverged = self.step
            return
        raw = self.instruments.observe(self.step, self.epoch, x, y)
        self.instruments.follow(x, y)
        if raw is not None:
            self._partial.write_gradients(self.step, raw)

    def _take_mode(self) -> None:
        """Let modules that exist only in the cut network be in the mode of the module that was cut."""
        if self.net is not self._trained:
            own = set(self._trained.modules())
            for module in self.net.modules():
                if module not in own:
                    module.training = self._trained.training

    def _open(self, directory: str | Path) -> None:
        if Path(directory).resolve().is_relative_to(paths.RESULTS.resolve()):
            raise InvalidInput("directory", str(directory), "a directory outside the recorded results")
        root = open_root(directory)
        self.path = root / self.config.id
        self._held = ExitStack()
        if not self._held.enter_context(claim(root, self.config.id, wait=False)):
            self._held.close()
            raise RunError(f"{self.path}: is being written by another monitor: end that one (close() or leave()), or {_APART}")
        try:
            if is_complete(root, self.config.id):
                raise RunError(f"{self.path}: holds this run already; {_APART}, or remove it")
            self._partial = PartialRun(root, self.config)
            if self._partial.is_written:  # killed between its last file and its new name
                raise RunError(f"{self._partial.publish()}: holds this run already; {_APART}, or remove it")
            note = self._partial.read_checkpoint()
        except BaseException:
            self._held.close()
            raise
        self._interrupted: int | None = note["step"] if note else None
        self._closed = False

    def _require_open(self) -> None:
        if self._closed:
            raise RunError(f"{self.path}: the monitor is closed; make a new one for another run")

    def _summary(self) -> dict[str, Any]:
        final = {name: None if math.isnan(value) else value for name, value in self._rows[-1].items()} if self._rows else {}
        return {
            "status": "finished" if self._diverged is None else "diverged",
            "diverged_step": self._diverged,
            "steps": self.step,
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "batch_size": self.instruments.batch_size,
            "final": final,
        }


def _checked(name: str, value: Any) -> float:
    """Return a metric as a number, or raise `InvalidInput` where it cannot be one."""
    try:
        number = float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidInput(name, value, "a number") from None
    if name.endswith("accuracy") and not 0 <= number <= 1:
        raise InvalidInput(name, value, "a share between 0 and 1, not a percentage")
    if name == "learning_rate" and not 0 < number < math.inf:
        raise InvalidInput(name, value, "a positive number")
    return number
