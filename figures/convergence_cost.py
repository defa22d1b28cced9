"""Train loss and test accuracy against what they cost: floating-point operations, and seconds."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from analysis import effort, logs
from figures import _labels, style

EXPERIMENTS = ("convergence",)
PANELS = {"train_loss": "train loss (reference subset)", "test_accuracy": "test accuracy (logit scale)"}
AXES = {
    "flops": "FLOP of products and convolutions (G = 10⁹, T = 10¹²)",
    "seconds": "time of the training steps, as logged (s)",
}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return curves of the finished runs over seeds, each point with the operations and seconds it took."""
    (log,) = logs_of.values()
    return pd.concat([effort.curves(log, quantity).assign(quantity=quantity) for quantity in PANELS], ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one row of panels per quantity and one column per cost."""
    titles = [title if effort == "flops" else "" for title in PANELS.values() for effort in AXES]
    fig, axes = style.panels(titles, columns=2, height=2.5, sharey="row")
    labels = style.ordered(frame["trained_with"])
    for ax, (quantity, cost) in zip(axes, [(q, c) for q in PANELS for c in AXES], strict=True):
        rows = frame[(frame["quantity"] == quantity) & (frame[cost] > 0)]
        for label in labels:
            curve = rows[rows["trained_with"] == label]
            style.band(ax, curve, cost, label, markevery=style.marks(curve), markersize=3.5)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(EngFormatter(sep="") if cost == "flops" else "{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        if quantity == "train_loss":
            ax.set_yscale("log")
            style.plain_log(ax.yaxis)
        else:
            style.accuracy_axis(ax, rows["estimate"])
            ax.set_xlabel(AXES[cost])
    handles = [style.handle(label) for label in labels]
    note = style.seeds_text(frame) + "; seconds depend on what else the machine did, operations do not"
    style.legend(fig, handles, note)
    return fig
