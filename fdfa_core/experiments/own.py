"""The configuration of a monitored run: one whose loop, network and data this project did not write.

It says who measured what on which network, and so identifies the run. What the user's loop does (optimiser, schedule, batches)
it does not know: the user tells loops apart by `name`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from fdfa_core.experiments.tables import EstimatorConfig, NetworkConfig, ProbeConfig, RunConfig, Table


class OwnData(Table):
    """What the user calls the data."""

    name: str = "own"


class OwnTraining(Table):
    """A loop of the user's. What is not known of it is None where readers of a `RunConfig` ask for it."""

    loop: Literal["own"] = "own"
    loss: str = "cross_entropy"

    batch_size: ClassVar[None] = None
    learning_rate: ClassVar[None] = None
    epochs: ClassVar[None] = None
    steps: ClassVar[None] = None


class OwnRun(RunConfig):
    """One monitored run: two with equal configurations count as the same run.

    `network` has the architecture "own", with the options `parameters` (name → shape) and `layers` (the network as text), and
    `estimator` the name that the user gave the loop.
    """

    own_loop: ClassVar[bool] = True

    data: OwnData = OwnData()
    network: NetworkConfig
    estimator: EstimatorConfig
    training: OwnTraining = OwnTraining()
    evaluation: None = None
    probe: ProbeConfig


def configuration(table: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a `config.json` holds: of a run from an experiment file, or of a monitored one.

    Raises:
        ValidationError: it is neither (pydantic's error, a `ValueError`).

    Examples:
        >>> from fdfa_core.experiments.own import configuration
        >>> probe = {"schedule": {"kind": "every", "k": 10}, "estimators": [{"name": "fg-a"}]}
        >>> network, loop = {"architecture": "own"}, {"loop": "own"}
        >>> run = {"network": network, "estimator": {"name": "mine"}, "training": loop, "probe": probe}
        >>> configuration(run).own_loop, configuration(run).probe.replicates
        (True, 32)
    """
    training = table.get("training") if isinstance(table, Mapping) else None
    own = isinstance(training, Mapping) and "loop" in training
    return (OwnRun if own else RunConfig).model_validate(table)
