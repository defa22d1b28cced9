"""The claims made for FDFA, each as a test that was fixed before its data were seen.

A claim is a list of *components* that must all hold (one for each hidden block, competitor, …). A component is one number a
seed, paired by seed (equal seeds share initialisation and batches): a log ratio, a slope or a difference, and its claim is
that the mean lies above (or below) a threshold: a one-sided t-test. All components are needed, so a claim's p-value is the
largest of theirs (intersection–union), and Holm's correction runs over the claims. The verdict is

* *supported*: corrected p < 0.05 for the claim;
* *not supported*: corrected p < 0.05 for the opposite of some component (Bonferroni within the claim, Holm over claims);
* *inconclusive*: neither. Few seeds say little, and absence of evidence is not evidence of absence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import accuracy, convergence, logs, options, select, statistics, variance
from fdfa_core.errors import InvalidInput

LEVEL = 0.05
SETTING = ["dataset", "architecture", "width", "depth"]
COMPETITORS = ("fg-w", "fg-a", "lg-fg-w", "lg-fg-a", "fa", "dfa", "dkp", "drtp", "pepita", "grape", "cosine-dfa")
FASTER_THAN = ("fg-w", "fg-a", "lg-fg-a", "dfa", "dkp", "pepita")


@dataclass(frozen=True)
class Claim:
    """One claim and its test.

    Attributes:
        number: e.g. "2a".
        statement: what is claimed.
        evidence: name of the experiment.
        statistic: what is one number a seed.
        direction: "greater" or "less" than the threshold.
        threshold: on the scale of the statistic (1 for a ratio).
        ratio: the statistic is a ratio, tested on the logarithmic scale.
        components: logs of the experiment → values over seeds, by component.
    """

    number: str
    statement: str
    evidence: str
    statistic: str
    direction: str
    threshold: float
    ratio: bool
    components: Callable[[logs.Logs], dict[str, np.ndarray]]


def components(logs_of: Mapping[str, logs.Logs], level: float = 1 - LEVEL) -> pd.DataFrame:
    """Return one row for each component of each claim that the logs hold; p = 1 where one seed, or equal ones, allow no test.

    Returns:
        Columns `claim`, `component` (labels of estimators between backticks), `evidence`, `estimate`, `low`, `high`
        (two-sided interval), `seeds`, `p` (of the claim) and `p_opposite`.
    """
    rows = []
    for claim in CLAIMS:
        found = claim.components(logs_of[claim.evidence]) if claim.evidence in logs_of else {}
        for name, values in found.items():
            values = np.asarray(values, float)
            if len(values):
                rows.append([claim.number, name, claim.evidence, *_test(claim, values, level)])
    columns = ["claim", "component", "evidence", "estimate", "low", "high", "seeds", "p", "p_opposite"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(tested: pd.DataFrame) -> pd.DataFrame:
    """Return one row a claim from `components`: its weakest component, corrected p and verdict.

    A claim without any component in these logs has `components` = 0, p = 1 and the estimate at its threshold.

    Returns:
        Columns `claim`, `statement`, `evidence`, `statistic`, `direction`, `threshold`, `components`, `weakest` (the component
        with the largest p, to which `estimate`, `low`, `high`, `seeds` belong), `p`, `p_holm`, `verdict`.
    """
    rows = []
    for claim in CLAIMS:
        mine = tested[tested["claim"] == claim.number].sort_values("p", kind="stable")
        about = {k: getattr(claim, k) for k in ("statement", "evidence", "statistic", "direction", "threshold")}
        if mine.empty:
            shown = {"estimate": claim.threshold, "low": claim.threshold, "high": claim.threshold, "seeds": 0}
            row = {"components": 0, "weakest": "none in these logs", **shown, "p": 1.0, "p_opposite": 1.0}
        else:
            weakest = mine.iloc[-1]
            shown = {key: weakest[key] for key in ("estimate", "low", "high", "seeds")}
            opposite = min(1.0, mine["p_opposite"].min() * len(mine))
            row = {"components": len(mine), "weakest": weakest["component"], **shown}
            row |= {"p": float(mine["p"].max()), "p_opposite": opposite}
        rows.append({"claim": claim.number, **about, **row})
    frame = pd.DataFrame(rows)
    frame["p_holm"] = statistics.holm(frame["p"])
    against = statistics.holm(frame.pop("p_opposite")) < LEVEL
    frame["verdict"] = np.select([frame["p_holm"] < LEVEL, against], ["supported", "not supported"], "inconclusive")
    return frame


def _test(claim: Claim, values: np.ndarray, level: float) -> tuple[float, ...]:
    if not statistics.testable(values):  # but the claim is of this component, too
        value = float(np.exp(values.mean()) if claim.ratio else values.mean())
        return value, value, value, len(values), 1.0, 1.0
    null = np.log(claim.threshold) if claim.ratio else claim.threshold
    opposite = "less" if claim.direction == "greater" else "greater"
    p, p_opposite = (float(stats.ttest_1samp(values, null, alternative=side).pvalue) for side in (claim.direction, opposite))
    shown = statistics.mean_interval(values, level)[:3]
    return (*(float(np.exp(v) if claim.ratio else v) for v in shown), len(values), p, p_opposite)


# --- one number a seed -----------------------------------------------------------------------------------------------

Rows = pd.DataFrame
Select = Callable[[Rows], Rows]


def _method(name: str, rate: Callable[[pd.Series], pd.Series] | None = None) -> Select:
    """Return a selection of one estimator: a method's first label, among those whose α is the `rate` of all α."""

    def select(rows: Rows) -> Rows:
        rows = rows[rows["method"] == name]
        if rate is not None:
            rows = rows[rate(rows["alpha"])]
        return rows[rows["estimator"] == rows["estimator"].iloc[0]] if len(rows) else rows

    return select


