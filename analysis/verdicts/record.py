"""What a record says of the protocol's hypotheses: their verdicts, and apart from them what other recorded runs show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.logs import Logs
from analysis.verdicts import evidence, judgement, plan, protocol
from analysis.verdicts.protocol import Setting
from fdfa_core.experiments.loading import Experiment

ROLES = evidence.ROLES
NO_RUN = "no run is recorded"
NO_RATE = "the rate of the FDFA on trial follows from training runs, of which none counts yet"
NOT_ON_TRIAL = "the recorded probes do not measure the FDFA on trial"


@dataclass(frozen=True)
class Record:
    """Verdicts, and the numbers behind them.

    Attributes:
        table: one row per planned hypothesis (`analysis.verdicts.judgement.COLUMNS`).
        values: one row per hypothesis and seed that count (`analysis.verdicts.evidence.COLUMNS`).
        earlier: the same of recorded runs that do not count, since they have not the length, the methods or the seeds that
            the protocol asks for. They are shown and never judged.
        settings: one row per setting that the profile's files or the protocol name: `setting`, `dataset` and `network` (empty
            where no file tells), `role`, `epochs` of the protocol, or else of the file (0 where that is a number of steps),
            `file_epochs` of the file, and `reason`, why recorded runs do not count, or that there are none (empty where they
            count).
    """

    table: pd.DataFrame
    values: pd.DataFrame
    earlier: pd.DataFrame
    settings: pd.DataFrame


def record(logs_of: Mapping[str, Logs], planned: Sequence[Experiment]) -> Record:
    """Judge the logs of a profile by its plan.

    Args:
        logs_of: logs by role, "width", "trajectory" and "convergence", each pooled over its experiments; a role may be missing.
        planned: all experiments of the profile, whether they have runs or not.

    Raises:
        InvalidInput: the logs hold what the plan does not, or two runs answer one hypothesis with one seed.
    """
    asked = plan.settings_of(planned)
    hypotheses, departures = plan.hypotheses(planned, asked), plan.departures(planned, asked)
    names = {name for log in logs_of.values() for name in log.runs["experiment"].unique()}
    earlier = evidence.values({role: plan.without(log, names - departures.keys()) for role, log in logs_of.items()})
    counted = {role: plan.without(log, departures) for role, log in logs_of.items()}
    values, lost = evidence.values(counted), evidence.diverged(counted)
    table = judgement.verdicts(values, hypotheses, plan.datasets(planned), lost)
    training = {e.name for e in planned if e.role == "convergence"} & names - departures.keys()
    reasons = dict.fromkeys(names, NOT_ON_TRIAL if training else NO_RATE)
    on_trial = table["question"].str.startswith("Q") & (table["variant"] == protocol.ON_TRIAL)
    reasons |= dict.fromkeys(table.loc[(table["seeds"] > 0) & on_trial, "setting"], "")
    reasons |= {name: reason for name, reason in departures.items() if name in names}
    return Record(table, values, earlier, _settings(planned, asked, reasons))


def _settings(planned: Sequence[Experiment], asked: Sequence[Setting], reasons: Mapping[str, str]) -> pd.DataFrame:
    files = {experiment.name: experiment for experiment in planned if experiment.role in ROLES}
    lengths = {setting.experiment: setting.epochs for setting in asked}
    rows = []
    for name in dict.fromkeys([*files, *lengths]):
        first = files[name].runs()[0] if name in files else None
        epochs = (first.training.epochs or 0) if first else 0
        rows.append(
            {
                "setting": name,
                "dataset": first.data.name if first else "",
                "network": first.network.architecture if first else "",
                "role": files[name].role if first else "convergence",
                "epochs": lengths.get(name, epochs),
                "file_epochs": epochs,
                "reason": reasons.get(name, NO_RUN),
            }
        )
    return pd.DataFrame(rows, columns=["setting", "dataset", "network", "role", "epochs", "file_epochs", "reason"])
