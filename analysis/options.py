"""Estimators' options as columns: ``option.<name>``, with the defaults of what was not given.

Logs carry the options that were given as JSON (column `options`). `expand` reads them once, when logs are read; everything else
asks for a column. A label such as ``fdfa(feedback_lr=0.1)`` is for people: nothing is read out of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from fdfa_core.estimators.registry import available_estimators, filled_options

PREFIX = "option."
LABELS = ("estimator", "trained_with")  # columns that hold labels
TEXTS = ("component", "weakest")  # columns whose texts name labels between backticks
Meanings = dict[str, tuple[str, dict[str, Any]]]
KNOWN = "labels"  # the column that says what the labels in such texts are


def given(options: str) -> dict[str, Any]:
    """Return the options that were given, from their JSON."""
    return json.loads(options)


def filled(method: str, options: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a method: those that were given, as JSON or a mapping, and the defaults of the others.

    Of a method that is not registered here (its logs are from elsewhere), only what was given is known.
    """
    known = given(options) if isinstance(options, str) else dict(options)
    return filled_options(method, known) if method in available_estimators() else known


def expand(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a column ``option.<name>`` for each option that one of its methods has.

    Args:
        frame: rows with `method` and `options` (JSON of the options that were given). Columns of this kind that it has
            already are made anew.

    Returns:
        Numbers are numbers, with NaN where a method has no such option. Other columns (text, truth values, or a mixture such as
        that of `joint`) hold objects, with None there. Lists are tuples.
    """
    frame = frame.drop(columns=[c for c in frame if c.startswith(PREFIX)])
    if frame.empty:
        return frame
    keys = pd.MultiIndex.from_frame(frame[["method", "options"]])
    codes, distinct = keys.factorize()
    tables = [filled(*key) for key in distinct]
    names = sorted({name for table in tables for name in table})
    columns = {PREFIX + name: _column([table.get(name) for table in tables]) for name in names}
    return pd.concat([frame, pd.DataFrame(columns, index=range(len(tables))).iloc[codes].set_axis(frame.index)], axis=1)


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return an option of each row's estimator; None (or NaN) where it has none. The frame need not be expanded."""
    if PREFIX + name not in frame and "options" in frame:
        frame = expand(frame)
    return frame[PREFIX + name] if PREFIX + name in frame else pd.Series(None, index=frame.index, dtype=object)


def numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return an option of each row's estimator as numbers; NaN where it has none or it is no number."""
    return pd.to_numeric(column(frame, name), errors="coerce")


def alpha(frame: pd.DataFrame) -> pd.Series:
    """Return α, the rate at which an estimator averages its feedback; NaN where it does nothing of the kind.

    `feedback_lr` is this rate for FDFA with ``feedback_rule="momentum"``; elsewhere it is the learning rate of an optimiser.
    """
    return numbers(frame, "feedback_lr").where(column(frame, "feedback_rule").eq("momentum"))


def at_default(frame: pd.DataFrame, *names: str) -> pd.Series:
    """Return whether each row's estimator has the default values of these options (as it has where it has no such option)."""
    defaults = expand(frame[["method"]].assign(options="{}"))
    same = pd.Series(True, index=frame.index)
    for name in names:
        here, there = column(frame, name), column(defaults, name)
        same &= here.eq(there) | (here.isna() & there.isna())
    return same


def relabelled(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the rows as those of a method without options."""
    return expand(frame.assign(estimator=method, method=method, options="{}"))


def meanings(sources: Iterable[pd.DataFrame]) -> Meanings:
    """Return what the labels of estimators stand for: label → method and the options that were given.

    Args:
        sources: frames of logs, with `method`, `options`, and the label in `estimator`, or in `trained_with` (of runs).
    """
    known: Meanings = {}
    for frame in sources:
        label = "estimator" if "estimator" in frame else "trained_with"
        if {label, "method", "options"} <= set(frame):
            rows = frame[[label, "method", "options"]].drop_duplicates().itertuples(index=False)
            known |= {name: (method, given(options)) for name, method, options in rows}
    return known


def described(frame: pd.DataFrame, known: Meanings) -> pd.DataFrame:
    """Return a frame that holds labels with what they stand for, so that nobody needs to read a label.

    Args:
        frame: what a figure shows, with labels in columns of `LABELS`, or between backticks in texts of `TEXTS`. Labels that it
            made itself (of estimators without the option that is tuned, say) it may describe itself; they stay so.
        known: what labels stand for (`meanings`).

    Returns:
        The frame with ``<column>.method`` and ``<column>.options`` (JSON of what was given) beside each column of labels, and
        with `labels` (JSON: label → method and options) beside such texts. A label that is not known is a method's name.
    """
    for name in [c for c in LABELS if c in frame and f"{c}.method" not in frame]:
        pairs = [known.get(label, (label, {})) for label in frame[name]]
        texts = [json.dumps(options, sort_keys=True) for _, options in pairs]
        frame = frame.assign(**{f"{name}.method": [method for method, _ in pairs], f"{name}.options": texts})
    if texts := [c for c in TEXTS if c in frame]:
        marked = [{label for text in row for label in text.split("`")[1::2]} for row in frame[texts].to_numpy()]
        said = [{label: known[label] for label in sorted(labels) if label in known} for labels in marked]
        frame = frame.assign(**{KNOWN: [json.dumps(labels) for labels in said]})
    return frame


def labels_of(frame: pd.DataFrame) -> Meanings:
    """Return what the labels in a frame of `described` stand for: label → method and the options that were given."""
    known: Meanings = {}
    for name in LABELS:
        columns = [name, f"{name}.method", f"{name}.options"]
        if set(columns) <= set(frame):
            rows = frame[columns].drop_duplicates().itertuples(index=False)
            known |= {label: (method, given(options)) for label, method, options in rows}
    for text in frame[KNOWN].unique() if KNOWN in frame else ():
        known |= {label: (method, options) for label, (method, options) in json.loads(text).items()}
    return known


def _column(values: list[Any]) -> pd.Series:
    """Return values as numbers where all of them are, as objects otherwise."""
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pd.Series(pd.to_numeric(pd.Series(values, dtype=object)))
    return pd.Series([tuple(value) if isinstance(value, list) else value for value in values], dtype=object)
