"""Bias of gradient estimates, and mean squared error = bias² + variance, corrected for the noise of finitely many draws.

The mean ḡ of R draws scatters about E g with total variance V/R, so ‖ḡ − τ‖² overstates ‖E g − τ‖² by V/R: with R = 32 and a
noise-to-signal ratio of 1000 an unbiased estimator would seem to be biased by five times the gradient's norm. `bias2` in
the logs has V/R taken off. It is then unbiased, and negative in half of all cases where there is no bias: do not clip it
before averaging. The mean squared error needs no correction, and `mse` = `bias2` + `variance` holds exactly, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import select as logs
from analysis import statistics

QUANTITIES = ("variance", "bias2", "mse")


def norm(probes: pd.DataFrame, level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return the probes with the bias norm ‖E g − τ‖ and its ratio to ‖τ‖, each with an interval over draws.

    Returns:
        Columns `bias`, `bias_low`, `bias_high` (square roots of bias² and of its bounds, negative ones taken as 0),
        `relative_bias`, `relative_bias_low`, `relative_bias_high` (÷ ‖τ‖; rows with a vanished τ are left out) and
        `detected`: the interval of bias² lies above 0.

    Examples:
        >>> import pandas as pd
        >>> from analysis import bias
        >>> probes = pd.DataFrame({"bias2": [4.0], "bias2_se": [0.4], "draws": [100], "target_norm": [2.0], "valid": [True]})
        >>> bias.norm(probes)[["bias", "relative_bias", "detected"]].iloc[0].to_dict()
        {'bias': 2.0, 'relative_bias': 1.0, 'detected': True}
    """
    probes = logs.measured(probes[probes["valid"]], "bias2", "bias2_se")
    low, high = statistics.linear_interval(probes["bias2"], probes["bias2_se"], probes["draws"], level)
    bounds = {"bias": probes["bias2"], "bias_low": low, "bias_high": high}
    out = {name: np.sqrt(np.maximum(bias2, 0)) for name, bias2 in bounds.items()}
    relative = {f"relative_{name}": value / probes["target_norm"] for name, value in out.items()}
    return probes.assign(**out, **relative, detected=low > 0)


def mean_direction(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes with `direction_cosine` = cos(E g, τ), corrected for noise, and `resolved`.

    The logged `mean_cosine` = cos(ḡ, τ) is pulled towards 0 because ‖ḡ‖² overstates ‖E g‖² by V/R; here that is taken off.
    Where the corrected ‖E g‖² is not clearly positive (below a tenth of ‖ḡ‖²) these draws do not resolve the direction of the
    mean: `resolved` is False and the logged value stands.

    Examples:
        >>> import pandas as pd
        >>> from analysis import bias
        >>> probes = pd.DataFrame({"mean_cosine": [0.5], "mean_norm2": [2.0], "variance": [100.0]})
        >>> probes = probes.assign(draws=100, valid=True)
        >>> bias.mean_direction(probes)[["direction_cosine", "resolved"]].round(3).iloc[0].to_dict()
        {'direction_cosine': 0.707, 'resolved': True}
    """
    probes = logs.measured(probes[probes["valid"]], "mean_cosine", "mean_norm2", "variance")
    share = 1 - probes["variance"] / probes["draws"] / probes["mean_norm2"]
    resolved = share > 0.1
    cosine = (probes["mean_cosine"] / np.sqrt(share.where(resolved, 1.0))).clip(-1, 1)
    return probes.assign(direction_cosine=cosine, resolved=resolved)


def split(probes: pd.DataFrame, relative: bool = True) -> pd.DataFrame:
    """Return mean squared error, squared bias and variance as long rows: `quantity`, `value`, `se` (over draws).

    Args:
        probes: rows of `probes.parquet`.
        relative: divide by ‖τ‖² (rows with a vanished τ are left out).

    Examples:
        >>> import pandas as pd
        >>> from analysis import bias
        >>> probes = pd.DataFrame({"variance": [3.0], "variance_se": [0.3], "bias2": [1.0], "bias2_se": [0.2], "draws": [101]})
        >>> probes = probes.assign(error_mean=4.0, error_m2=16.0, target_norm=1.0, valid=True)
        >>> bias.split(probes)[["quantity", "value", "se"]]
           quantity  value   se
        0  variance    3.0  0.3
        1     bias2    1.0  0.2
        2       mse    4.0  0.4
    """
    moments = ["variance", "variance_se", "bias2", "bias2_se", "error_mean", "error_m2"]
    probes = logs.measured(probes[probes["valid"]] if relative else probes, *moments)
    scale = probes["target_norm"] ** 2 if relative else 1.0
    values = {
        "variance": (probes["variance"], probes["variance_se"]),
        "bias2": (probes["bias2"], probes["bias2_se"]),
        "mse": (probes["error_mean"], statistics.mean_se(probes["error_m2"], probes["draws"])),
    }
    keys = logs.keys(probes)
    return pd.concat(
        [keys.assign(quantity=name, value=value / scale, se=se / scale) for name, (value, se) in values.items()],
        ignore_index=True,
    )


def split_over_seeds(
    probes: pd.DataFrame, by: Sequence[str], relative: bool = True, level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Return mean squared error, squared bias and variance with intervals over seeds.

    Variance and mean squared error are averaged on the logarithmic scale; squared bias, which may come out negative, on the
    linear one.

    Returns:
        Columns of `statistics.over_seeds`, `quantity`, and `detected`: the interval lies above 0 (for variance and mean
        squared error: the estimate is positive).

    Examples:
        >>> import pandas as pd
        >>> from analysis import bias
        >>> probes = pd.DataFrame({"estimator": "fdfa", "seed": [0, 1], "variance": [3.0, 2.0], "bias2": [1.0, 1.2]})
        >>> probes = probes.assign(variance_se=0.3, bias2_se=0.2, error_mean=4.0, error_m2=16.0)
        >>> probes = probes.assign(draws=101, target_norm=1.0, valid=True)
        >>> bias.split_over_seeds(probes, ["estimator"])[["quantity", "estimate", "detected"]].round(2)
           quantity  estimate  detected
        0  variance      2.45      True
        1     bias2      1.10     False
        2       mse      4.00      True
    """
    long = split(probes, relative)
    parts = []
    for quantity in QUANTITIES:
        log = quantity != "bias2"
        part = statistics.over_seeds(long[long["quantity"] == quantity], "value", by, se="se", log=log, level=level)
        parts.append(part.assign(quantity=quantity, detected=part["estimate" if log else "low"] > 0))
    return pd.concat(parts, ignore_index=True)
