"""Do deeper networks learn less well from these gradients: alignment and accuracy against the number of hidden layers."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import accuracy, alignment, logs, select
from figures import _labels, style

EXPERIMENTS = ("depth",)
PANELS = {
    "first": "first hidden block",
    "mean": "mean of hidden blocks",
    "accuracy": "test accuracy (logit scale)",
}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return angles at the last probe of training (`quantity` "first", "mean") and final accuracies, against depth."""
    (log,) = logs_of.values()
    by = ["trained_with", "depth"]
    probes = select.last_step(select.hidden_blocks(log.probes))
    probes = probes[(probes["source"] == "self") & (probes["method"] != "frozen")]
    parts = [
        alignment.angles(rows, by).assign(quantity=quantity)
        for quantity, rows in {"first": probes[probes["block"] == 0], "mean": probes}.items()
    ]
    final = accuracy.table(log.metrics, by[1:]).rename(columns={"accuracy": "estimate"}).dropna(subset="estimate")
    columns = [*by, "estimate", "low", "high", "seeds", "interval", "quantity"]
    return pd.concat([*parts, final.assign(quantity="accuracy")], ignore_index=True)[columns]


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel a quantity."""
    fig, axes = style.panels(list(PANELS.values()), height=2.7)
    labels = style.ordered(frame["trained_with"])
    for ax, quantity in zip(axes, PANELS, strict=True):
        rows = frame[frame["quantity"] == quantity]
        for label in labels:
            style.bars(ax, rows[rows["trained_with"] == label], "depth", label)
        ax.set(xlabel="hidden layers", xticks=sorted(frame["depth"].unique()))
        if quantity != "accuracy":
            ax.axhline(90, color=style.GREY, linewidth=0.8)
            ax.set(ylim=(-5, 110), yticks=range(0, 91, 30))
        else:
            style.accuracy_axis(ax, rows["estimate"])
    axes[0].set_ylabel("angle to BP's gradient of the batch (°)")
    style.legend(fig, [style.handle(label) for label in labels], style.seeds_text(frame, "bars"))
    return fig
