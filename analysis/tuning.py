"""How settings are chosen (docs/protocol.md, "Tuning"): trials of grids, finalists, edges, and the one-standard-error rule.

A *method* here is an estimator with the options that are not tuned, in a network: a grid may hold several depths, each of which
has choices of its own. Its second setting and its rate come from the runs' configurations and never from a label. `chosen` and
`best_rates` read the grids of one round, from before this protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd

from analysis import accuracy, options, select, summary
from analysis.logs import Logs
from analysis.verdicts.protocol import TUNING
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.labels import label
from fdfa_core.experiments.loading import Experiment

SETTING = ("dataset", "architecture", "width", "depth", "batch_size")
METHOD = ["method", "given", "hidden"]
PAIR = [*METHOD, "learning_rate", "value"]
ROLES = ("trials", "finals")  # of the experiments of the two rounds


def trials(experiment: Experiment, log: Logs | None = None) -> pd.DataFrame:
    """Return one row per trial, a pair of a learning rate and a second setting, in the order of the file.

    Args:
        experiment: grid of trials, or of finals.
        log: its runs, as far as they are there; None where no run is.

    Returns:
        Columns `dataset`, `architecture`, `optimizer`, `method`, `given` (JSON of the options that are not tuned),
        `hidden` (JSON of the widths of the hidden layers; "" where the network has no such option), `trained_with` (label of
        `method` and `given`), `second` (name of the second setting, "" without one), `value` (its value, NaN
        without one), `learning_rate`, `planned` (seeds), `seeds` (that are there), `diverged` (of these), `accuracy`
        (mean over seeds of the validation accuracy after the last step; NaN unless all seeds are there and none diverged),
        `se` (its standard error; NaN with fewer than two seeds) and `train_loss`.

    Raises:
        InvalidInput: runs are judged on the test set, or differ in more than rate, second setting, hidden layers and seed.
    """
    rows = [_planned(run, experiment) for run in experiment.runs()]
    frame = pd.DataFrame(rows)
    twice = frame[frame.duplicated([*PAIR, "seed"])]
    if len(twice) or frame[["dataset", "architecture", "optimizer", "epochs"]].drop_duplicates().shape[0] > 1:
        accepted = "runs that differ in the learning rate, the second setting, the hidden layers and the seed alone"
        raise InvalidInput(experiment.path.as_posix(), "a grid that varies something else", accepted)
    names = ["run", "test_accuracy", "train_loss", "status"]
    nothing = pd.DataFrame(columns=names) if log is None or log.metrics.empty else accuracy.final(log.metrics)[names]
    frame = frame.merge(nothing, on="run", how="left")
    by = ["dataset", "architecture", "optimizer", "trained_with", *METHOD, "second", "learning_rate", "value"]
    groups = frame.groupby(by, sort=False, dropna=False)
    out = groups.agg(
        planned=("seed", "size"),
        seeds=("status", "count"),
        diverged=("status", lambda s: int((s == "diverged").sum())),
        accuracy=("test_accuracy", lambda a: a.astype(float).mean()),
        se=("test_accuracy", lambda a: a.astype(float).std(ddof=1) / np.sqrt(len(a))),
        train_loss=("train_loss", lambda a: a.astype(float).mean()),
    ).reset_index()
    sound = (out["seeds"] == out["planned"]) & (out["diverged"] == 0)
    out.loc[~sound, ["accuracy", "se", "train_loss"]] = np.nan
    return out


def as_tuned(log: Logs) -> Logs:
    """Return logs in which a method whose networks have each a second setting of their own has one label (`one_name`).

    A curve over networks, each tuned by itself, is that of one method; so is a row of a table over experiments.
    """
    known = log.runs.rename(columns={"trained_with": "label"})
    changed = one_name(known, ["experiment", *SETTING[:-1]])
    rests = {before: rest for before, (_, rest) in changed.items()}
    names = {before: after for before, (after, _) in changed.items()}

    def renamed(frame: pd.DataFrame) -> pd.DataFrame:
        if "trained_with" not in frame:
            return frame
        before, own = frame["trained_with"], pd.Series(True, frame.index)
        frame = frame.assign(trained_with=before.replace(names))
        if "estimator" in frame:
            own = frame["source"].eq("self") if "source" in frame else ~own
            frame["estimator"] = frame["estimator"].mask(own, frame["trained_with"])
        if "options" in frame:
            frame["options"] = frame["options"].mask(own & before.isin(rests), before.map(rests))
        return frame

    return replace(log, **{f.name: renamed(getattr(log, f.name)) for f in fields(log)})


def labels_as_tuned(frame: pd.DataFrame, network: Sequence[str]) -> pd.DataFrame:
    """Return a frame whose labels say what they stand for (`options.described`) with one label where `one_name` has one.

    Args:
        frame: what a figure shows.
        network: its columns that tell apart what is tuned by itself.
    """
    for name in [c for c in options.LABELS if f"{c}.method" in frame]:
        said = {name: "label", f"{name}.method": "method", f"{name}.options": "options"}
        if changed := one_name(frame[[*said, *network]].rename(columns=said), network):
            new = frame[name].map(changed)
            frame = frame.assign(
                **{column: new.str[i].where(new.notna(), frame[column]) for i, column in enumerate((name, f"{name}.options"))}
            )
    return frame


def one_name(known: pd.DataFrame, network: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return one label, without the second setting, for the labels of a method that have each a setting of its own.

    A method that has one value everywhere keeps its label, which says it; so does one that has several values in one network.

    Args:
        known: columns `label`, `method`, `options` and those of `network`.
        network: columns that tell apart what is tuned by itself.

    Returns:
        Label → the one label, and JSON of the options that it stands for.
    """
    known = known[["label", "method", "options", *network]].drop_duplicates()
    known = known.assign(rest=[_without_second(*pair) for pair in known[["method", "options"]].itertuples(index=False)])
    whole = ["method", "rest"]
    several = known.groupby(whole)["options"].transform("nunique") > 1
    swept = known.groupby([*whole, *network], dropna=False)["options"].transform("nunique") > 1
    swept = swept.groupby([known[column] for column in whole]).transform("any")
    changed = known[several & ~swept]
    return {row.label: (label(row.method, options.given(row.rest)), row.rest) for row in changed.itertuples()}


