"""What the figures of noise against width, batch size and depth share."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import logs, select, statistics, variance
from analysis.rebuilt import closed_forms
from figures import style


def theory_line(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    """Draw the column `theory`, where there is one, as a thin dark line."""
    if "theory" in rows:
        rows = rows.sort_values(x)
        ax.plot(rows[x], rows["theory"], color=style.INK, linewidth=0.8, zorder=4)


def theory_handle() -> Line2D:
    """Return the legend entry of such lines."""
    return Line2D([], [], color=style.INK, linewidth=0.8, label="closed form")


def curves(log: logs.Logs, x: str, with_slopes: bool = True) -> pd.DataFrame:
    """Return NSR = total variance / ‖∇‖² per hidden block and estimator over seeds, with closed form and log–log slope in `x`.

    Args:
        log: an experiment with frozen weights.
        x: a column of runs.
        with_slopes: add `slope`, `slope_low`, `slope_high`, `slope_interval`.
    """
    noisy = variance.normalised(select.last_step(select.hidden_blocks(log.probes)))
    keys = ["block", "estimator"]
    found = statistics.over_seeds(noisy, "nsr", [*keys, x], se="nsr_se", log=True)
    found = closed_forms.with_theory(found, closed_forms.curve(log, [*keys, x]), [*keys, x])
    if not with_slopes:
        return found
    slopes = statistics.slopes(noisy, x, "nsr", keys).drop(columns=["seeds", "points", "curvature"])
    return found.merge(slopes.rename(columns={c: f"slope_{c}" for c in ("low", "high", "interval")}), on=keys)


def slope_text(row) -> str:
    """Return a row's slope with its interval."""
    interval = f" [{row.slope_low:.2f}, {row.slope_high:.2f}]" if row.slope_interval != "none" else ""
    return f"{row.slope:.2f}{interval}".replace("-0.00", "0.00").replace("-", "−")
