"""What to look at, block by block, before an angle or an accuracy is believed.

Angles say nothing where activations grow without bound, where the true gradient has sunk to its rounding floor, or where an
estimate points elsewhere on every batch. Protocols for feedback alignment ask for all of these beside the angle, and for an
accuracy above that of frozen hidden layers (arXiv 2606.21126, known to us through its authors' public notes).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import select, statistics
from fdfa_core.errors import InvalidInput
from fdfa_core.runs import schema

FLOOR = schema.VANISHED  # of the norm of a block's true gradient: nothing can be aligned with what is smaller
GROWTHS = ("growth", "amplification")


def activations(probes: pd.DataFrame) -> pd.DataFrame:
    """Return how large the activations h_l of every hidden block are, once for each run, step and block.

    The root mean square over samples and units stands for ‖h_l‖: a ratio of norms at equal width is the same number, and
    blocks of unequal width can be compared too.

    Args:
        probes: rows of `probes.parquet`. Those of logs that were made before `activation_rms` was measured give no row.

    Returns:
        One row per run, step and hidden block, without what the probes say of estimators: `activation_rms`; `growth`, the
        same over that block's at the first probe of the run; and `amplification`, the same over that of the hidden block
        below at the same step. A ratio is NaN where there is nothing to divide by: in the first hidden block, above a block
        without a row of its own (one that has no parameters), and where the divisor is zero.

    Raises:
        InvalidInput: the frame lacks a column.

    Examples:
        >>> import pandas as pd
        >>> from analysis import layers
        >>> probes = pd.DataFrame({"run": "a", "step": [0, 0, 9, 9], "block": [0, 1, 0, 1]})
        >>> probes = probes.assign(level="block", role="hidden", activation_rms=[1.0, 2.0, 3.0, 24.0])
        >>> layers.activations(probes)[["growth", "amplification"]].values.tolist()
        [[1.0, nan], [1.0, 2.0], [3.0, nan], [12.0, 8.0]]
    """
    rows = select.measured(select.hidden_blocks(probes), "activation_rms").drop_duplicates(["run", "step", "block"])
    rows = rows[[c for c in select.keys(rows) if c not in _OF_ESTIMATORS] + ["activation_rms"]]
    first = rows.loc[rows.groupby(["run", "block"])["step"].idxmin()].set_index(["run", "block"])["activation_rms"]
    each = rows.set_index(["run", "step", "block"])["activation_rms"]
    divisors = {
        "growth": first.reindex(pd.MultiIndex.from_frame(rows[["run", "block"]])),
        "amplification": each.reindex(pd.MultiIndex.from_frame(rows.assign(block=rows["block"] - 1)[["run", "step", "block"]])),
    }
    ratios = {name: rows["activation_rms"] / divisor.where(divisor > 0).to_numpy() for name, divisor in divisors.items()}
    return rows.assign(**ratios).reset_index(drop=True)


_OF_ESTIMATORS = {"estimator", "method", "options", "source", "sampling", "draws", "size", "valid"}


def growth(
    probes: pd.DataFrame, by: Sequence[str], *, last: bool = False, level: float = statistics.LEVEL
) -> pd.DataFrame:
    """Return `growth` and `amplification` (see `activations`) over seeds: geometric means, since both are ratios.

    Args:
        probes: rows of `probes.parquet`, the first probe of every run among them.
        by: columns that name a group.
        last: take the last probe of every run alone.
        level: coverage of the t-intervals.

    Returns:
        Columns of `statistics.over_seeds` and `quantity`; no row where a ratio does not exist.

    Examples:
        >>> import pandas as pd
        >>> from analysis import layers
        >>> probes = pd.DataFrame({"run": list("aabb"), "seed": [0, 0, 1, 1], "step": [0, 9, 0, 9], "block": 0})
        >>> probes = probes.assign(level="block", role="hidden", activation_rms=[1.0, 2.0, 1.0, 8.0])
        >>> layers.growth(probes, ["block", "step"])["estimate"].round(6).tolist()
        [1.0, 4.0]
        >>> layers.growth(probes, ["block"], last=True)["estimate"].round(6).tolist()
        [4.0]
    """
    rows = activations(probes)
    rows = select.last_step(rows) if last else rows
    parts = [
        statistics.over_seeds(rows[np.isfinite(rows[name])], name, by, log=True, level=level).assign(quantity=name)
        for name in GROWTHS
    ]
    return pd.concat(parts, ignore_index=True)


def agreement(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the probes with `agreement`: how much of an estimate's direction is the same on other batches.

    It is ⟨g_r, g_s⟩, averaged over all pairs of different draws r ≠ s, over the mean of ‖g_r‖². With `sampling =
    "fresh_batches"` every draw has a batch of its own, and with S = Σ ‖g_r‖²

        Σ_{r≠s} ⟨g_r, g_s⟩ = ‖Σ g_r‖² − S,
        agreement = (R ‖ḡ‖² ÷ mean ‖g‖² − 1) ÷ (R − 1) = 1 − variance ÷ mean ‖g‖²,

    with the columns `variance` (unbiased) and `norm2_mean`. Its numerator is an unbiased estimate of ‖E g‖² and its denominator
    one of E‖g‖². Where all draws are equally long it *is* the mean cosine between estimates on two batches; elsewhere longer
    draws count for more. It is 1 if every batch gives the same estimate, and −1/(R − 1) at the least.

    What it is not: batches are drawn with replacement from the M samples of the reference set, and are not disjoint as those of
    `reference_stability` are. Two batches of N samples share some, so that a mean over samples without any signal has an
    agreement of about N/(N + M), not 0. It holds the noise of perturbations beside that of the data. For shadows that learn,
    each draw has a state of its own, with one history of batches for all.

    Args:
        probes: rows of `probes.parquet`, all with ``sampling = "fresh_batches"``.

    Returns:
        The rows whose estimates are finite and not all zero.

    Raises:
        InvalidInput: a column is missing, or draws that share a batch: what they agree on is the batch.

    Examples:
        >>> import pandas as pd
        >>> from analysis import layers
        >>> probes = pd.DataFrame({"sampling": ["fresh_batches"], "variance": [3.0], "norm2_mean": [4.0]})
        >>> layers.agreement(probes)["agreement"].tolist()
        [0.25]
    """
    rows = select.measured(probes, "variance", "norm2_mean")
    if len(other := rows.loc[rows["sampling"] != "fresh_batches", "sampling"]):
        remedy = 'Draws that share a batch say nothing of others. Set sampling = "fresh_batches" in [probe], and run it again.'
        raise InvalidInput("probes: sampling", other.iloc[0], '"fresh_batches"', remedy)
    rows = rows[rows["norm2_mean"] > 0]
    return rows.assign(agreement=1 - rows["variance"] / rows["norm2_mean"])


