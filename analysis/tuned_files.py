"""Experiment files that follow from tuning: an extended grid, the finals of a grid, and an experiment with chosen settings."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import tuning
from analysis.verdicts.protocol import TUNING
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.labels import label
from fdfa_core.experiments import writing
from fdfa_core.experiments.loading import Experiment

RATE = "training.learning_rate"
OPEN = "open"  # the key of an experiment file whose settings are not chosen yet
_MARKED = re.compile(r"^(\s*)(\{.*\})(\s*,?\s*# tuned\s*)$")  # an estimator in a list, whose second setting is the chosen one


def grid_of(experiment: Experiment) -> str:
    """Return which of the protocol's grids an experiment of trials is.

    Raises:
        InvalidInput: it is none of them.
    """
    name = experiment.name.removesuffix("_trials")
    if experiment.role != "trials" or name not in TUNING.grids:
        known = ", ".join(f"{grid}_trials" for grid in TUNING.grids)
        raise InvalidInput("experiment", experiment.path.as_posix(), f'a grid of round 1 (role = "trials"): {known}')
    return name


def finals(experiment: Experiment, rows: pd.DataFrame, command: str) -> str:
    """Return the experiment file of round 2: the best pairs of every method, the seeds and the length of that round.

    Args:
        experiment: the grid of round 1.
        rows: its trials (`tuning.trials`).
        command: what writes the file, said in its head.

    Raises:
        InvalidInput: trials are missing, a grid must be extended first, or no trial of a method ended well.
    """
    name, where = grid_of(experiment), experiment.path.as_posix()
    progress = tuning.progress(rows)
    short = progress[~progress["complete"]]
    if len(short):
        counts = ", ".join(f"{tuning.said(row, rows)} {row.done} of {row.planned}" for row in short.itertuples())
        raise InvalidInput(where, counts, "a grid whose trials are all there", f"Make them with: fdfa sweep {where}")
    at_edge = tuning.edges(rows).dropna(subset=["next"])
    if len(at_edge):
        shown = ", ".join(f"{tuning.said(row, rows)} {row.setting} {row.best:g}" for row in at_edge.itertuples())
        raise InvalidInput(where, shown, "best trials inside their grids", f"Extend them with: fdfa tuned {where} --extend")
    best = tuning.finalists(rows)
    lost = [tuning.said(row, rows) for row in progress.itertuples() if not tuning.same_method(best, row).any()]
    if lost:
        raise InvalidInput(where, ", ".join(lost), "a trial of every method that did not diverge", "Smaller rates may help.")
    tables = _read(experiment)
    epochs = min(TUNING.final.epochs, TUNING.grids[name])
    texts = {
        "description": tables["description"].replace("Round 1", "Round 2").replace("every method's trials", "the best trials"),
        "role": "finals",
    }
    kept = {key: tables[key] for key in ("data", "network", "training", "evaluation") if key in tables}
    kept["training"] = {key: of for key, of in kept["training"].items() if key != "steps"} | {"epochs": epochs}
    several = rows["hidden"].nunique() > 1
    cases = [_case(row, several) for row in best.itertuples()]
    grid = {"seed": list(TUNING.final.seeds)}
    comment = (
        f"Written by: {command}\n"
        f"The {TUNING.finalists} best pairs of every method in that grid, by validation accuracy (docs/protocol.md)."
    )
    return writing.document({**texts, **kept, "cases": cases, "grid": grid}, comment)


def extended(experiment: Experiment, rows: pd.DataFrame) -> str:
    """Return the file of a grid with one value more on each side where a method's best trial stands at the edge.

    Raises:
        InvalidInput: no grid of a method whose trials are all there needs it, or the file cannot be changed in place.
    """
    grid_of(experiment)
    where, more = experiment.path.as_posix(), tuning.edges(rows).dropna(subset=["next"])
    if more.empty:
        raise InvalidInput(where, "no best trial at an edge that can be moved", "a grid that the protocol extends")
    text, tables = experiment.path.read_text(encoding="utf-8"), _read(experiment)
    for index, case in enumerate(tables["cases"]):
        estimator = dict(case["estimator"])
        method = estimator.pop("name")
        own = dict(case.get("grid", {}))
        swept = {key.removeprefix("estimator."): None for key in own if key.startswith("estimator.")}
        given = {name: value for name, value in estimator.items() if name not in swept}
        mine = more[_of(more, method, given, _network(tables, case))]
        for row in mine.itertuples():
            key = RATE if row.setting == "learning_rate" else f"estimator.{row.setting}"
            own[key] = sorted([*own.get(key, tables["grid"].get(key, [])), float(row.next)])
        if len(mine):
            text = writing.with_case(text, index, "grid", own, where)
            case["grid"] = own
    return writing.verified(text, tables, where)


def applied(text: str, chosen: pd.DataFrame, where: str) -> str:
    """Return the text of an experiment file with the chosen rate and second setting of every case, and no longer open.

    Of the probed estimators, those on a line of their own that ends in ``# tuned`` get their second setting too.

    Args:
        text: of the file; every case has an estimator of its own.
        chosen: one row per method: those of `tuning.choices` that are chosen.
        where: the file, for errors.

    Raises:
        InvalidInput: nothing is chosen for a method of the file, the file has another optimiser or architecture than the
            finals, or it cannot be changed in place.
    """
    tables = tomllib.loads(text)
    _require_like(tables, chosen, where)
    for index, case in enumerate(tables.get("cases", ())):
        if "estimator" not in case:
            raise InvalidInput(f"{where}: cases[{index}]", sorted(case), "cases with an estimator each")
        network = _network(tables, case)
        estimator, rate = _chosen(case["estimator"], chosen, f"{where}: cases[{index}].estimator", network)
        training = {**case.get("training", {}), "learning_rate": rate}
        for key, old, new in (("estimator", case["estimator"], estimator), ("training", case.get("training"), training)):
            if new != old:
                text = writing.with_case(text, index, key, new, where)
                case[key] = new
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if marked := _MARKED.match(line):
            old = tomllib.loads(f"x = {marked[2]}")["x"]
            new, _ = _chosen(old, chosen, f"{where}: line {i + 1}", _network(tables, {}))
            lines[i] = f"{marked[1]}{writing.value(new)}{marked[3]}" if new != old else line
            probe = tables["probe"]
            probe["estimators"] = [new if estimator == old else estimator for estimator in probe["estimators"]]
    tables.pop(OPEN, None)
    return writing.verified(writing.without("\n".join(lines), OPEN), tables, where)


def _require_like(tables: Mapping[str, Any], chosen: pd.DataFrame, where: str) -> None:
    """Refuse a file that trains otherwise than the finals did, whose settings mean nothing there."""
    parts = [tables, *tables.get("cases", ())]
    for table, key, default in (("training", "optimizer", "adam"), ("network", "architecture", "fully_connected")):
        said = {part[table][key] for part in parts if key in part.get(table, {})} or {default}
        if said != set(chosen[key]):
            accepted = f"{', '.join(sorted(set(chosen[key]))) or 'nothing yet'}, which the finals were trained with"
            raise InvalidInput(f"{where}: {table}.{key}", ", ".join(sorted(said)), accepted)


def _chosen(estimator: Mapping[str, Any], chosen: pd.DataFrame, where: str, hidden: str) -> tuple[dict[str, Any], float]:
    """Return an estimator's table with its chosen second setting, and its chosen rate.

    Finals of one network serve others, too; finals of several serve each with its own.
    """
    given = dict(estimator)
    method = given.pop("name")
    rest, second, _ = tuning.split(method, given)
    several = chosen["hidden"].nunique() > 1
    mine = chosen[_of(chosen, method, rest, hidden if several else None)]
    if len(mine) != 1:
        known = ", ".join(chosen["trained_with"].unique()) or "none yet"
        asked = f"{label(method, rest)} with hidden layers {hidden}" if several else label(method, rest)
        raise InvalidInput(where, asked, f"a method that the finals chose settings for ({known})")
    row = mine.iloc[0]
    return {**estimator, **({second: float(row["value"])} if second else {})}, float(row["learning_rate"])


def _case(row, several: bool) -> dict[str, Any]:
    """Return the case of a pair; of a grid of several networks, with its network."""
    second = {row.second: float(row.value)} if row.second else {}
    case = {"estimator": {"name": row.method, **json.loads(row.given), **second}}
    network = {"network": {"hidden": json.loads(row.hidden)}} if several else {}
    return network | case | {"training": {"learning_rate": float(row.learning_rate)}}


def _network(tables: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """Return the hidden layers of a case as `tuning.hidden` writes them."""
    return tuning.hidden({**tables.get("network", {}), **case.get("network", {})})


def _of(frame: pd.DataFrame, method: str, given: Mapping[str, Any], hidden: str | None) -> pd.Series:
    """Return which rows are those of a method with its options, in a network; in whichever where that is None."""
    mine = (frame["method"] == method) & (frame["given"] == json.dumps(dict(given), sort_keys=True))
    return mine if hidden is None else mine & (frame["hidden"] == hidden)


def _read(experiment: Experiment) -> dict[str, Any]:
    return tomllib.loads(experiment.path.read_text(encoding="utf-8"))
