"""Variance of gradient estimates: total, relative to the gradient, per component, and the data noise beside it.

The total variance of an estimate g of a group of parameters (a block, say) is the trace of its covariance, E‖g − E g‖². With
``sampling = "given_batch"`` the draws share a batch, so it is the variance of only the perturbations (and of the feedback's
history); with "fresh_batches" it holds the data noise too.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis import options, select, statistics
from fdfa_core.errors import InvalidInput
from fdfa_core.runs import schema


def total(probes: pd.DataFrame, level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return the probes with the interval over draws of their total variance, `low` and `high` (log scale).

    Examples:
        >>> import pandas as pd
        >>> from analysis import variance
        >>> probes = pd.DataFrame({"variance": [4.0], "variance_se": [0.4], "draws": [100]})
        >>> variance.total(probes).round(2).iloc[0].to_dict()
        {'variance': 4.0, 'variance_se': 0.4, 'draws': 100.0, 'low': 3.28, 'high': 4.88}
    """
    probes = select.measured(probes, "variance", "variance_se")
    low, high = statistics.log_interval(probes["variance"], probes["variance_se"], probes["draws"], level)
    return probes.assign(low=low, high=high)


def normalised(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes with the noise-to-signal ratio `nsr` = total variance / ‖∇‖² and its standard error `nsr_se`.

    The ratio does not depend on the scale of loss and parameters. It is tied to the angle: cos² ≈ 1/(1 + nsr). Use it per
    block. The sum over the whole network hides a method behind its exact readout. The mean over components changes with width.

    Args:
        probes: rows of `probes.parquet`. ‖∇‖ is that of the whole reference set, the population that fresh batches are from.

    Returns:
        The rows whose gradient has not vanished.

    Examples:
        >>> import pandas as pd
        >>> from analysis import variance
        >>> probes = pd.DataFrame({"variance": [4.0], "variance_se": [0.4], "reference_norm": [2.0]})
        >>> variance.normalised(probes)[["nsr", "nsr_se"]].iloc[0].to_dict()
        {'nsr': 1.0, 'nsr_se': 0.1}
    """
    norm2 = probes["reference_norm"] ** 2
    probes = probes.assign(nsr=probes["variance"] / norm2, nsr_se=probes["variance_se"] / norm2)
    return select.measured(probes[norm2 > schema.VANISHED**2], "nsr", "nsr_se")


def per_component(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes with `component_variance`, the mean variance of a component, and its standard error.

    Not comparable across widths or parameterisations: a wider block has more and ever smaller entries.

    Examples:
        >>> import pandas as pd
        >>> from analysis import variance
        >>> probes = pd.DataFrame({"variance": [4.0], "variance_se": [0.4], "size": [8]})
        >>> variance.per_component(probes)["component_variance"].tolist()
        [0.5]
    """
    probes = select.measured(probes, "variance", "variance_se")
    return probes.assign(
        component_variance=probes["variance"] / probes["size"],
        component_variance_se=probes["variance_se"] / probes["size"],
    )


def data_noise(probes: pd.DataFrame) -> pd.DataFrame:
    """Return BP's data noise: total variance of the batch gradient over batches, absolute and as `nsr`.

    One row for each run, step and parameter group, as estimator "bp": what a perfect estimator would still have. It has no
    standard error over draws; its interval is that over seeds.

    Examples:
        >>> import pandas as pd
        >>> from analysis import variance
        >>> probes = pd.DataFrame({"run": ["a"], "step": [1], "reference_variance": [8.0], "reference_norm": [2.0]})
        >>> variance.data_noise(probes)[["estimator", "nsr"]].iloc[0].to_dict()
        {'estimator': 'bp', 'nsr': 2.0}
    """
    keys = [c for c in ("run", "step", "level", "block", "parameter") if c in probes]
    rows = options.relabelled(probes.drop_duplicates(keys), "bp")
    rows = rows.assign(variance=rows["reference_variance"], nsr=rows["reference_variance"] / rows["reference_norm"] ** 2)
    rows = rows.drop(columns=[c for c in ("variance_se", "draws") if c in rows])
    return select.measured(rows[rows["reference_norm"] > schema.VANISHED], "variance", "nsr")


def over_data_noise(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes with `ratio` = total variance / that of the batch gradient itself, and its standard error `ratio_se`.

    At 1 an estimator adds as much noise as the draw of the batch holds. The denominator is the same for all estimators of a
    probe, and says nothing of any one batch. ‖∇‖² would serve as well early in training; late, it is mostly noise itself,
    since the gradients of different batches have little in common. The row of BP's yardstick (`data_noise`) has the ratio 1.

    Returns:
        The rows whose batch gradients vary at all.

    Examples:
        >>> import pandas as pd
        >>> from analysis import variance
        >>> probes = pd.DataFrame({"variance": [4.0], "variance_se": [0.4], "reference_variance": [8.0]})
        >>> variance.over_data_noise(probes)[["ratio", "ratio_se"]].iloc[0].to_dict()
        {'ratio': 0.5, 'ratio_se': 0.05}
    """
    probes = probes[probes["reference_variance"] > schema.VANISHED**2]
    probes = probes.assign(ratio=probes["variance"] / probes["reference_variance"])
    if "variance_se" in probes:
        probes = probes.assign(ratio_se=probes["variance_se"] / probes["reference_variance"])
    return select.measured(probes, *(c for c in ("ratio", "ratio_se") if c in probes))


def components(draws: ArrayLike, level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return mean, variance and kurtosis of every component of raw gradient draws.

    The standard error of a component's variance uses its fourth moment, Var(s²) = (μ₄ − σ⁴(R−3)/(R−1))/R; products are heavy
    tailed, and a chi-square interval rejects a true variance at nominal 5 % in about 40 % of cases at any R.

    Args:
        draws: (R, …): R independent draws, e.g. a tensor of `logs.gradients`.
        level: coverage of the interval of the variance (log scale).

    Returns:
        One row per component (C order): `component`, `mean`, `mean_se`, `variance`, `variance_se`, `low`, `high`, `kurtosis`.

    Raises:
        InvalidInput: fewer than four draws, or values that are not finite.

    Examples:
        >>> import numpy as np
        >>> from analysis import variance
        >>> draws = np.random.default_rng(0).normal(size=(1000, 2))
        >>> variance.components(draws)[["variance", "variance_se"]].round(2)
           variance  variance_se
        0      1.04         0.05
        1      0.96         0.04
    """
    draws = np.asarray(draws, dtype=float)
    if draws.ndim < 1 or len(draws) < 4:
        raise InvalidInput("draws", f"an array of shape {draws.shape}", "four or more draws along the first dimension")
    if not np.isfinite(draws).all():
        raise InvalidInput("draws", "values that are not finite", "finite numbers")
    n = len(draws)
    draws = draws.reshape(n, -1)
    centred = draws - draws.mean(0)
    variance = (centred**2).sum(0) / (n - 1)
    m4 = (centred**4).mean(0)
    se = np.sqrt(np.maximum(m4 - variance**2 * (n - 3) / (n - 1), 0) / n)
    low, high = statistics.log_interval(variance, se, level=level)
    return pd.DataFrame(
        {
            "component": np.arange(draws.shape[1]),
            "mean": draws.mean(0),
            "mean_se": np.sqrt(variance / n),
            "variance": variance,
            "variance_se": se,
            "low": low,
            "high": high,
            "kurtosis": np.divide(m4, variance**2, out=np.zeros_like(m4), where=variance > 0),
        }
    )