def agreements(probes: pd.DataFrame, by: Sequence[str], level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return `agreement` over seeds, with t-intervals; one seed has none, since its draws' own scatter is not logged.

    Returns:
        Columns of `statistics.over_seeds`.

    Examples:
        >>> import pandas as pd
        >>> from analysis import layers
        >>> probes = pd.DataFrame({"estimator": "dfa", "seed": [0, 1], "variance": [3.0, 2.0], "norm2_mean": 4.0})
        >>> layers.agreements(probes.assign(sampling="fresh_batches"), ["estimator"])["estimate"].tolist()
        [0.375]
    """
    return statistics.over_seeds(agreement(probes), "agreement", by, bounds=(-1, 1), level=level)


def reference_norms(probes: pd.DataFrame, by: Sequence[str], level: float = statistics.LEVEL) -> pd.DataFrame:
    """Return ‖∇‖, the norm of the reference gradient, over seeds (geometric mean): below `FLOOR` it is rounding error.

    Returns:
        Columns of `statistics.over_seeds`.

    Examples:
        >>> import pandas as pd
        >>> from analysis import layers
        >>> probes = pd.DataFrame({"block": 0, "seed": [0, 1], "reference_norm": [1e-3, 1e-9]})
        >>> f"{layers.reference_norms(probes, ['block'])['estimate'].item():.0e}"
        '1e-06'
    """
    return statistics.over_seeds(select.measured(probes, "reference_norm"), "reference_norm", by, log=True, level=level)