FG_W, FG_A = _method("fg-w"), _method("fg-a")
FDFA = _method("fdfa", lambda alpha: alpha == alpha[alpha < 1].max())  # the fastest feedback that averages at all
FDFA_ONE = _method("fdfa", lambda alpha: alpha == 1)


def _ratios(log: logs.Logs, above: Select, below: Select) -> Rows:
    """Return `ratio`, ln of the ratio of two estimators' variances where both were measured on one network.

    With frozen weights (one probe a run) steps do not matter; along a trajectory they do.
    """
    probes = variance.normalised(select.hidden_blocks(log.probes))
    probes = probes[probes["nsr"] > 0]
    rows = probes.assign(alpha=options.alpha(probes))
    frozen = (rows.groupby("run")["step"].nunique() == 1).all()
    on = ["trained_with", "block", "seed", "width"] + ([] if frozen else ["step"])
    a, b = (np.log(_one_each(select(rows), on).set_index(on)["nsr"]) for select in (above, below))
    return (a - b).rename("ratio").dropna().reset_index()


def _one_each(rows: Rows, on: list[str]) -> Rows:
    """Return the rows, if no two of them are equal in `on`: a claim compares estimators in one setting."""
    several = rows[rows.duplicated(on)]
    if len(several):
        found = ", ".join(f"{key} {several.iloc[0][key]}" for key in on)
        accepted = "one run for each estimator, network and seed: an experiment that sweeps nothing else"
        raise InvalidInput("evidence", f"several runs of {found}", accepted)
    return rows


def _mean_ratio(above: Select, below: Select) -> Callable[[logs.Logs], dict[str, np.ndarray]]:
    """A component a block and trajectory: the mean log ratio over widths or steps, a seed."""

    def values(log: logs.Logs) -> dict[str, np.ndarray]:
        ratios = _ratios(log, above, below)
        means = ratios.groupby(["trained_with", "block", "seed"], sort=False)["ratio"].mean()
        several = ratios["trained_with"].nunique() > 1
        return {
            f"hidden block {block + 1}" + (f", weights of `{path}`" if several else ""): one.to_numpy()
            for (path, block), one in means.groupby(["trained_with", "block"], sort=False)
        }

    return values


def _ratio_slope(above: Select, below: Select) -> Callable[[logs.Logs], dict[str, np.ndarray]]:
    """A component a block: the slope of the log ratio against ln width, a seed."""

    def values(log: logs.Logs) -> dict[str, np.ndarray]:
        found: dict[str, list[float]] = {}
        for (block, _), one in _ratios(log, above, below).groupby(["block", "seed"], sort=False):
            if one["width"].nunique() > 1:
                slope = stats.linregress(np.log(one["width"]), one["ratio"]).slope
                found.setdefault(f"hidden block {block + 1}", []).append(slope)
        return {name: np.array(slopes) for name, slopes in found.items()}

    return values


