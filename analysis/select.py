"""Rows and columns of the frames of logs, as statistics ask for them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from analysis.logs import RUN_COLUMNS, Logs
from fdfa_core.errors import InvalidInput
from fdfa_core.runs.schema import LATER_COLUMNS, PROBE_COLUMNS

_MEASURED = frozenset(PROBE_COLUMNS + LATER_COLUMNS) - {"size", "valid"}


def settings(log: Logs) -> pd.DataFrame:
    """Return what else tells runs apart that are equal in `RUN_COLUMNS`: one row per run, one column per configuration key.

    An experiment may vary anything ("network.activation", "data.train_size"); such runs are no replicates of one another. The
    columns are named as in the experiment's grid; lists are JSON, and "" stands where a key is not set. Which estimators were
    probed is left out: the column `estimator` of the probes has it.
    """
    frame = pd.DataFrame([_flat(json.loads(text)) for text in log.runs["config"]], index=pd.Index(log.runs["run"], name="run"))
    equal = [log.runs[c].to_numpy() for c in RUN_COLUMNS if c not in ("run", "status")]
    differing = (frame.fillna("").groupby(equal, sort=False, dropna=False).nunique() > 1).any()
    return frame[[key for key in frame if differing[key] and key != "probe.estimators"]].fillna("")


def measured(probes: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the rows whose `columns` are finite: a diverging run's last probes are not.

    Raises:
        InvalidInput: the frame lacks a column.
    """
    if missing := [c for c in columns if c not in probes]:
        raise InvalidInput("probes", missing, "a frame with the columns of probes.parquet", "These are missing.")
    return probes[np.isfinite(probes[list(columns)].to_numpy(float)).all(axis=1)]


def hidden_blocks(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of whole hidden blocks; the readout is exact for most methods and would hide what they do."""
    return probes[(probes["level"] == "block") & (probes["role"] == "hidden")]


def last_step(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of every run's last probe."""
    return probes[probes["step"] == probes.groupby("run")["step"].transform("max")]


def keys(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes without what was measured: run, step, estimator, parameter group, size, `valid`."""
    return probes[[c for c in probes.columns if c not in _MEASURED]]


def _flat(table: dict[str, object], above: str = "") -> dict[str, object]:
    """Return nested tables as one of dotted keys."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[above + key] = json.dumps(value) if isinstance(value, list) else value
    return flat
