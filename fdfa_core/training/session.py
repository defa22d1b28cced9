"""A run in memory: network, estimator, optimiser, instruments and tables as of one step.

Order within a step: probe the network as it is on the step's batch; let the shadows follow; estimate the gradient (which
advances the training estimator's own state); move the weights.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fdfa_core.data import Dataset, Split
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import make_estimator
from fdfa_core.experiments import schedules
from fdfa_core.experiments.tables import RunConfig, located
from fdfa_core.losses import make_loss
from fdfa_core.runs.partial import Rows
from fdfa_core.seeds import derive, stream
from fdfa_core.training import build
from fdfa_core.training.instruments import Instruments
from fdfa_core.training.size import require_memory


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
            train, test = build.splits(config, dataset)
        with located(locate, "training", training):
            self.steps_per_epoch = len(list(train.epoch(training.batch_size, drop_last=training.drop_last)))
        self.total = training.steps or training.epochs * self.steps_per_epoch
        require_memory(config, dataset, (train, test), device, locate)
        with located(locate, "network", config.network):
            self.net = build.network(config, train, dataset)
        self.net.to(device).train()
        self._flatten = build.takes_vectors(self.net)
        _check_last_batch(self.net, len(train), training.batch_size, training.drop_last, locate)
        self.train, self.test = _on(device, train), _on(device, test)
        self.reference = _on(device, build.reference(train, config.evaluation.reference_size))

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
        training, epoch = self.config.training, self.step // self.steps_per_epoch
        rate = training.learning_rate * training.decay**epoch
        passed = sum(epoch >= milestone for milestone in training.milestones or ())
        return rate * training.gamma**passed if passed else rate

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
        if schedules.first(probe.schedule, last=self.total - 1) >= self.total:
            accepted = f"a schedule with a step below {self.total}, the length of the run"
            raise InvalidInput(locate("probe.schedule"), probe.schedule.model_dump(), accepted)
        reference, batch_size = build.reference(train, probe.reference_size), self.config.training.batch_size
        if len(reference) < 2 * batch_size:
            accepted = f"at least {2 * batch_size}, two batches, and as many training samples"
            raise InvalidInput(locate("probe.reference_size"), probe.reference_size, accepted)
        x, y = (part.to(self.device) for part in reference.all(flatten=self._flatten))
        return Instruments(
            self.net,
            probe,
            due,
            (x, y),
            seed=self.config.seed,
            loss=self.config.training.loss,
            batch_size=batch_size,
            trained_by=self.estimator,
            trained_with=self.config.estimator.options,
            frozen=self.config.training.optimizer == "none",
            locate=locate,
        )

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - start


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


def _check_last_batch(net: nn.Module, samples: int, batch_size: int, drop_last: bool, locate: Callable[[str], str]) -> None:
    kind = nn.BatchNorm1d if batch_size == 1 else nn.modules.batchnorm._BatchNorm  # an image's pixels are several values
    normalises = any(isinstance(module, kind) for module in net.modules())
    if normalises and (batch_size == 1 or not drop_last and samples % batch_size == 1):
        accepted = "two or more that leave no last batch of one sample, or drop_last = true: batch normalisation needs two"
        raise InvalidInput(locate("training.batch_size"), batch_size, accepted)