def _against(others: tuple[str, ...], column: str, per_run: Callable[[Rows], Rows], log: bool):
    """A component a setting and competitor: FDFA's value less the competitor's (difference or log ratio), a seed."""

    def values(logged: logs.Logs) -> dict[str, np.ndarray]:
        trained = logged.runs.drop_duplicates("trained_with").set_index("trained_with")["method"]
        rows = per_run(logged.metrics)
        rows = rows[rows["status"] == "finished"].assign(value=np.log(rows[column]) if log else rows[column])
        labels = trained[trained == "fdfa"].index
        found = {}
        for setting, group in rows.groupby(SETTING, sort=False, dropna=False):
            wide = _one_each(group, ["seed", "trained_with"]).pivot(index="seed", columns="trained_with", values="value")
            for other in trained[trained.isin(others)].index:
                if len(labels) and {labels[0], other} <= set(wide):
                    pair = wide[[labels[0], other]].dropna()
                    name = f"`{labels[0]}` against `{other}`, {setting[0]}, {setting[1]}"
                    found[name] = (pair[labels[0]] - pair[other]).to_numpy()
        return found

    return values


AT_START, TRAINING = "width", "trajectory"
RATIO = "ratio of total variance ÷ ‖∇‖², {}, in every hidden block"
CLAIMS = (
    Claim(
        "1a", "FG-W is noisier than FG-A at initialisation",
        AT_START, RATIO.format("FG-W to FG-A, mean over widths"), "greater", 1, True, _mean_ratio(FG_W, FG_A),
    ),
    Claim(
        "1b", "FG-W is noisier than FG-A during training",
        TRAINING, RATIO.format("FG-W to FG-A, mean over steps"), "greater", 1, True, _mean_ratio(FG_W, FG_A),
    ),
    Claim(
        "2a", "FG-A is noisier than FDFA at initialisation",
        AT_START, RATIO.format("FG-A to FDFA, mean over widths"), "greater", 1, True, _mean_ratio(FG_A, FDFA),
    ),
    Claim(
        "2b", "FG-A is noisier than FDFA during training",
        TRAINING, RATIO.format("FG-A to FDFA, mean over steps"), "greater", 1, True, _mean_ratio(FG_A, FDFA),
    ),
    Claim(
        "3a", "The gap between FG-W and FG-A widens with width",
        AT_START, "log–log slope of the ratio FG-W to FG-A against width, in every hidden block", "greater", 0, False,
        _ratio_slope(FG_W, FG_A),
    ),
    Claim(
        "3b", "The gap between FG-A and FDFA widens with width",
        AT_START, "log–log slope of the ratio FG-A to FDFA against width, in every hidden block", "greater", 0, False,
        _ratio_slope(FG_A, FDFA),
    ),
    Claim(
        "4", "FDFA converges faster than FG-W, FG-A, LG-FG-A, DFA, DKP and PEPITA (those that were run)",
        "convergence", "ratio of geometric-mean train loss over the epochs, FDFA to each", "less", 1, True,
        _against(FASTER_THAN, "height", lambda metrics: convergence.heights(metrics, "train_loss"), log=True),
    ),
    Claim(
        "5", "FDFA ends at a higher test accuracy than the other local methods (those that were run)",
        "convergence", "difference of final test accuracy, FDFA less each", "greater", 0, False,
        _against(COMPETITORS, "test_accuracy", accuracy.final, log=False),
    ),
    Claim(
        "6a", "Averaging the feedback lowers FDFA's variance",
        AT_START, RATIO.format("FDFA with α = 1 to FDFA with α < 1"), "greater", 1, True, _mean_ratio(FDFA_ONE, FDFA),
    ),
    Claim(
        "6b", "Without averaging (α = 1) FDFA is no less noisy than FG-A",
        AT_START, RATIO.format("FDFA with α = 1 to FG-A"), "greater", 1, True, _mean_ratio(FDFA_ONE, FG_A),
    ),
)  # fmt: skip
