"""Instruments: they watch a training run and never touch it.

A *shadow* is an estimator that follows the weight trajectory of someone else's training: its own state moves with every
batch, the weights do not know of it. A *probe* measures estimators at a step against the true gradient. All randomness of
the instruments is their own, so that the weights after a run are bit for bit those of the same run without instruments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import Estimator, label, make_estimator
from fdfa_core.estimators.forward_feedback import OutputResponses, Responses
from fdfa_core.experiments.schedules import Schedule
from fdfa_core.experiments.tables import EstimatorConfig, ProbeConfig, located
from fdfa_core.measuring.probe import probe
from fdfa_core.measuring.reference import Reference
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.random_state import preserve_random_stream
from fdfa_core.runs.partial import Rows
from fdfa_core.seeds import derive, stream
from fdfa_core.training.feedback_watch import FeedbackWatch

SELF = "self"


class Instruments:
    """The shadows and probes of one run.

    Whoever trains calls `observe` and `follow` before every step: `fdfa_core.training.session` in the runs of experiment files,
    and `fdfa_core.training.monitor` in a loop of the user's.

    Args:
        net: the network in training.
        config: the `probe` table: what is measured, and how.
        schedule: when to probe.
        reference: samples (x, y) of the fixed reference set.
        seed: of the run.
        loss: as in `make_estimator`.
        batch_size: of training; None for that of the first batch.
        trained_by: the estimator that trains the network, probed as "self"; None where something else does.
        trained_with: its given options.
        frozen: the weights never move.
        locate: turns a key of the configuration into what errors call it.

    Attributes:
        rows: rows of `probes.parquet` so far.
        feedback: keeps the rows of `feedback.parquet`, where the run asks for them.
    """

    def __init__(
        self,
        net: BlockNetwork,
        config: ProbeConfig,
        schedule: Schedule,
        reference: tuple[Tensor, Tensor],
        *,
        seed: int,
        loss="cross_entropy",
        batch_size: int | None = None,
        trained_by: Estimator | None = None,
        trained_with: Mapping[str, Any] | None = None,
        frozen: bool = False,
        locate: Callable[[str], str] = str,
    ):
        self.net, self.trained_by, self.config, self.schedule = net, trained_by, config, schedule
        self.seed, self.loss, self.batch_size = seed, loss, batch_size
        self.reference = reference
        self.probed: dict[str, Estimator] = {}
        self.options: dict[str, dict[str, Any]] = {}
        for i, shadow in enumerate(self.config.estimators):
            name = label(shadow.name, shadow.options)
            with located(locate, f"probe.estimators[{i}]", shadow):
                if shadow.name == SELF and trained_by is None:
                    raise InvalidInput("name", SELF, "an estimator by name: none of this project trains the network")
                self.probed[name] = trained_by if shadow.name == SELF else self._shadow(shadow, name)
            self.options[name] = dict(trained_with or {}) if shadow.name == SELF else shadow.options
        self.shadows = {name: estimator for name, estimator in self.probed.items() if name != SELF}
        self.rows = Rows()
        self.feedback: FeedbackWatch | None = None
        if self.config.feedback:
            with located(locate, "probe.feedback"):
                self.feedback = FeedbackWatch(net, self.shadows, self.options, reference, self.loss, frozen)

    def due(self, step: int) -> bool:
        """Return whether there is anything to do before a step: a probe, or a state that follows every batch."""
        return bool(self.feedback) or self.schedule(step) or any(shadow.stateful for shadow in self.shadows.values())

    def observe(self, step: int, epoch: float, x: Tensor, y: Tensor) -> dict[str, Tensor] | None:
        """Probe if this step is due: the network as it is, before the step's update, on the step's batch.

        Returns:
            The raw gradients, named as in ``gradients/step=<step>.safetensors``, if the run asks for them.
        """
        if not self.schedule(step):
            return None
        config = self.config
        raw: dict[str, Tensor] | None = {} if config.raw_gradients else None
        self.batch_size = self.batch_size or len(x)
        with self._stream_of_its_own(step, x):
            rows = probe(
                self.net,
                x,
                y,
                self.probed,
                Reference.compute(self.net, *self.reference, self.batch_size, self.loss),
                replicates=config.replicates,
                sampling=config.sampling,
                generator=stream(self.seed, "probe", step),
                loss=self.loss,
                options=self.options,
                raw=raw,
            )
        self.rows.add([{"step": step, "epoch": epoch, **row} for row in rows])
        if self.feedback:
            self.feedback.observe(step, epoch)
        return raw

    def follow(self, x: Tensor, y: Tensor) -> None:
        """Let every shadow's state move on, at the weights as they are before this step's update."""
        if self.feedback:
            self.feedback.follow(x)
        common: dict[tuple, CommonResponses] = {}
        for shadow in self.shadows.values():
            with self._common_numbers(shadow, common):
                shadow.advance(x, y)

    def tables(self) -> dict[str, Rows]:
        """Return the tables that the instruments fill, by name."""
        return {"probes": self.rows} | ({"feedback": self.feedback.rows} if self.feedback else {})

    def state_dict(self) -> dict[str, Any]:
        """Return rows and shadows' states."""
        return {
            "rows": self.rows.state_dict(),
            "shadows": {name: shadow.state_dict() for name, shadow in self.shadows.items()},
            "feedback": self.feedback.state_dict() if self.feedback else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rows.load_state_dict(state["rows"])
        for name, shadow in self.shadows.items():
            shadow.load_state_dict(state["shadows"][name])
        if self.feedback:
            self.feedback.load_state_dict(state["feedback"])

    @contextmanager
    def _stream_of_its_own(self, step: int, x: Tensor) -> Iterator[None]:
        """Let the estimator that trains draw from a stream of this probe's alone.

        Draws that began where training's stream stands would recur one step later.
        """
        if self.trained_by is None:
            yield
            return
        with torch.no_grad(), preserve_random_stream(x.device):
            self.trained_by.trace(x)  # feedback that is drawn at the first batch comes from training's stream all the same
        own_stream = self.trained_by.generator.get_state()
        self.trained_by.generator.manual_seed(derive(self.seed, SELF, step))
        try:
            yield
        finally:
            self.trained_by.generator.set_state(own_stream)

    @contextmanager
    def _common_numbers(self, shadow: Estimator, common: dict[tuple, CommonResponses]) -> Iterator[None]:
        """Let a shadow that moves on take the responses of those before it that perturb alike, if the run asks for it."""
        own = getattr(shadow, "responses", None)
        if not self.config.common_random_numbers or type(own) is not OutputResponses:
            yield
            return
        shadow.responses = common.setdefault((type(own.law), *_kind(own)), CommonResponses(own, self.seed))
        try:
            yield
        finally:
            shadow.responses = own  # a probe's draws come from the shadow's own stream

    def _shadow(self, config: EstimatorConfig, name: str) -> Estimator:
        return make_estimator(
            config.name,
            self.net,
            loss=self.loss,
            seed=derive(self.seed, "shadow", name),
            replicas=self.config.replicates,
            **config.options,
        )


class CommonResponses(OutputResponses):
    """The output responses of one step for all that perturb alike: common random numbers, drawn and followed once.

    Differences between shadows then come from what they differ in, and not from their perturbations. The numbers of a step
    follow from the run's seed, the step and the kind of perturbation alone, so that another shadow changes none of them and
    there is no state to keep.

    Args:
        own: the responses of one of them.
        seed: of the run.
    """

    def __init__(self, own: OutputResponses, seed: int):
        super().__init__(own.law, own.joint, own.tangents, own.directions)
        self._seed = seed
        self._measured: dict[tuple, Responses] = {}

    def measure(self, trace, site, step, replicas, generator):
        """Return the responses that another has measured at this step and site, or measure them."""
        asked = (site, step, replicas)
        if asked not in self._measured:
            common = stream(self._seed, "common random numbers", *_kind(self), site, step, device=generator.device)
            self._measured[asked] = super().measure(trace, site, step, replicas, common)
        return self._measured[asked]


def _kind(responses: OutputResponses) -> tuple[str | int | bool, ...]:
    """Return the options that tell kinds of perturbation apart."""
    return responses.law.name, responses.joint, responses.tangents, responses.directions