def _without_second(method: str, text: str) -> str:
    given = options.given(text)
    second = TUNING.second(method, given)
    return json.dumps({k: v for k, v in given.items() if second is None or k != second.option}, sort_keys=True)


def progress(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method of `trials`: `trained_with`, `METHOD`, `done` and `planned` (trials), `complete`, `lost`.

    `lost` counts the trials that a run with some seed diverged in; they are done, and out.
    """
    groups = rows.assign(is_done=rows["seeds"] == rows["planned"], is_lost=rows["diverged"] > 0)
    groups = groups.groupby(["trained_with", *METHOD], sort=False)
    out = groups.agg(done=("is_done", "sum"), planned=("is_done", "size"), lost=("is_lost", "sum")).reset_index()
    return out.assign(complete=out["done"] == out["planned"])


def finalists(rows: pd.DataFrame, count: int = TUNING.finalists) -> pd.DataFrame:
    """Return the best trials of every method whose trials are all there, best first, with their `rank` from 1.

    Ties go to the lower training loss, then to the smaller rate. A trial that diverged is out; a method of which fewer than
    `count` are left has fewer rows.
    """
    ranked = _complete(rows).dropna(subset=["accuracy"])
    ranked = ranked.sort_values(["accuracy", "train_loss", "learning_rate"], ascending=[False, True, True], kind="stable")
    ranked = ranked.assign(rank=ranked.groupby(METHOD, sort=False).cumcount() + 1)
    return _in_order(ranked[ranked["rank"] <= count], rows)


def edges(rows: pd.DataFrame) -> pd.DataFrame:
    """Return where the best trial of a method stands at the edge of its grid, one row per setting and side.

    Returns:
        Columns `trained_with`, `METHOD`, `setting` ("learning_rate" or the name of the second setting), `side` ("below" or
        "above"), `best` (its value there) and `next`, the value that an extension adds: NaN where the grid has been extended
        as often as the protocol allows, or the setting has no value beyond.
    """
    found = []
    for best in finalists(rows, 1).itertuples():
        mine = rows[same_method(rows, best)]
        second = TUNING.second(best.method, json.loads(best.given))
        axes = TUNING.fine if second is None else TUNING.coarse
        checked = [("learning_rate", best.learning_rate, mine["learning_rate"], axes.get(best.optimizer))]
        checked += [(best.second, best.value, mine["value"], second.axis)] if second else []
        for setting, at, tried, axis in checked:
            line = [] if axis is None else [*axis.below, *axis.start, *axis.above]
            about, low, high = [best.trained_with, *(getattr(best, key) for key in METHOD), setting], tried.min(), tried.max()
            if at == low:
                found.append([*about, "below", at, max((v for v in line if v < low), default=np.nan)])
            if at == high:
                found.append([*about, "above", at, min((v for v in line if v > high), default=np.nan)])
    return pd.DataFrame(found, columns=["trained_with", *METHOD, "setting", "side", "best", "next"])


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the finals with what the one-standard-error rule says of each: `best`, `within` and `chosen`.

    Chosen is the smallest learning rate whose mean accuracy is within one standard error (the best trial's) of the best; of
    pairs with that rate, the one with the higher mean. Nothing is chosen for a method whose finals are not all there.

    Raises:
        InvalidInput: a trial has one seed, which says nothing of the standard error.
    """
    if (rows["planned"] < 2).any():
        raise InvalidInput("seeds", int(rows["planned"].min()), "finals with two seeds or more; these are trials of round 1")
    out = rows.assign(best=False, within=False, chosen=False)
    for _, mine in _complete(rows).dropna(subset=["accuracy"]).groupby(METHOD, sort=False):
        ranked = mine.sort_values(["accuracy", "train_loss"], ascending=[False, True], kind="stable")
        best = ranked.iloc[0]
        within = ranked[ranked["accuracy"] >= best["accuracy"] - best["se"] - 1e-12]  # the last digits are rounding
        winner = within[within["learning_rate"] == within["learning_rate"].min()].index[0]
        out.loc[best.name, "best"] = out.loc[winner, "chosen"] = True
        out.loc[within.index, "within"] = True
    return out


def by_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best trial at every learning rate of every method: what it reaches with the second setting that suits it."""
    sound = rows.dropna(subset=["accuracy"])
    best = sound.sort_values("accuracy", ascending=False, kind="stable").groupby([*METHOD, "learning_rate"], sort=False).head(1)
    return best.sort_values(["method", "given", "learning_rate"], kind="stable").reset_index(drop=True)


def _planned(run, experiment: Experiment) -> dict[str, object]:
    """Return what a run tries."""
    if run.data.evaluate_on != "validation":
        accepted = '"validation": settings are never chosen on the test set'
        raise InvalidInput(f"{experiment.path.as_posix()}: data.evaluate_on", run.data.evaluate_on, accepted)
    method = run.estimator.name
    rest, second, value = split(method, run.estimator.options)
    return {
        "run": run.id,
        "dataset": run.data.name,
        "architecture": run.network.architecture,
        "optimizer": run.training.optimizer,
        "epochs": run.training.epochs,
        "trained_with": label(method, rest),
        "method": method,
        "given": json.dumps(rest, sort_keys=True),
        "hidden": hidden(run.network.options),
        "second": second,
        "value": value,
        "learning_rate": run.training.learning_rate,
        "seed": run.seed,
    }


def hidden(network: Mapping[str, object]) -> str:
    """Return the widths of the hidden layers in a network's options as JSON, "" where it has no such option.

    Examples:
        >>> hidden({"hidden": [400, 400], "activation": "relu"})
        '[400, 400]'
    """
    return json.dumps(list(network["hidden"])) if "hidden" in network else ""


def layers(hidden: str) -> str:
    """Return the hidden layers that `hidden` wrote, for people.

    Examples:
        >>> layers("[400, 400, 400]"), layers("[800, 400]"), layers("")
        ('3 × 400', '800-400', '')
    """
    widths = json.loads(hidden or "[]")
    return f"{len(widths)} × {widths[0]}" if len(widths) > 1 and len(set(widths)) == 1 else "-".join(map(str, widths))


def said(row, rows: pd.DataFrame) -> str:
    """Return the name of a row's method; with its network where the rows have several."""
    return f"{row.trained_with}, {layers(row.hidden)}" if rows["hidden"].nunique() > 1 else row.trained_with


def same_method(rows: pd.DataFrame, row) -> pd.Series:
    """Return which rows belong to the method of a row: those that agree with it in all of `METHOD`."""
    return pd.concat([rows[key] == getattr(row, key) for key in METHOD], axis=1).all(axis=1)


def split(method: str, given: Mapping[str, object]) -> tuple[dict[str, object], str, float]:
    """Return a method's options without the one that is tuned, and the tuned one's name and value ("" and NaN without one)."""
    second = TUNING.second(method, given)
    if second is None:
        return dict(given), "", np.nan
    rest = {name: value for name, value in given.items() if name != second.option}
    return rest, second.option, float(options.filled(method, given)[second.option])


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the trials of the methods whose trials are all there."""
    done = (rows["seeds"] == rows["planned"]).groupby([rows[name] for name in METHOD], sort=False).transform("all")
    return rows[done]


def _in_order(part: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return ranked trials with the methods in the order of all trials."""
    order = {key: i for i, key in enumerate(rows[METHOD].drop_duplicates().itertuples(index=False, name=None))}
    place = [order[key] for key in part[METHOD].itertuples(index=False, name=None)]
    return part.assign(place=place).sort_values(["place", "rank"]).drop(columns="place").reset_index(drop=True)


def chosen(metrics: pd.DataFrame, setting: Sequence[str] = SETTING) -> pd.DataFrame:
    """Return the best rate of each estimator in each setting.

    It has the highest mean accuracy at the last evaluation; ties go to the lower loss. A rate at which a run diverged is out,
    however well its other seeds did.

    Args:
        metrics: rows of `metrics.parquet` of all runs of the grid, with the run's rate as `learning_rate`.
        setting: columns that tell networks and ways of training apart, each of which has a best rate of its own.

    Returns:
        Columns `setting`, `trained_with`, `learning_rate`, `accuracy`, `train_loss`, `seeds`, `rates` (tried),
        `edge` (the best is the smallest or the largest rate that was tried, so that a better one may lie outside).
        An estimator whose runs all diverged is left out.
    """
    final = accuracy.final(metrics)
    by = [*setting, "trained_with"]
    grid = final.groupby([*by, "learning_rate"], sort=False, dropna=False).agg(
        accuracy=("test_accuracy", "mean"),
        train_loss=("train_loss", "mean"),
        seeds=("seed", "nunique"),
        sound=("status", lambda s: (s == "finished").all()),
    )
    grid = grid.reset_index()
    tried = grid.groupby(by, sort=False, dropna=False)["learning_rate"].agg(["min", "max", "nunique"]).reset_index()
    best = grid[grid["sound"]].sort_values(["accuracy", "train_loss"], ascending=[False, True], kind="stable")
    best = best.groupby(by, sort=False, dropna=False).head(1).drop(columns="sound")
    best = tried.merge(best, on=by)  # settings in the order of the runs
    best["edge"] = (best["learning_rate"] == best["min"]) | (best["learning_rate"] == best["max"])
    order = {key: i for i, key in enumerate(final["trained_with"].unique())}
    best = best.sort_values("trained_with", key=lambda s: s.map(order), kind="stable")
    columns = [*by, "learning_rate", "accuracy", "train_loss", "seeds", "rates", "edge"]
    return best.rename(columns={"nunique": "rates"})[columns].reset_index(drop=True)


def best_rates(log: Logs) -> pd.DataFrame:
    """Return the best rate of each estimator in each setting of one experiment's grid.

    Returns:
        The columns of `chosen`; of the settings, those that the grid varies.
    """
    extra = select.settings(log)
    setting = [*SETTING, *extra]
    rows = chosen(summary.metrics_with_settings(log, extra), setting)
    return rows.drop(columns=[name for name in setting if rows[name].nunique(dropna=False) < 2])
