"""Do the estimators do what theory says? A suite that is fixed beforehand, and mistakes planted to see that it would notice.

`run` compares every case's measurements with `analysis.theory.predict`: bias, variance, its parts, the feedback's law, order of
use and update, independence of draws. `mutants.run` plants realistic mistakes one at a time; each must be noticed.

**Pre-registration.** The cases, their seeds and numbers of draws are fixed in `cases`. No number of draws depends on a result,
and no case is repeated. All p-values of a run are corrected together (Holm), at a family-wise false-alarm rate of 1 %.

**Power.** A quantity with relative standard error s is tested at |z| > z_crit = z(0.01/(2m)) for m rows (Holm's first step).
A mistake of size d is then noticed with probability 90 % if d ≥ (z_crit + 1.28) s, the row's `detectable`. With m ≈ 1,600,
z_crit ≈ 4.5, so 5 % needs s ≤ 0.0086, or n ≥ 1.4·10⁴ CV² draws of coefficient of variation CV. With CV ≈ 2 to 3 (products of
Gaussians have heavy tails) that is some 10⁵. The primary rows, mean and variance of all components that are random given the
batch (`block` −1), reach it in the full suite; rows of single blocks are secondary and state what they can tell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy import stats

from analysis import statistics
from fdfa_core.errors import InvalidInput
from fdfa_core.files import make_directory
from fdfa_core.workers import worker_processes
from verification.cases import PROFILES, Case, suite
from verification.checks import ALL, CHECKS

FAMILY_LEVEL = 0.01  # probability of any false alarm in a run
POWER = 0.9
SHIFT = 0.05  # relative mistake that the primary rows of the full suite notice with this power
PRIMARY = ("mean", "variance")
COLUMNS = {
    "case": "estimator, options, network, population and batch size",
    "estimator": "registered name",
    "network": "network, see `verification.cases`",
    "batch_size": "N",
    "quantity": "what is compared; `mean` and `feedback mean` as slopes on the predicted mean, so 1 is right",
    "block": "block; −1: all components that are random given the batch",
    "primary": "whether the sample size was chosen for this row",
    "predicted": "by `analysis.theory`",
    "measured": "",
    "se": "its standard error, from the spread of the draws",
    "low": "99 % interval of the measured value",
    "high": "",
    "z": "(log measured − log predicted)/se for variances",
    "p": "two-sided",
    "p_holm": "corrected for all rows",
    "detectable": "relative mistake that would be noticed with 90 % power",
    "draws": "independent draws or feedback chains",
    "verdict": "`pass` or `FAIL` (p_holm < 0.01)",
}


def run(profile: str = "full", jobs: int | None = None) -> pd.DataFrame:
    """Verify every case of a profile and return a row per compared quantity (columns: `COLUMNS`).

    Args:
        profile: "full" (minutes) or "light" (seconds).
        jobs: processes; None takes one per core.

    Raises:
        InvalidInput: unknown profile.
    """
    if profile not in PROFILES:
        raise InvalidInput("profile", profile, " or ".join(map(repr, PROFILES)))
    cases = suite(profile)
    dear_first = sorted(cases, key=lambda case: -case.draws * max(case.steps, 1))
    if jobs == 1:
        results = [rows(case) for case in dear_first]
    else:
        with worker_processes():
            results = Parallel(n_jobs=jobs or -1)(delayed(rows)(case) for case in dear_first)
    order = {case.label: i for i, case in enumerate(cases)}
    frame = pd.DataFrame([row for each in results for row in each])
    return judge(frame.sort_values("case", key=lambda label: label.map(order), kind="stable", ignore_index=True))


def rows(case: Case) -> list[dict[str, object]]:
    """Measure one case and return its rows, before correction for the others. One thread: cases run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compared = CHECKS[case.kind](case)
    finally:
        torch.set_num_threads(threads)
    named = {"case": case.label, "estimator": case.estimator, "network": case.network, "batch_size": case.batch_size}
    return [named | row for row in compared]


def judge(frame: pd.DataFrame) -> pd.DataFrame:
    """Add intervals, Holm's correction over all rows, what each could detect, and verdicts."""
    log = frame.quantity.str.contains("variance|part") & (frame.measured > 0)
    half = stats.norm.isf(0.005) * frame.se
    ratio = np.exp(half / frame.measured.where(log, 1.0))
    critical = stats.norm.isf(FAMILY_LEVEL / 2 / len(frame))
    relative = frame.se / frame.predicted.abs().where(frame.predicted != 0)
    p_holm = statistics.holm(frame.p)
    return frame.assign(
        primary=frame.quantity.isin(PRIMARY) & (frame.block == ALL),
        low=np.where(log, frame.measured / ratio, frame.measured - half),
        high=np.where(log, frame.measured * ratio, frame.measured + half),
        p_holm=p_holm,
        detectable=(critical + stats.norm.ppf(POWER)) * relative,
        verdict=np.where(p_holm < FAMILY_LEVEL, "FAIL", "pass"),
    )[list(COLUMNS)]


def passed(frame: pd.DataFrame) -> bool:
    """Return whether every row of a judged frame passes."""
    return bool((frame.verdict == "pass").all())


def write(frame: pd.DataFrame, out_dir: str | Path) -> list[Path]:
    """Write verification.csv (all rows) and verification.md (a summary, and every failed row); return their paths."""
    out = Path(out_dir)
    make_directory(out)
    table, report = out / "verification.csv", out / "verification.md"
    frame.to_csv(table, index=False)
    report.write_text(_markdown(frame), encoding="utf-8")
    return [table, report]


def _markdown(frame: pd.DataFrame) -> str:
    random = frame[np.isfinite(frame.z) & (frame.se > 0)]
    single = random[~random.quantity.str.startswith("component")]
    failed = frame[frame.verdict == "FAIL"]
    primary = frame[frame.primary & (frame.se > 0)]
    lines = [
        "# Verification: estimators against closed-form theory",
        "",
        f"**{'All rows pass' if failed.empty else f'{len(failed)} rows FAIL'}**: {len(frame)} comparisons in "
        f"{frame.case.nunique()} cases, family-wise false-alarm rate {FAMILY_LEVEL:.0%} (Holm), seeds and sample sizes fixed.",
        "",
        f"- smallest corrected p: {frame.p_holm.min():.2g}; z of {len(single)} single numbers: root mean square "
        f"{np.sqrt((single.z**2).mean()):.2f} (1 is expected), largest {single.z.abs().max():.2f}",
        f"- relative mistake that a primary row notices with {POWER:.0%} power: median {primary.detectable.median():.1%}, "
        f"largest {primary.detectable.max():.1%}",
        "",
        "## By estimator and quantity",
        "",
        _summary(frame).to_markdown(index=False),
        "",
        "## Failed rows",
        "",
        "none" if failed.empty else failed.to_markdown(index=False, floatfmt=".4g"),
        "",
        "## Columns of verification.csv",
        "",
        pd.DataFrame(COLUMNS.items(), columns=["column", "meaning"]).to_markdown(index=False),
        "",
    ]
    return "\n".join(lines)


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    groups = frame.assign(failed=frame.verdict == "FAIL", off=frame.z.abs()).groupby(["estimator", "quantity"], sort=False)
    summary = groups.agg(
        rows=("p", "size"), largest_z=("off", "max"), smallest_p_holm=("p_holm", "min"), failed=("failed", "sum")
    )
    return summary.reset_index().round({"largest_z": 2, "smallest_p_holm": 3})
