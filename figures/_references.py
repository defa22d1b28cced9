"""How angles to an unstable reference are told from others: thin and pale, in every figure that shows angles.

Hollow markers and dashes already tell methods apart, so that they cannot say it.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import style

FAINT = {"linewidth": 0.7, "markersize": 2, "alpha": 0.55}
SHARE = "share of ‖∇‖² that is no noise"  # `analysis.alignment.share`


def curve(ax: Axes, rows: pd.DataFrame, x: str, label: str, shade: float | None = 0.16, **line) -> None:
    """Draw a curve of angles with their intervals; where the reference is not `stable` it is thin and pale.

    Args:
        ax: axes to draw on.
        rows: columns `x`, `estimate`, `low`, `high`, `interval`, `stable`.
        x: name of the column along the axis.
        label: of the estimator.
        shade: opacity of the band, or None for bars.
        **line: as for `Axes.plot`.
    """
    rows, how = rows.sort_values(x), style.look(label)
    ax.plot(rows[x], rows["estimate"], **how.line(**line | FAINT))
    ax.plot(rows[x], rows["estimate"].where(rows["stable"].astype(bool)), **how.line(**line))
    if shade is None:
        ax.vlines(rows[x], rows["low"], rows["high"], color=how.color, linewidth=0.7)
    elif (rows["interval"] != "none").any():
        ax.fill_between(rows[x], rows["low"], rows["high"], color=how.color, alpha=shade, linewidth=0)


def handles(frame: pd.DataFrame) -> list[Line2D]:
    """Return the entry of the legend that says what thin and pale means, if anything in the frame is."""
    if frame["stable"].astype(bool).all():
        return []
    look = {"color": style.INK, "marker": "o"} | FAINT
    return [Line2D([], [], label="thin and pale: ∇ is not stable (in some seed over half of ‖∇‖² is noise)", **look)]
