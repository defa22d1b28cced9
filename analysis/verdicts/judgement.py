"""From one number per seed to verdicts: tests, one correction per family, simultaneous intervals.

A hypothesis says that the mean of one number per seed lies on one side of zero. Its p is that of the two-sided t-test, so that
the claim and its opposite are held to the same standard; for "level with BP" it is that of two one-sided tests within the
margin. Holm's correction runs once over all hypotheses of a family. The verdict is

* *supported*: corrected p < 0.05, and the mean on the claimed side;
* *refuted*: corrected p < 0.05, and the mean on the other side;
* *equivalent*: neither, the question has a margin, and the mean lies within it (two one-sided tests, Bonferroni);
* *inconclusive*: none of these; `seeds_needed` says how many seeds would decide;
* *k of n seeds*: the record is not complete, and nothing is judged before it is. A run that diverged has no number, and the
  mean of those that did not would favour it: the verdict is then *k of n seeds, m diverged*, also when all runs are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis import statistics
from analysis.verdicts import protocol
from analysis.verdicts.protocol import KEYS
from fdfa_core.errors import InvalidInput

COLUMNS = (
    *KEYS,
    "verdict",
    "estimate",
    "low",
    "high",
    "p",
    "p_holm",
    "p_permutation",
    "family",
    "seeds",
    "seeds_planned",
    "diverged",
    "seeds_needed",
    "margin",
    "direction",
    "ratio",
)
SUPPORTED, REFUTED, EQUIVALENT, INCONCLUSIVE = "supported", "refuted", "equivalent", "inconclusive"
MOST_SEEDS = 1000  # beyond which a number of seeds needed is not worth a name
POWER = 0.8
FLIPS = 2**14  # sign flips up to which all are tried


def family_of(question: str, variant: str) -> str:
    """Return the family that a hypothesis is corrected in: the FDFA beside the one on trial belongs to the mechanisms."""
    return protocol.BY_KEY[question].family if variant == protocol.ON_TRIAL else protocol.MECHANISMS


def verdicts(
    values: pd.DataFrame, planned: pd.DataFrame, datasets: Mapping[str, str], diverged: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return one row per hypothesis, in the order of `planned`.

    Args:
        values: one row per hypothesis and seed (`analysis.verdicts.evidence.values`).
        planned: one row per hypothesis with `KEYS` and `planned`, the tuple of its seeds (`hypotheses`).
        datasets: setting → name of its data set, which tells the margin.
        diverged: hypotheses and seeds that have no number (`analysis.verdicts.evidence.diverged`).

    Returns:
        `COLUMNS`. `estimate`, `low` and `high` are ratios where `ratio` is true; the interval is simultaneous over the family
        (Bonferroni). `seeds_needed` is NaN where the verdict is not inconclusive, and infinity above `MOST_SEEDS`.

    Raises:
        InvalidInput: a hypothesis or a seed that the plan does not hold.
    """
    check_plan(values, planned)
    of = {key: group.sort_values("seed")["value"].to_numpy(float) for key, group in values.groupby(KEYS, sort=False)}
    lost = {} if diverged is None else diverged.groupby(KEYS).size().to_dict()
    sizes = planned.apply(lambda row: family_of(row["question"], row["variant"]), axis=1).value_counts()
    rows = []
    for row in planned.to_dict("records"):
        key = tuple(row[k] for k in KEYS)
        family = family_of(row["question"], row["variant"])
        margin = protocol.MARGINS.get(datasets.get(row["setting"], ""), np.nan)
        tested = test(protocol.BY_KEY[row["question"]], of.get(key, np.empty(0)), margin, int(sizes[family]))
        rows.append(dict(zip(KEYS, key, strict=True)) | tested | {"family": family})
        rows[-1] |= {"seeds_planned": len(row["planned"]), "diverged": lost.get(key, 0)}
    frame = pd.DataFrame(rows, columns=[*KEYS, *(c for c in rows[0] if c not in KEYS)]) if rows else pd.DataFrame()
    if frame.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    whole = frame["seeds"] == frame["seeds_planned"]
    frame["p"] = frame["p"].where(whole, 1.0)  # nothing is looked at before it is whole, so that it cannot be rejected
    frame["p_holm"] = 1.0
    for _, family in frame.groupby("family"):
        frame.loc[family.index, "p_holm"] = statistics.holm(family["p"])
    frame["verdict"] = [judge(row, int(sizes[row.family])) for row in frame.itertuples()]
    undecided = frame["verdict"] == INCONCLUSIVE
    frame["seeds_needed"] = frame["seeds_needed"].where(undecided)
    shown = frame["ratio"].to_numpy(bool)
    for column in ("estimate", "low", "high"):
        frame.loc[shown, column] = np.exp(frame.loc[shown, column])
    return frame[list(COLUMNS)]


