"""Audit of a record: runs that are drawn at random are made anew, and compared with what is recorded of them.

A run is its configuration, so that the same code on the same kind of machine has to give the same bits. Another machine adds in
another order. The first numbers of a run then differ by rounding, and training turns that into another path, as another seed
would. A run made anew therefore has one of four outcomes: equal in every bit; equal to rounding; equal within the noise of
another machine, if all before training is equal to rounding and the end lies among the ends of other seeds; or different.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.inventory import inventory
from fdfa_core.errors import InvalidInput, RunError
from fdfa_core.experiments.loading import Experiment
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs import validation
from fdfa_core.runs.schema import LATER_COLUMNS
from fdfa_core.runs.store import Store

ROUNDING = 1e-4  # of a number, or of the largest in its column: float32 adds 10⁶ numbers to about that
SPREADS = 3.0  # standard deviations over seeds, within which the end of a run may lie
ENDS = ("train_loss", "test_loss", "test_accuracy")
Pairs = Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]  # tables by name: as recorded, and anew
OUTCOMES = EQUAL, ROUNDED, NOISE, DIFFERENT = "equal in every bit", "equal to rounding", "equal within noise", "different"


class Found(NamedTuple):
    """What a run that was made anew shows.

    Attributes:
        outcome: `EQUAL`, `ROUNDED`, `NOISE` or `DIFFERENT`.
        where: the first table, row and column that differ in any bit, with both numbers; of a run that is equal only within
            noise, or different, the first that differ by more than rounding. "" where nothing does.
    """

    outcome: str
    where: str = ""


def draw(store: Store, experiments: Iterable[Experiment], sample: int, seed: int, longest: float | None = None) -> pd.DataFrame:
    """Draw recorded runs at random, from as many experiments as possible.

    Args:
        store: the record.
        experiments: whose runs may be drawn.
        sample: how many.
        seed: of the draw.
        longest: seconds that a run may have taken; longer ones are not drawn.

    Returns:
        Rows of `inventory`, in the order in which they were drawn.

    Raises:
        InvalidInput: fewer runs than `sample` can be drawn.
    """
    runs = inventory(store, experiments)
    runs = runs[runs["there"]] if len(runs) else runs
    runs = runs[runs["seconds"] <= longest] if longest is not None and len(runs) else runs
    if len(runs) < sample:
        most = "" if longest is None else f" that took at most {longest:g} s"
        raise InvalidInput("sample", sample, f"at most {len(runs)}, the number of recorded runs{most}")
    order = np.random.default_rng(seed).permutation(len(runs))
    mixed = runs.iloc[order]
    turn = mixed.groupby("experiment", sort=False).cumcount()
    return mixed.iloc[np.argsort(turn.to_numpy(), kind="stable")].head(sample)


def compare(recorded: Store, anew: Store, config: RunConfig, siblings: Iterable[RunConfig] = ()) -> Found:
    """Compare a run with the same run made anew.

    Args:
        recorded: the record.
        anew: holds the run, too.
        config: of the run.
        siblings: recorded runs that differ from it in their seed alone.
    """
    try:
        old, new = (validation.checked(store, [config]) for store in (recorded, anew))
    except RunError as error:
        return Found(DIFFERENT, str(error))
    for key in ("status", "steps"):
        before, after = (contents.summaries[config.id][key] for contents in (old, new))
        if before != after:
            return Found(DIFFERENT, f"summary, {key}: recorded {before}, anew {after}")
    names = [name for name in old.tables if name != "timing"]
    pairs = {name: _comparable(old.tables[name], new.tables[name]) for name in names}
    if exact := _first(pairs, 0.0):
        if not (beyond := _first(pairs, ROUNDING)):
            return Found(ROUNDED, exact)
        if not _first({"metrics": pairs["metrics"]}, 0.0):
            beyond = f"training is equal in every bit; {beyond}"
        return Found(NOISE if _among_seeds(pairs, recorded, config, siblings) else DIFFERENT, beyond)
    return Found(EQUAL)


def siblings(config: RunConfig, experiment: Experiment) -> list[RunConfig]:
    """Return the runs of an experiment that differ from one of them in their seed alone."""
    return [run for run in experiment.runs() if run.id != config.id and run.model_copy(update={"seed": config.seed}) == config]


def _comparable(old: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables without the columns that did not exist when the run was recorded."""
    later = [column for column in LATER_COLUMNS if column in old and old[column].isna().all()]
    return old.drop(columns=later), new.drop(columns=later)


def _first(pairs: Pairs, tolerance: float) -> str:
    """Say where the first number differs by more than a tolerance, relative to it or to the largest number of its column.

    With an infinite tolerance, numbers may be any, and only what is no number has to be equal.
    """
    for name, (old, new) in pairs.items():
        if len(old) != len(new):
            return f"{name}: recorded {len(old)} rows, anew {len(new)}"
        wrong = pd.DataFrame({column: _differs(old[column], new[column], tolerance) for column in old})
        if wrong.to_numpy().any():
            row = int(wrong.any(axis="columns").to_numpy().argmax())
            column = wrong.columns[int(wrong.iloc[row].to_numpy().argmax())]
            before, after = (frame[column].tolist()[row] for frame in (old, new))  # Python's numbers, as they are written
            return f"{name}, row {row}, {column}: recorded {before!r}, anew {after!r}"
    return ""


def _differs(old: pd.Series, new: pd.Series, tolerance: float) -> np.ndarray:
    if not pd.api.types.is_float_dtype(old):
        return (old != new).to_numpy()
    a, b = old.to_numpy(), new.to_numpy()
    if tolerance == np.inf:
        return np.isnan(a) != np.isnan(b)
    finite = np.abs(a[np.isfinite(a)])
    close = np.isclose(a, b, rtol=tolerance, atol=tolerance * (finite.max() if len(finite) else 0.0), equal_nan=True)
    return ~close


def _among_seeds(pairs: Pairs, recorded: Store, config: RunConfig, siblings: Iterable[RunConfig]) -> bool:
    """Return whether all before training is equal to rounding, and the end lies among the ends of the other seeds."""
    before = {name: tuple(frame[frame["step"] == 0].reset_index(drop=True) for frame in pair) for name, pair in pairs.items()}
    if _first(before, ROUNDING) or _first(pairs, np.inf) or config.training.optimizer == "none":
        return False
    others = [run.id for run in siblings if recorded.holds(run.id)]
    if len(others) < 2:  # one other seed has no spread
        return False
    ends = recorded.table("metrics", [config.id, *others]).groupby("run", sort=False).last()
    end = pairs["metrics"][1].iloc[-1]
    return all(abs(end[column] - ends.loc[config.id, column]) <= SPREADS * ends[column].std() for column in ENDS)
