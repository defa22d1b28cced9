"""Cosines of forward gradients to the gradient of their batch, against the law of a random direction's cosine."""

from __future__ import annotations

import pandas as pd

from analysis import options, select, statistics
from analysis.theory import laws


def against_dimension(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the mean cosine over seeds against the dimension that is perturbed, with the closed form.

    The dimension is the number of parameters for FG-W. For FG-A, with one hidden block and a batch of one, it is the number of
    units of the block. The law is the same: cos² of the mean of K directions in n dimensions is Beta(K/2, (n−1)/2), that of the
    projection on them Beta(K/2, (n−K)/2).

    Args:
        probes: rows of `probes.parquet` with ``sampling = "given_batch"``, batches of one sample and one hidden block.

    Returns:
        Columns of `statistics.over_seeds`, `method`, `tangents`, `combine`, `dimension`, `theory` (E cos), `spread` (standard
        deviation of cos), and `ratio`, `ratio_low`, `ratio_high`: measured / theory.
    """
    whole = probes[(probes["method"] == "fg-w") & (probes["level"] == "network")]
    whole = whole.assign(dimension=whole["size"])
    block = select.hidden_blocks(probes)
    block = block[block["method"] == "fg-a"]
    rows = pd.concat([whole, block.assign(dimension=block["width"])], ignore_index=True)
    rows["tangents"] = options.numbers(rows, "tangents").astype(int)
    rows["combine"] = options.column(rows, "combine")
    rows["se"] = statistics.mean_se(rows["cosine_m2"], rows["draws"])
    by = ["method", "tangents", "combine", "dimension"]
    curves = statistics.over_seeds(rows, "cosine_mean", by, se="se", bounds=(-1, 1))
    how = [(int(row.dimension), row.tangents, row.combine) for row in curves.itertuples()]
    theory = pd.Series([laws.expected_cosine(*key) for key in how])
    squares = pd.Series([laws.expected_squared_cosine(*key) for key in how])
    ratios = {f"ratio{name}": curves[column] / theory for name, column in _BOUNDS.items()}
    return curves.assign(theory=theory, spread=(squares - theory**2).clip(lower=0) ** 0.5, **ratios)


_BOUNDS = {"": "estimate", "_low": "low", "_high": "high"}
