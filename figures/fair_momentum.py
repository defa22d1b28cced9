"""FG-A with momentum on its gradient against FDFA: what momentum alone buys, and what averaging before the error buys."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import logs, momentum
from figures import _labels, style

EXPERIMENTS = ("averaging", "drift")
RATES = np.logspace(-2, 0, 13)
TITLES = {
    "step": "frozen: noise of one step",
    "mean": "frozen: noise left in the mean",
    "moving": "in training: error",
}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return noise at frozen weights per step and in the mean over steps, and squared error at moving weights, over seeds."""
    frozen, moving = momentum.frozen(logs_of["averaging"], RATES), momentum.moving(logs_of["drift"])
    frozen = frozen.assign(quantity="variance", feedback_lr=frozen["rate"].where(frozen["method"] == "fdfa", 0.0))
    moving = moving.drop(columns="detected").assign(panel="moving", kind="measured")
    return pd.concat([frozen, moving[moving["quantity"] != "variance"]], ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the three panels."""
    fig, axes = style.panels(list(TITLES.values()), columns=3, height=2.9)
    for ax, panel in zip(axes, TITLES, strict=True):
        rows = frame[frame["panel"] == panel]
        for (method, quantity), group in rows.groupby(["method", "quantity"]):
            how = style.look(method)
            theory, measured = (group[group["kind"] == kind].sort_values("rate") for kind in ("theory", "measured"))
            if len(theory) == 1:  # plain FG-A averages nothing
                ax.axhline(theory["estimate"].iloc[0], color=how.color, linewidth=0.9)
            ax.plot(theory["rate"], theory["estimate"], color=how.color, linewidth=0.9)
            seen = measured[measured["low"] > 0]
            bound = measured[(measured["low"] <= 0) & (measured["high"] > 0)]
            face = "white" if quantity == "bias2" else how.color
            line = {"step": "none", "mean": "none"}.get(panel, ":" if quantity == "bias2" else "-")
            ax.plot(seen["rate"], seen["estimate"], how.marker, color=how.color, markerfacecolor=face, linestyle=line)
            ax.vlines(seen["rate"], seen["low"], seen["high"], color=how.color, linewidth=1)
            ax.plot(bound["rate"], bound["high"], "v", color=how.color, markerfacecolor="white", markersize=3.5)
        ax.set(xscale="log")
        style.log_limits([ax], rows[rows["kind"] == "measured"], decades=0.5)
        style.ticks(ax, rows.loc[rows["kind"] == "measured", "rate"])
    axes[0].set(xlabel="rate of the average (FDFA: α)", ylabel="perturbation noise ÷ ‖∇‖²")
    axes[1].set(xlabel="α (rate of the feedback)", ylabel="steps × noise of the mean ÷ ‖∇‖²")
    axes[2].set(xlabel="rate of the gradient's average", ylabel="squared error ÷ ‖∇‖²")
    alpha = frame.loc[(frame["panel"] == "moving") & (frame["method"] == "fdfa"), "feedback_lr"].iloc[0]
    names = {"fg-a": "FG-A", "fg-a-averaged": "FG-A, gradient averaged", "fdfa": f"FDFA (right: α = {alpha:g})"}
    handles = [style.handle(method, label=name, linestyle="none") for method, name in names.items()]
    handles += [style.mark("bias² (triangle: upper bound)", "o", style.GREY, ":", hollow=True)]
    handles += [style.mark("closed form", "", style.GREY, "-")]
    measured = frame[frame["kind"] == "measured"]
    style.legend(fig, handles, f"{style.seeds_text(measured, 'bars')}; all hidden blocks together")
    return fig
