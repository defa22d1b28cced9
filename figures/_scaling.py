"""What the figures of noise against width, batch size and depth share."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def draw_noise(frame: pd.DataFrame, x: str, xlabel: str, height: float, suffix: dict[str, str]) -> Figure:
    """Draw noise against `x`: one panel per hidden block, with the fitted slope at the end of each line.

    Args:
        frame: what `curves` returns with slopes, and the seeds behind it.
        x: a column, drawn on a logarithmic axis.
        xlabel: its name on the axis.
        height: of a panel, in inches.
        suffix: label of an estimator → what the legend adds to its name.
    """
    blocks = sorted(frame["block"].unique())
    labels = style.ordered(frame["estimator"])
    fig, axes = style.panels([style.block_title(b, len(blocks)) for b in blocks], columns=2, height=height)
    for ax, block in zip(axes, blocks, strict=True):
        rows = frame[frame["block"] == block]
        ax.set(xscale="log", xlabel=xlabel)
        style.log_limits([ax], rows)
        for label in labels:
            curve = rows[rows["estimator"] == label]
            style.bars(ax, curve, x, label)
            theory_line(ax, curve, x)
        style.ticks(ax, rows[x])
        ends = rows[rows[x] == rows.groupby("estimator")[x].transform("max")]
        texts = [(r.estimate, slope_text(r), style.look(r.estimator).color) for r in ends.itertuples()]
        style.end_labels(ax, texts, "slope [95 %]")
    axes[0].set_ylabel("total variance ÷ ‖∇ of the block‖²")
    handles = [style.handle(label, label=style.look(label).name + suffix.get(label, "")) for label in labels]
    handles += [theory_handle()] if "theory" in frame else []
    style.legend(fig, handles, style.seeds_text(frame, "bars and slopes"))
    return fig


def curves(log: logs.Logs, x: str, with_slopes: bool = True) -> pd.DataFrame:
    """Return NSR = total variance / ‖∇‖² per hidden block and estimator over seeds, with closed form and log–log slope in `x`.

    Args:
        log: an experiment with frozen weights.
        x: a column of runs.
        with_slopes: add `slope`, `slope_low`, `slope_high`, `slope_interval`.
    """
    noisy = variance.normalised(select.last_step(select.hidden_blocks(log.probes)))
    keys = ["block", "estimator"]
    rows = statistics.over_seeds(noisy, "nsr", [*keys, x], se="nsr_se", log=True)
    rows = closed_forms.with_theory(rows, closed_forms.curve(log, [*keys, x]), [*keys, x])
    if not with_slopes:
        return rows
    slopes = statistics.slopes(noisy, x, "nsr", keys).drop(columns=["seeds", "points", "curvature"])
    return rows.merge(slopes.rename(columns={c: f"slope_{c}" for c in ("low", "high", "interval")}), on=keys)


def slope_text(row) -> str:
    """Return a row's slope with its interval."""
    interval = f" [{row.slope_low:.2f}, {row.slope_high:.2f}]" if row.slope_interval != "none" else ""
    return f"{row.slope:.2f}{interval}".replace("-0.00", "0.00").replace("-", "−")