def test(question: protocol.Question, values: np.ndarray, margin: float, size: int) -> dict[str, object]:
    """Return estimate, simultaneous interval and p-values of one hypothesis in a family of `size`.

    Values that cannot be tested (fewer than two, or equal ones) have p = 1: they are still of a hypothesis that must hold.
    """
    n, question_margin = len(values), margin if question.margin else np.nan
    row: dict[str, object] = {"estimate": float(values.mean()) if n else np.nan, "low": np.nan, "high": np.nan}
    row |= {"p": 1.0, "p_permutation": 1.0, "p_equivalence": 1.0, "seeds": n, "seeds_needed": np.nan}
    row |= {"margin": question_margin, "direction": question.direction, "ratio": question.ratio}
    if not statistics.testable(values):
        return row
    _, row["low"], row["high"], _ = statistics.mean_interval(values, 1 - protocol.LEVEL / size)
    two_sided = float(stats.ttest_1samp(values, 0.0).pvalue)
    row["p_permutation"] = sign_flip(values)
    if np.isfinite(question_margin):
        row["p_equivalence"] = statistics.equivalence(values, 0.0, question_margin)
    row["p"] = row["p_equivalence"] if question.key == "Q3 parity" else two_sided
    row["seeds_needed"] = seeds_needed(values, question, question_margin, size)
    return row


def judge(row, size: int) -> str:
    """Return the verdict on one hypothesis from its row."""
    question = protocol.BY_KEY[row.question]
    if row.seeds < row.seeds_planned:
        return f"{row.seeds} of {row.seeds_planned} seeds" + (f", {row.diverged} diverged" if row.diverged else "")
    if question.key == "Q3 parity":
        if row.p_holm < protocol.LEVEL:
            return EQUIVALENT
        outside = row.low > row.margin or row.high < -row.margin
        return REFUTED if outside else INCONCLUSIVE
    if row.p_holm < protocol.LEVEL:
        return SUPPORTED if (row.estimate > 0) == (question.direction == "greater") else REFUTED
    return EQUIVALENT if question.margin and row.p_equivalence * size < protocol.LEVEL else INCONCLUSIVE


def sign_flip(values: Sequence[float], seed: int = 0) -> float:
    """Return the two-sided p of the sign-flip test of a mean of zero, exact up to `FLIPS` flips; it needs no normality."""
    values = np.asarray(values, float)
    found = stats.permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def seeds_needed(values: Sequence[float], question: protocol.Question, margin: float, size: int) -> float:
    """Return how many seeds would decide a hypothesis with a power of 80 %, judged by its values.

    The mean is taken for the true one, and the spread at its 80 % upper bound. Deciding is either the directional test or,
    where there is a margin, the two one-sided tests, at the level that Bonferroni leaves in a family of `size`.
    """
    values = np.asarray(values, float)
    mean, spread = abs(values.mean()), values.std(ddof=1) * spread_bound(len(values))
    level = protocol.LEVEL / size
    n = np.unique(np.geomspace(2, MOST_SEEDS, 200).astype(int))
    decided = np.zeros(len(n), bool)
    if question.key != "Q3 parity":
        decided |= _power_t(mean / spread * np.sqrt(n), n, level / 2) >= POWER
    if np.isfinite(margin) and mean < margin:
        decided |= _power_t((margin - mean) / spread * np.sqrt(n), n, level) >= POWER
    return float(n[decided.argmax()]) if decided.any() else np.inf


def spread_bound(n: int, level: float = POWER) -> float:
    """Return the factor that takes a standard deviation of n values to its upper confidence bound."""
    return float(np.sqrt((n - 1) / stats.chi2.ppf(1 - level, n - 1)))


def _power_t(shift: np.ndarray, n: np.ndarray, level: float) -> np.ndarray:
    """Return the powers of one-sided t-tests with n values whose statistics are shifted by `shift`."""
    return stats.nct.sf(stats.t.isf(level, n - 1), n - 1, shift)


def check_plan(values: pd.DataFrame, planned: pd.DataFrame) -> None:
    """Refuse values of hypotheses or seeds that the plan does not hold: data beyond the plan are never used in silence."""
    seeds = {tuple(row[k] for k in KEYS): set(row["planned"]) for row in planned.to_dict("records")}
    for key, group in values.groupby(KEYS, sort=False):
        name = ", ".join(str(part) for part in key if part)
        if key not in seeds:
            accepted = "the hypotheses of the protocol; amend it, or leave these runs out of the record"
            raise InvalidInput("record", name, accepted)
        beyond = sorted(set(group["seed"]) - seeds[key])
        if beyond:
            accepted = f"the seeds of the protocol, {sorted(seeds[key])}; amend it, or leave these runs out of the record"
            raise InvalidInput(f"record: seeds of {name}", beyond, accepted)
