"""Train loss and test accuracy against epochs, for every estimator."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import convergence, logs
from figures import _labels, style

EXPERIMENTS = ("convergence",)
OWN = ("convergence",)
PANELS = {"train_loss": "train loss (reference subset)", "test_accuracy": "test accuracy (logit scale)"}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return curves of the finished runs over seeds (`kind` "mean") and each diverged run's own (`kind` "diverged")."""
    (log,) = logs_of.values()
    parts = []
    for quantity in PANELS:
        parts.append(convergence.curves(log.metrics, quantity).assign(kind="mean", seed=-1, quantity=quantity))
        lost = convergence.diverged(log.metrics, quantity)
        if len(lost):
            own = {"low": lost["estimate"], "high": lost["estimate"], "seeds": 1, "interval": "none"}
            parts.append(lost.assign(**own, kind="diverged", quantity=quantity))
    return pd.concat(parts, ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw loss and accuracy side by side; a diverged run is a thin line that ends in a cross."""
    fig, axes = style.panels(list(PANELS.values()), columns=2, height=3)
    labels = style.ordered(frame["trained_with"])
    shade = 0.16 if len(labels) < 7 else 0.08  # many bands on one another hide the lines
    for ax, quantity in zip(axes, PANELS, strict=True):
        rows = frame[frame["quantity"] == quantity]
        for label in labels:
            mine = rows[rows["trained_with"] == label]
            curve = mine[mine["kind"] == "mean"]
            style.band(ax, curve, "epoch", label, shade, markevery=style.marks(curve), markersize=4)
            for _, lost in mine[mine["kind"] == "diverged"].groupby("seed"):
                ax.plot(lost["epoch"], lost["estimate"], color=style.look(label).color, linewidth=0.7)
                ax.plot(lost["epoch"].iloc[-1], lost["estimate"].iloc[-1], "x", color=style.ALARM, markersize=6)
        ax.set_xlabel("epoch")
        ax.locator_params(axis="x", integer=True)
    axes[0].set_yscale("log")
    style.plain_log(axes[0].yaxis)
    style.accuracy_axis(axes[1], frame.loc[frame["quantity"] == "test_accuracy", "estimate"])
    handles = [style.handle(label) for label in labels]
    if (frame["kind"] == "diverged").any():
        handles.append(style.mark("diverged", "x", style.ALARM))
    style.legend(fig, handles, style.seeds_text(frame[frame["kind"] == "mean"]))
    return fig
