"""How often an update points downhill: the sign of an estimate's inner product with the gradient of the reference set.

Logs have the cosine of every probe's estimate with ∇, averaged over the probe's draws, and not that of every draw. Where the
draws are alike (feedback that is given, as in training) the sign is that of the step itself. Where they differ (forward
gradients, GrAPE) it is that of their mean, and that of a single step is closer to a coin's; `draws` is then above 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from analysis import alignment, select, statistics
from fdfa_core.errors import InvalidInput

WINDOWS = 3  # of training, each with as many probed steps
ALIKE = 1e-12  # variance of a cosine over draws that is rounding


def binomial_interval(shares: ArrayLike, level: float = statistics.LEVEL) -> tuple[float, float, float]:
    """Return the mean of shares in [0, 1], one a seed, and its interval, in which a seed counts as one toss of a coin.

    The probes of a seed are dependent, so that their number says little. The spread of a share is largest where it is 0 or 1:
    then its seed is one toss, and the interval that of Clopper and Pearson (1934). Otherwise it is wider than needed.

    Examples:
        >>> from analysis.descent import binomial_interval
        >>> [round(v, 2) for v in binomial_interval([1.0, 1.0, 1.0])]
        [1.0, 0.29, 1.0]
    """
    shares = np.asarray(shares, float)
    hits, count, tail = shares.sum(), shares.size, (1 - level) / 2
    low = stats.beta.ppf(tail, hits, count - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, count - hits) if hits < count else 1.0
    return float(shares.mean()), float(low), float(high)


def frequency(probes: pd.DataFrame, level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return how often estimates have a positive inner product with ∇: a short step against them then lowers its loss.

    Counted are the probes of each hidden block, and of all hidden blocks together where logs have these rows. Training is cut
    into `WINDOWS` of as many probed steps each.

    Args:
        probes: rows of `probes.parquet`, as `Logs.probes` has them.
        level: coverage of the intervals.

    Returns:
        A row per `estimator`, `level`, `block` (−1 for all together) and `window` (0, 1, …), with its steps `first` and `last`;
        `estimate`, `low`, `high` of the share of probes (`binomial_interval`), `seeds`, `interval` ("binomial"); `probes`
        (counted) and `left_out` (a reference that has vanished, or an estimate of zero, which points nowhere); `draws`
        behind each sign, 1 where all are alike; and `stable` as in `alignment.angles`.

    Raises:
        InvalidInput: there is no probe, or none with a direction.

    Examples:
        >>> import pandas as pd
        >>> from analysis import descent
        >>> rows = pd.DataFrame({"step": [1, 2, 4], "cosine_reference_mean": [0.1, 0.2, -0.1], "seed": 0, "estimator": "dfa"})
        >>> rows = rows.assign(level="block", role="hidden", block=0, valid=True, reference_norm=1.0, draws=16)
        >>> rows = rows.assign(cosine_reference_m2=0.0, reference_stability=0.5, reference_batches=16)
        >>> descent.frequency(rows)["estimate"].tolist()
        [1.0, 1.0, 0.0]
    """
    if probes.empty:
        raise InvalidInput("logs", "no probes", "runs of an experiment with a table [probe]")
    rows = alignment.cosines(probes[probes["role"].eq("hidden") & probes["level"].isin(["block", "hidden"])], "reference")
    steps = np.array_split(np.sort(rows["step"].unique()), min(WINDOWS, rows["step"].nunique()))
    window_of = {step: window for window, group in enumerate(steps) for step in group}
    rows = rows.assign(
        window=rows["step"].map(window_of),
        downhill=rows["cosine_to"] > 0,
        signs=rows["draws"].where(rows["cosine_reference_m2"] > ALIKE, 1),
        stable=alignment.share(rows["reference_stability"], rows["reference_batches"]) >= alignment.STABLE,
    )
    if not rows["trusted"].any():
        raise InvalidInput("logs", "no probe of an estimate and a reference that are not zero", "runs that have not collapsed")
    select.measured(rows[rows["trusted"]], "cosine_reference_mean", "cosine_reference_m2")
    found = []
    for key, group in rows.groupby(["estimator", "level", "block", "window"], sort=False):
        kept = group[group["trusted"]]
        if len(kept):
            shares = kept.groupby("seed")["downhill"].mean()
            window = steps[key[-1]]
            counts = [len(shares), "binomial", len(kept), len(group) - len(kept)]
            about = [int(kept["signs"].max()), bool(kept["stable"].all())]
            found.append([*key, int(window[0]), int(window[-1]), *binomial_interval(shares, level), *counts, *about])
    columns = ["estimator", "level", "block", "window", "first", "last", "estimate", "low", "high"]
    return pd.DataFrame(found, columns=[*columns, "seeds", "interval", "probes", "left_out", "draws", "stable"])
