"""Train loss and test accuracy against what they cost: floating-point operations, seconds, and memory."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis import effort, logs, options
from figures import _labels, style

EXPERIMENTS = ("convergence",)
PANELS = {"train_loss": "train loss (reference subset)", "test_accuracy": "test accuracy (logit scale)"}
AXES = {
    "flops": "FLOP of products and\nconvolutions (G = 10⁹, T = 10¹²)",
    "seconds": "training steps, as logged (s)",
    "memory": "peak memory of a step (MB);\nvalues at the end",
}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return curves of the finished runs over seeds, each point with the operations, seconds and bytes that it took.

    BP with checkpoints has the curves of BP, its own operations and memory, and no seconds.
    """
    (log,) = logs_of.values()
    log = effort.with_checkpoints(log)
    frame = pd.concat([effort.curves(log, quantity).assign(quantity=quantity) for quantity in PANELS], ignore_index=True)
    return options.described(frame, options.meanings([log.runs]))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one row of panels per quantity and one column per cost; memory does not add up, so that only the end has it."""
    titles = [title if cost == "flops" else "" for title in PANELS.values() for cost in AXES]
    fig, axes = style.panels(titles, columns=3, height=2.5, sharey="row")
    labels = style.ordered(frame["trained_with"])
    for ax, (quantity, cost) in zip(axes, [(q, c) for q in PANELS for c in AXES], strict=True):
        rows = frame[(frame["quantity"] == quantity) & (frame[cost] > 0)]
        for label in labels:
            curve = rows[rows["trained_with"] == label]
            if cost == "memory":
                last = curve[curve["epoch"] == curve["epoch"].max()]
                if quantity == "test_accuracy":  # 0 and 1 lie beyond the axis, at an infinite distance
                    last = last.assign(low=last["low"].clip(lower=1e-3), high=last["high"].clip(upper=1 - 1e-3))
                style.bars(ax, last.assign(memory=last["memory"] / 1e6), cost, label, linestyle="none")
            else:
                style.band(ax, curve, cost, label, markevery=style.marks(curve), markersize=3.5)
        if cost == "memory":
            ax.xaxis.set_major_locator(MaxNLocator(4))
        else:
            ax.set_xscale("log")
            narrow = rows[cost].max() < 100 * rows[cost].min()
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
            ax.xaxis.set_major_formatter(EngFormatter(sep="") if cost == "flops" else "{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        if quantity == "train_loss":
            ax.set_yscale("log")
            style.plain_log(ax.yaxis)
        else:
            style.accuracy_axis(ax, rows["estimate"])
            ax.set_xlabel(AXES[cost])
    handles = [style.handle(label) for label in labels]
    note = style.seeds_text(frame) + "; seconds depend on what else the machine did, operations and memory do not"
    style.legend(fig, handles, note)
    return fig
