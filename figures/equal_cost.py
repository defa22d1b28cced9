"""Train loss and test accuracy at equal cost: on the operations that every method has spent."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis import effort, logs
from figures import _labels, style

EXPERIMENTS = ("convergence",)
PANELS = {"train_loss": "train loss (reference subset)", "test_accuracy": "test accuracy (logit scale)"}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return long rows over seeds, by `quantity` and `kind` (`effort.at_equal_operations`).

    Frozen hidden layers are left out: they cost a third, and would cut the range that is common to those that learn.
    """
    (log,) = logs_of.values()
    learning = log.runs.loc[log.runs["method"] != "frozen", "run"]
    metrics = log.metrics[log.metrics["run"].isin(learning)]
    parts = [effort.at_equal_operations(metrics, log.runs, quantity).assign(quantity=quantity) for quantity in PANELS]
    return pd.concat(parts, ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw curves against operations, and below them where every method stands at the end of the common range."""
    labels = style.ordered(frame["trained_with"])
    fig, axes = style.panels([*PANELS.values(), "at the end of that range", ""], columns=2, height=2.9)
    shade = 0.16 if len(labels) < 7 else 0.08
    for ax, below, quantity in zip(axes, axes[2:], PANELS, strict=False):
        rows = frame[frame["quantity"] == quantity]
        curves, ends = rows[rows["kind"] == "curve"], rows[rows["kind"] == "end"]
        for label in labels:
            curve = curves[curves["trained_with"] == label]
            style.band(ax, curve, "flops", label, shade, markevery=style.marks(curve), markersize=3.5)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_xlabel("operations spent (FLOP; M, G, T: 10⁶, 10⁹, 10¹²)")
        _dots(below, ends, labels, named=quantity == "train_loss")
        if quantity == "train_loss":
            for axis, set_scale in ((ax.yaxis, ax.set_yscale), (below.xaxis, below.set_xscale)):
                set_scale("log")
                style.plain_log(axis)
            below.set_xlabel("train loss")
        else:
            style.accuracy_axis(ax, rows["estimate"])
            style.accuracy_axis(below, ends["estimate"], "x")
            below.set_xlabel("test accuracy")
    spent = frame[frame["kind"] == "end"]["spent"]
    note = f"{style.seeds_text(frame)}; the range holds {100 * spent.min():.0f} to {100 * spent.max():.0f} % of a run; "
    style.legend(fig, [style.handle(label) for label in labels], note + "straight lines between evaluations")
    return fig


def _dots(ax: Axes, rows: pd.DataFrame, labels: list[str], named: bool) -> None:
    """Draw a line a method, from the top in the order of the legend, with its interval."""
    for place, label in enumerate(labels):
        how = style.look(label)
        for row in rows[rows["trained_with"] == label].itertuples():
            ax.hlines(place, row.low, row.high, color=how.color, linewidth=1.2)
            ax.plot(row.estimate, place, **how.line(linestyle="none"))
    ax.set(yticks=range(len(labels)), ylim=(len(labels) - 0.5, -0.5))
    ax.set_yticklabels([style.look(label).name for label in labels] if named else [])
