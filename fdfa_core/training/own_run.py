"""What identifies a monitored run: its configuration from the arguments of a `Monitor`, and what is known of its data."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from fdfa_core.data.own import tensors_sha256
from fdfa_core.errors import InvalidInput
from fdfa_core.experiments import schedules
from fdfa_core.experiments.loading import validated
from fdfa_core.experiments.own import OwnRun
from fdfa_core.experiments.tables import require_known
from fdfa_core.losses import LOSSES
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.training.instruments import SELF

_ENDLESS = -1  # the last step of a loop whose length is not known: a step that never comes


class Call:
    """Says of a key of the configuration which argument it comes from."""

    _ARGUMENTS = {"probe.schedule.k": "every", "probe.schedule": "every", "estimator.name": "name", "data.name": "data"}

    @classmethod
    def locate(cls, key: str) -> str:
        """Return the argument, e.g. "Monitor: estimators[0].site"."""
        for known, argument in cls._ARGUMENTS.items():
            if key == known or key.startswith(f"{known}."):
                return f"Monitor: {argument}{key.removeprefix(known)}"
        return f"Monitor: {key.removeprefix('probe.')}"


def own_run(net: BlockNetwork, probe: dict[str, Any], loss, name: str, seed: int, data: str) -> OwnRun:
    """Return the configuration of a monitored run, or raise an error that names the argument of `Monitor`."""
    if isinstance(loss, str):
        require_known("loss", loss, LOSSES)
    if name == SELF or not isinstance(name, str) or not name.strip():
        raise InvalidInput("name", name, f"a text that names the loop, and not {SELF!r}")
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(net))  # an address is another one in every process
    table = {
        "seed": seed,
        "data": {"name": data},
        "network": {
            "architecture": "own",
            "parameters": {key: list(p.shape) for key, p in net.named_parameters()},
            "layers": layers,
        },
        "estimator": {"name": name},
        "training": {"loop": "own", "loss": loss if isinstance(loss, str) else _called(loss)},
        "probe": probe,
    }
    return validated(table, Call, OwnRun)


def _called(loss: Callable) -> str:
    """Name a loss of the user's: its module and name, or those of its class."""
    owner = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{owner.__module__}:{owner.__qualname__}"


def schedule_of(config: OwnRun, steps_per_epoch: int | None) -> schedules.Schedule:
    """Return when to measure; raises `InvalidInput` for a schedule that needs to know how long the loop runs."""
    table = config.probe.schedule
    if table.kind == "first_and_last" or table.last:
        raise InvalidInput("every", table.model_dump(), "a schedule without the last step: how long the loop runs is not known")
    if table.kind == "epochs" and steps_per_epoch is None:
        raise InvalidInput("steps_per_epoch", None, "a positive integer, which a schedule by epochs needs")
    return schedules.build(table, steps_per_epoch or 1, _ENDLESS)


def describe_data(name: str, reference: tuple[Tensor, Tensor]) -> SimpleNamespace:
    """Return what provenance says of the user's data; all that is known of them is the reference set."""
    note = "data of the user's; the SHA-256 is that of the reference set"
    return SimpleNamespace(name=name, sha256=tensors_sha256(*reference), notes=(note,))
