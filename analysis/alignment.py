"""Alignment angles between estimates and backpropagation's gradient, with what is needed to trust them.

Cosines are averaged and then turned into degrees, never the other way round (arccos is concave, then convex: the mean of angles
is not the angle of the mean). An angle to a gradient that has vanished is an angle to rounding error: such rows are
counted, never averaged. A random direction in n dimensions makes 90° ∓ 1/√n rad with any other; `chance` gives the spread.

Late in training the gradients of two batches have little in common. Then even the gradient of a large reference set is mostly
noise, and an angle to it, or to one batch's gradient, says little of the gradient of the data. `share` says how much of the
reference is no noise, and angles whose reference is not `stable` are marked wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis import statistics
from fdfa_core.errors import InvalidInput
from fdfa_core.runs import schema

AGAINST = {"target": "cosine", "reference": "cosine_reference"}
STABLE = 0.5  # share of ‖∇‖² that is no noise: below it, the gradient of all data would itself be over 45° away from ∇


def degrees(cosine: ArrayLike) -> np.ndarray:
    """Return the angle in degrees of a cosine (rounding beyond ∓1 is cut).

    Examples:
        >>> from analysis.alignment import degrees
        >>> degrees([1.0, 0.5, 0.0]).round(1)
        array([ 0., 60., 90.])
    """
    return np.degrees(np.arccos(np.clip(np.asarray(cosine, float), -1, 1)))


def chance(size: ArrayLike) -> np.ndarray:
    """Return the standard deviation in degrees of the angle between random directions in `size` dimensions (about 90°).

    Examples:
        >>> from analysis.alignment import chance
        >>> f"{chance(10_000):.2f}"
        '0.57'
    """
    return np.degrees(1 / np.sqrt(np.asarray(size, float)))


def cosines(probes: pd.DataFrame, against: str = "target") -> pd.DataFrame:
    """Return the probes with the mean `cosine_to` over draws, its standard error, and `trusted`.

    Args:
        probes: rows of `probes.parquet`.
        against: "target": the gradient of the same batch (with `sampling = "given_batch"`), to which BP has angle 0;
            "reference": the gradient of the whole reference set, to which BP has the angle of its data noise.

    Returns:
        All rows; `trusted` is False where the reference vanished or the cosine is not a number (an estimate of exactly 0).

    Examples:
        >>> import pandas as pd
        >>> from analysis import alignment
        >>> probes = pd.DataFrame({"cosine_mean": [0.5], "cosine_m2": [0.01], "draws": [101]})
        >>> probes = probes.assign(valid=True, reference_norm=1.0)
        >>> alignment.cosines(probes)[["cosine_to", "cosine_to_se", "trusted"]].iloc[0].to_dict()
        {'cosine_to': 0.5, 'cosine_to_se': 0.01, 'trusted': True}
    """
    if against not in AGAINST:
        raise InvalidInput("against", against, " or ".join(f'"{name}"' for name in AGAINST))
    name = AGAINST[against]
    trusted = probes["valid"] & (probes["reference_norm"] > schema.VANISHED) & np.isfinite(probes[f"{name}_mean"])
    return probes.assign(
        cosine_to=probes[f"{name}_mean"],
        cosine_to_se=statistics.mean_se(probes[f"{name}_m2"], probes["draws"]),
        trusted=trusted,
    )


def share(stability: ArrayLike, batches: ArrayLike) -> np.ndarray:
    """Return the share of the reference's squared norm ‖∇‖² that is no noise, in [0, 1].

    ∇ is the mean of the gradients of B disjoint batches. Two of these have the mean cosine ρ (`reference_stability`): the share
    of a batch's squared norm that they have in common. Averaging divides the rest by B, so that the share of ‖∇‖² is
    Bρ/(1 + (B − 1)ρ) (Spearman 1910; Brown 1910). It is also cos² of the angle between ∇ and what B → ∞ would give.

    Args:
        stability: ρ. Below zero, or not a number (a batch's gradient is zero), it says that nothing is in common: 0.
        batches: B.

    Examples:
        >>> from analysis.alignment import share
        >>> share([0.0, 1 / 17, 0.25], 16).round(3)
        array([0.   , 0.5  , 0.842])
    """
    common, count = np.clip(np.nan_to_num(np.asarray(stability, float)), 0, 1), np.asarray(batches, float)
    return count * common / (1 + (count - 1) * common)


def references(probes: pd.DataFrame, by: Sequence[str], level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return `share` over seeds: how much of the reference is no noise, where it has not vanished.

    Returns:
        Columns of `statistics.over_seeds`.

    Examples:
        >>> import pandas as pd
        >>> from analysis import alignment
        >>> probes = pd.DataFrame({"step": 1, "seed": [0, 1], "reference_stability": [0.0, 1.0], "reference_batches": 16})
        >>> alignment.references(probes.assign(valid=True, reference_norm=1.0), ["step"])["estimate"].item()
        0.5
    """
    rows = probes[probes["valid"] & (probes["reference_norm"] > schema.VANISHED)]
    rows = rows.assign(share=share(rows["reference_stability"], rows["reference_batches"]))
    return statistics.over_seeds(rows, "share", by, bounds=(0, 1), level=level)


def mean_cosines(
    probes: pd.DataFrame, by: Sequence[str], against: str = "target", level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Return mean cosines with intervals over seeds, and with what tells whether their reference can be trusted.

    Returns:
        Columns of `angles`, with `estimate`, `low` and `high` as cosines.

    Examples:
        >>> import pandas as pd
        >>> from analysis import alignment
        >>> probes = pd.DataFrame({"estimator": "dfa", "seed": [0, 1], "cosine_mean": [0.5, 0.6]})
        >>> probes = probes.assign(cosine_m2=0.01, draws=101, valid=True, size=10_000)
        >>> probes = probes.assign(reference_norm=1.0, reference_stability=0.2, reference_batches=16)
        >>> alignment.mean_cosines(probes, ["estimator"])[["estimate", "share", "stable"]].round(2).iloc[0].to_dict()
        {'estimate': 0.55, 'share': 0.8, 'stable': True}
    """
    by = list(by)
    rows = cosines(probes, against)
    rows = rows.assign(share=share(rows["reference_stability"], rows["reference_batches"]))
    kept = rows[rows["trusted"]]
    if kept.empty:
        measures = ["estimate", "low", "high", "seeds", "interval", "untrusted", "of", "chance", "stability", "share", "stable"]
        return pd.DataFrame(columns=[*by, *measures])
    means = statistics.over_seeds(kept, "cosine_to", by, se="cosine_to_se", bounds=(-1, 1), level=level)
    extra = rows.groupby(by, sort=False, dropna=False).agg(
        untrusted=("trusted", lambda t: int((~t).sum())), of=("trusted", "size"), size=("size", "first")
    )
    reference = kept.fillna({"reference_stability": 0.0}).groupby(by, sort=False, dropna=False)
    reference = reference.agg(stability=("reference_stability", "mean"), share=("share", "mean"), lowest=("share", "min"))
    reference["stable"] = reference.pop("lowest") >= STABLE
    extra = extra.join(reference, how="inner").assign(chance=lambda f: chance(f["size"])).drop(columns="size")
    return means.merge(extra.reset_index(), on=by)


def angles(probes: pd.DataFrame, by: Sequence[str], against: str = "target", level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return angles in degrees with intervals over seeds.

    The bounds are those of the mean cosine, mapped through arccos (which turns them round).

    Returns:
        Columns of `statistics.over_seeds` (`estimate`, `low`, `high` in degrees), `untrusted` (rows left out, of
        `of`), `chance` (spread in degrees of a random direction's angle), `stability` (mean cosine between BP gradients of
        disjoint batches: near 0 the reference is noise, and no estimator can follow it), `share` (mean of `share`) and
        `stable`: whether the share is at least `STABLE` in every row, so that no row passes unseen in a mean. A group without
        any trusted row has no angle and is left out: `vanished` lists those.

    Examples:
        >>> import pandas as pd
        >>> from analysis import alignment
        >>> probes = pd.DataFrame({"estimator": "dfa", "seed": [0, 1], "cosine_mean": [0.5, 0.6]})
        >>> probes = probes.assign(cosine_m2=0.01, draws=101, valid=True, size=10_000)
        >>> probes = probes.assign(reference_norm=1.0, reference_stability=0.2, reference_batches=16)
        >>> alignment.angles(probes, ["estimator"])[["estimate", "low", "high", "chance"]].round(1).iloc[0].to_dict()
        {'estimate': 56.6, 'low': 0.0, 'high': 94.9, 'chance': 0.6}
    """
    means = mean_cosines(probes, by, against, level)
    means["estimate"], means["low"], means["high"] = (degrees(means[c]) for c in ("estimate", "high", "low"))
    return means


def vanished(probes: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the groups in which the reference vanished (‖τ‖ or ‖∇‖ below 1e-7), with `rows` such rows of `of`.

    Examples:
        >>> import pandas as pd
        >>> from analysis import alignment
        >>> probes = pd.DataFrame({"step": [1, 2], "valid": [True, False], "reference_norm": [1.0, 1e-9]})
        >>> alignment.vanished(probes, ["step"]).iloc[0].to_dict()
        {'step': 2, 'rows': 1, 'of': 1}
    """
    gone = ~(probes["valid"] & (probes["reference_norm"] > schema.VANISHED))
    counts = gone.groupby([probes[c] for c in by], sort=False, dropna=False).agg(rows="sum", of="size")
    return counts[counts["rows"] > 0].reset_index()
