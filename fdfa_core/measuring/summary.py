"""From the scalars of R draws to the columns of a table: moments, variance and bias with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fdfa_core.measuring.scalars import Scalars
from fdfa_core.runs.schema import MOMENTS, OWN_COLUMNS, VANISHED


def summarise(s: Scalars) -> dict[str, float]:
    """Return the columns that describe R draws: moments, variance and bias with their standard errors."""
    return summarise_all(s.values.numpy(force=True)[None], s.fixed.numpy(force=True)[None])[0]


def summarise_all(values: np.ndarray, fixed: np.ndarray) -> list[dict[str, float]]:
    """Return the columns of several groups of parameters, `Scalars` as arrays (groups, 6, R) and (groups, 4).

    In numpy and all at once, since a probe makes hundreds of rows of short arrays, and a call costs more than its work.
    """
    norm2, deviation, error, to_target, to_reference, along_bias = values.swapaxes(0, 1)
    target2, reference2, mean2, raw_bias2 = fixed.T
    count = norm2.shape[1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a gradient that is zero has no angle: NaN
        norm, target_norm, reference_norm = np.sqrt(norm2), np.sqrt(target2), np.sqrt(reference2)
        slope, cosine = to_target / target2[:, None], to_target / (norm * target_norm[:, None])
        cosine_reference = to_reference / (norm * reference_norm[:, None])
        quantities = np.stack([deviation, norm2, error, slope, cosine, cosine_reference], 1)  # (groups, quantities, R)
        mean = quantities.mean(2)
        centred = quantities - mean[..., None]
        square = centred**2
        moments = np.stack([mean, square.mean(2), (square * centred).mean(2), (square**2).mean(2)], 2)
        columns = dict(zip(MOMENTS, moments.reshape(len(moments), -1).T, strict=True))
        # Bessel's correction; the deviations share the mean, an effect of order 1/R on their spread that the factor covers too
        columns["variance"] = columns["deviation_mean"] * count / (count - 1)
        columns["variance_se"] = np.sqrt(columns["deviation_m2"] / (count - 1)) * count / (count - 1)
        columns["bias2"], columns["bias2_se"] = _unbiased_bias2(error, along_bias, raw_bias2)
        columns["mean_norm2"] = mean2
        columns["mean_cosine"] = np.where(mean2 * target2 > 0, columns["slope_mean"] * np.sqrt(target2 / mean2), np.nan)
    columns |= {"target_norm": target_norm, "reference_norm": reference_norm, "valid": target_norm >= VANISHED}
    return [dict(zip(columns, row, strict=True)) for row in zip(*(column.tolist() for column in columns.values()), strict=True)]


def own_columns(own: Mapping[str, Tensor] | None, names: Sequence[str]) -> dict[str, float]:
    """Return `OWN_COLUMNS` of a group of parameters.

    Args:
        own: per parameter ‖g_r − t_r‖² and ‖t_r‖² (2, R), t_r the gradient of the method's own objective; None for a method
            that follows the network's loss.
        names: of the group.
    """
    if own is None:
        return dict.fromkeys(OWN_COLUMNS, math.nan)
    error, norm2 = sum(own[name] for name in names).numpy(force=True)
    columns = (error.mean(), error.std(ddof=1) / math.sqrt(len(error)), math.sqrt(norm2.mean()))
    return dict(zip(OWN_COLUMNS, map(float, columns), strict=True))


def _unbiased_bias2(error: np.ndarray, bias: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate ‖E g − τ‖² of several groups from pairs of different draws, with the jackknife standard error.

    ‖ḡ − τ‖² exceeds it by variance/R; the mean of ⟨g_r − τ, g_s − τ⟩ over r ≠ s does not.

    Args:
        error: ‖g_r − τ‖² (groups, R).
        bias: ⟨g_r − τ, ḡ − τ⟩ (groups, R).
        raw: ‖ḡ − τ‖² (groups,).
    """
    count = error.shape[1]
    total, squares = raw * count**2, error.sum(1)
    estimate = (total - squares) / (count * (count - 1))
    if count < 3:
        return estimate, np.full_like(estimate, np.nan)
    pairs = total[:, None] - 2 * count * bias + error - (squares[:, None] - error)
    left_out = pairs / ((count - 1) * (count - 2))
    spread = ((left_out - left_out.mean(1, keepdims=True)) ** 2).sum(1) * (count - 1) / count
    return estimate, np.sqrt(spread)
