"""Training with instruments: one run from its configuration to its directory of logs.

Order within a step: probe the network as it is on the step's batch; let the shadows follow; estimate the gradient (which
advances the training estimator's own state); move the weights.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdfa_core import data, materials, provenance, schedules
from fdfa_core.architectures import ARCHITECTURES
from fdfa_core.config import EstimatorConfig, RunConfig, located, require_known
from fdfa_core.data import Dataset, Split, available_datasets
from fdfa_core.errors import InvalidInput, RunError
from fdfa_core.estimators import available_estimators, estimator_options, make_estimator
from fdfa_core.instruments import SELF, Instruments
from fdfa_core.losses import LOSSES, make_loss
from fdfa_core.runs import PartialRun, Rows, claim, is_complete, open_root, read_config
from fdfa_core.seeds import derive, stream

Progress = Callable[[int, int], None]  # (steps done, steps in all)

_CHECKPOINT = 2  # layout of a checkpoint; a run with one of another layout starts anew, to the same end
_one_at_a_time = threading.Lock()  # a run owns the process's global random stream and number of threads


def train(
    config: RunConfig,
    root: str | Path = "runs",
    *,
    progress: Progress | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_directory: str | Path | None = None,
    download: bool = True,
    checkpoint_seconds: float = 20.0,
    wait: bool = True,
) -> Path | None:
    """Carry out a run, or what is left of it, and return its directory; a run that is there already is not repeated.

    Equal configurations give equal tables, bit for bit, on the same machine with the same number of threads, however often
    the run was killed and taken up again. torch's global random stream and number of threads are as before afterwards.

    Args:
        config: what to run.
        root: directory of runs.
        progress: called after every step.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" …; not part of the run's identity.
        threads: of torch; None leaves them as they are. A run that is taken up again keeps those that it began with.
        data_directory, download: as in `fdfa_core.data.load`.
        checkpoint_seconds: time between two checkpoints, longer where a checkpoint takes more than a twentieth of it; 0
            writes one after every step.
        wait: wait for a run that another process holds; otherwise return None at once.

    Raises:
        FdfaError: an impossible configuration, missing data, or a directory that cannot be used.
    """
    root = open_root(root)
    with claim(root, config.id, wait) as ours:
        if not ours:
            return None
        if is_complete(root, config.id):
            return _existing(root, config)
        partial = PartialRun(root, config)
        if partial.is_written:  # killed between its last file and its new name
            return partial.publish()
        with _one_at_a_time, _restored_globals():
            if threads is not None:
                torch.set_num_threads(threads)
            dataset = _dataset(config.data.name, data_directory, download)
            return _run(config, partial, _device(device), dataset, progress, checkpoint_seconds)


def check(
    config: RunConfig,
    locate: Callable[[str], str] = str,
    *,
    data_directory: str | Path | None = None,
    download: bool = True,
) -> None:
    """Build what a run would build, so that an impossible run is refused before any starts.

    Raises:
        FdfaError: an unknown name or option, an impossible value, missing data; `locate` turns a key into the place named.
    """
    require_known(locate("data.name"), config.data.name, available_datasets())
    require_known(locate("training.loss"), config.training.loss, LOSSES)
    require_known(locate("network.architecture"), config.network.architecture, ARCHITECTURES)
    known = {
        name: parameter.default
        for name, parameter in signature(ARCHITECTURES[config.network.architecture]).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY and name != "seed"
    }
    _check_names(config.network.options, known, locate, "network")
    _check_types(config.network.options, known, locate, "network")
    _check_estimator(config.estimator, locate, "estimator")
    for i, estimator in enumerate(config.probe.estimators if config.probe else []):
        if estimator.name != SELF:
            _check_estimator(estimator, locate, f"probe.estimators[{i}]")
    with located(locate, "data.name"):
        dataset = _dataset(config.data.name, data_directory, download)
    with _one_at_a_time, _restored_globals():
        Session(config, dataset, torch.device("cpu"), locate)


class Session:
    """A run in memory, as of one step: network, estimator, optimiser, instruments, tables. A checkpoint is its state.

    Args:
        config: of the run.
        dataset: what is learnt.
        device: where.
        locate: turns a key of the configuration into what errors call it.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device, locate: Callable[[str], str] = str):
        self.config, self.device = config, device
        training = config.training
        with located(locate, "data", config.data, n="train_size"):
            train, test = materials.splits(config, dataset)
        with located(locate, "training", training):
            self.steps_per_epoch = len(list(train.epoch(training.batch_size, drop_last=training.drop_last)))
        self.total = training.steps or training.epochs * self.steps_per_epoch
        with located(locate, "network", config.network):
            self.net = materials.network(config, train, dataset)
        self.net.to(device).train()
        self._flatten = materials.takes_vectors(self.net)
        _check_last_batch(self.net, len(train), training.batch_size, training.drop_last, locate)
        self.train, self.test = _on(device, train), _on(device, test)
        self.reference = _on(device, materials.reference(train, config.evaluation.reference_size))

        with located(locate, "estimator", config.estimator):
            seed = derive(config.seed, "estimator")
            estimator, options = config.estimator.name, config.estimator.options
            self.estimator = make_estimator(estimator, self.net, loss=training.loss, seed=seed, **options)
        self.loss = make_loss(training.loss)
        self.optimizer = _optimizer(self.net, config)
        self.evaluation_due = schedules.build(config.evaluation.schedule, self.steps_per_epoch, last=self.total)
        self.instruments = self._instruments(train, locate) if config.probe else None

        self.step = 0
        self.diverged_step: int | None = None
        self.metrics, self.timing = Rows(), Rows()
        self.final: dict[str, Any] = {}  # the last row of metrics
        self._losses: list[float] = []  # since the last row of metrics
        self._seconds: Counter[str] = Counter()
        self._order_of = -1  # the epoch whose batches self._order holds

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.total or self.diverged_step is not None

    def advance(self) -> dict[str, Tensor] | None:
        """Take one step; returns the raw gradients of a probe that stores them.

        A loss that is not finite ends the run at this step, before the weights move.
        """
        x, y = self._batch()
        raw = None
        if self.instruments:
            with self._timed("instrument"):
                raw = self.instruments.observe(self.step, self.epoch, x, y)
                self.instruments.follow(x, y)
        with self._timed("training"):
            loss = self.estimator.backward(x, y).item()
            if not math.isfinite(loss):
                self.diverged_step = self.step
                return raw
            if self.optimizer:
                self.optimizer.param_groups[0]["lr"] = self.learning_rate
                self.optimizer.step()
        self._losses.append(loss)
        self.step += 1
        return raw

    def evaluate_if_due(self) -> None:
        """Add a row of metrics before the first step, when the schedule says so, and after the last step."""
        if not (self.step in (0, self.total) or self.evaluation_due(self.step)):
            return
        with self._timed("evaluation"):
            train_loss, train_accuracy = self._evaluate(self.reference)
            test_loss, test_accuracy = self._evaluate(self.test)
        if not (math.isfinite(train_loss) and math.isfinite(test_loss)):
            self.diverged_step = self.step
            return
        self.final = {
            "step": self.step,
            "epoch": self.epoch,
            "batch_loss": math.fsum(self._losses) / len(self._losses) if self._losses else math.nan,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "learning_rate": self.learning_rate,
        }
        self.metrics.add([self.final])
        self._losses = []
        kinds = ("training", "instrument", "evaluation")
        self.timing.add([{"step": self.step} | {f"{kind}_seconds": float(self._seconds[kind]) for kind in kinds}])

    @property
    def epoch(self) -> float:
        """Passes through the training set so far."""
        return self.step / self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """Of the coming step: constant within an epoch."""
        return self.config.training.learning_rate * self.config.training.decay ** (self.step // self.steps_per_epoch)

    def summary(self) -> dict[str, Any]:
        """Return the outcome, as `summary.json` holds it: JSON has no NaN, which the first row of metrics has for a loss."""
        final = {name: value if math.isfinite(value) else None for name, value in self.final.items()}
        return {
            "status": "finished" if self.diverged_step is None else "diverged",
            "diverged_step": self.diverged_step,
            "steps": self.step,
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "final": final,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that the coming steps depend on, and the tables so far."""
        return {
            "step": self.step,
            "metrics": self.metrics.state_dict(),
            "timing": self.timing.state_dict(),
            "final": self.final,
            "losses": self._losses,
            "seconds": dict(self._seconds),
            "network": self.net.state_dict(),
            "estimator": self.estimator.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "instruments": self.instruments.state_dict() if self.instruments else None,
            "global_stream": torch.get_rng_state(),
            "cuda_stream": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the coming steps then give the same bits."""
        self.step, self._losses, self._seconds = state["step"], list(state["losses"]), Counter(state["seconds"])
        self.final = dict(state["final"])
        self.metrics.load_state_dict(state["metrics"])
        self.timing.load_state_dict(state["timing"])
        self.net.load_state_dict(state["network"])
        self.estimator.load_state_dict(state["estimator"])
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.instruments:
            self.instruments.load_state_dict(state["instruments"])
        torch.set_rng_state(state["global_stream"])
        if state["cuda_stream"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_stream"], self.device)
        torch.set_num_threads(state["threads"])

    def _batch(self) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if epoch != self._order_of:  # a function of seed and epoch alone: a resumed run has nothing to replay
            training, order = self.config.training, stream(self.config.seed, "order", epoch)
            self._order = list(self.train.epoch(training.batch_size, order, training.drop_last))
            self._order_of = epoch
        augmentation = stream(self.config.seed, "augmentation", self.step) if self.config.data.augment else None
        indices = self._order[position].to(self.device)
        return self.train.batch(indices, flatten=self._flatten, generator=augmentation)

    @torch.no_grad()
    def _evaluate(self, split: Split) -> tuple[float, float]:
        """Mean loss and accuracy over a split, in evaluation mode."""
        self.net.eval()
        loss = correct = 0.0
        for indices in split.epoch(min(self.config.evaluation.batch_size, len(split))):
            x, y = split.batch(indices.to(self.device), flatten=self._flatten)
            outputs = self.net(x)
            loss += self.loss(outputs, y).item() * len(y)
            correct += (outputs.argmax(1) == y).sum().item()
        self.net.train()
        return loss / len(split), correct / len(split)

    def _instruments(self, train: Split, locate: Callable[[str], str]) -> Instruments:
        probe = self.config.probe
        due = schedules.build(probe.schedule, self.steps_per_epoch, last=self.total - 1)
        if not any(map(due, range(self.total))):
            accepted = f"a schedule with a step below {self.total}, the length of the run"
            raise InvalidInput(locate("probe.schedule"), probe.schedule.model_dump(), accepted)
        reference, batch_size = materials.reference(train, probe.reference_size), self.config.training.batch_size
        if len(reference) < 2 * batch_size:
            accepted = f"at least {2 * batch_size}, two batches, and as many training samples"
            raise InvalidInput(locate("probe.reference_size"), probe.reference_size, accepted)
        x, y = (part.to(self.device) for part in reference.all(flatten=self._flatten))
        return Instruments(self.net, self.estimator, self.config, due, (x, y), locate)

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - start


def _run(
    config: RunConfig,
    partial: PartialRun,
    device: torch.device,
    dataset: Dataset,
    progress: Progress | None,
    checkpoint_seconds: float,
) -> Path:
    torch.manual_seed(derive(config.seed, "global"))
    session = Session(config, dataset, device)
    origin = provenance.describe(device, config.seed, dataset)
    checkpoint = partial.read_checkpoint()
    if checkpoint and checkpoint.get("format") == _CHECKPOINT:
        session.load_state_dict(checkpoint["session"])
        resumed = {"step": session.step, "time": origin["started"], "code": origin["code"]}
        origin = checkpoint["origin"] | {"resumed": [*checkpoint["origin"].get("resumed", []), resumed]}
    else:
        session.evaluate_if_due()

    due = time.monotonic() + checkpoint_seconds
    while not session.done:
        step, raw = session.step, session.advance()
        if raw is not None:
            partial.write_gradients(step, raw)
        if session.diverged_step is None:
            session.evaluate_if_due()
        if progress:
            progress(session.step, session.total)
        if not session.done and (start := time.monotonic()) >= due:
            partial.write_checkpoint({"format": _CHECKPOINT, "session": session.state_dict(), "origin": origin})
            now = time.monotonic()
            due = now + (max(checkpoint_seconds, 20 * (now - start)) if checkpoint_seconds else 0)

    partial.write_table("metrics", session.metrics)
    partial.write_table("timing", session.timing)
    if session.instruments:
        partial.write_table("probes", session.instruments.rows)
        if session.instruments.feedback:
            partial.write_table("feedback", session.instruments.feedback.rows)
    partial.write_json("provenance.json", origin | {"finished": provenance.now()})
    partial.write_json("summary.json", session.summary())
    return partial.publish()


@functools.lru_cache(maxsize=2)
def _dataset(name: str, directory: str | Path | None, download: bool) -> Dataset:
    """Load a data set once a process."""
    return data.load(name, directory, download)


def _on(device: torch.device, split: Split) -> Split:
    return replace(split, images=split.images.to(device), labels=split.labels.to(device))


def _optimizer(net: nn.Module, config: RunConfig) -> torch.optim.Optimizer | None:
    training = config.training
    shared = {"lr": training.learning_rate, "weight_decay": training.weight_decay, "fused": True}
    match training.optimizer:
        case "adam":
            return torch.optim.Adam(net.parameters(), **shared)
        case "sgd":
            return torch.optim.SGD(net.parameters(), momentum=training.momentum, **shared)
        case "none":
            return None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = ["cpu"] + ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] * torch.cuda.is_available()
    require_known("device", name, ["auto", *known])
    return torch.device(name)


def _existing(root: Path, config: RunConfig) -> Path:
    if read_config(root / config.id) != config:
        raise RunError(f"{root / config.id}: holds another run's configuration; move it away to let this run take its place")
    return root / config.id


@contextmanager
def _restored_globals() -> Iterator[None]:
    """Give the process its random stream and its number of threads back."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def _check_estimator(estimator: EstimatorConfig, locate: Callable[[str], str], key: str) -> None:
    require_known(locate(f"{key}.name"), estimator.name, available_estimators())
    _check_names(estimator.options, estimator_options(estimator.name), locate, key)


def _check_names(given: Mapping[str, Any], known: Mapping[str, Any], locate: Callable[[str], str], key: str) -> None:
    """Check that options exist and that none is missing; their owner checks the values."""
    for name in given:
        require_known(f"{locate(f'{key}.{name}')} (unknown option)", name, known)
    for name, default in known.items():
        if default is Parameter.empty and name not in given:
            raise InvalidInput(locate(f"{key}.{name}"), "nothing", f"a value for {name}; it has no default")


def _check_types(given: Mapping[str, Any], known: Mapping[str, Any], locate: Callable[[str], str], key: str) -> None:
    """Check types as far as a default value shows them, for the builders of networks, which take what is true for True."""
    for name, value in given.items():
        default = known[name]
        fits = isinstance(value, type(default)) and (isinstance(value, bool) == isinstance(default, bool))
        if isinstance(default, bool | int | str) and not fits:
            raise InvalidInput(locate(f"{key}.{name}"), value, f"a {type(default).__name__}, such as {default!r}")


def _check_last_batch(net: nn.Module, samples: int, batch_size: int, drop_last: bool, locate: Callable[[str], str]) -> None:
    kind = nn.BatchNorm1d if batch_size == 1 else nn.modules.batchnorm._BatchNorm  # an image's pixels are several values
    normalises = any(isinstance(module, kind) for module in net.modules())
    if normalises and (batch_size == 1 or not drop_last and samples % batch_size == 1):
        accepted = "two or more that leave no last batch of one sample, or drop_last = true: batch normalisation needs two"
        raise InvalidInput(locate("training.batch_size"), batch_size, accepted)
