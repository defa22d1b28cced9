"""Perturbing all blocks together lets each block's Jacobian estimate hear the others; one block at a time does not."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import feedback, logs, options
from analysis.rebuilt import closed_forms
from figures import _labels, style

EXPERIMENTS = ("layers",)
SHOWN = 3  # depths, evenly chosen
OFFSET = {True: -0.12, False: 0.12}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return E‖D − J̄‖² / ‖J̄‖² of one Jacobian estimate D (the feedback at α = 1) per depth and hidden block, over seeds."""
    (log,) = logs_of.values()
    rows = closed_forms.feedback_errors(log)
    rows = rows[(options.alpha(rows) == 1) & (rows["depth"] > 1)]
    rows = rows.assign(joint=options.column(rows, "joint").eq(True))
    return feedback.error(rows, ["depth", "block", "joint", "estimator"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per depth; a short line is the closed form."""
    depths = np.unique(frame["depth"])
    depths = depths[np.unique(np.linspace(0, len(depths) - 1, SHOWN).round().astype(int))]
    frame = frame[frame["depth"].isin(depths)]
    fig, axes = style.panels([f"{int(d)} hidden blocks" for d in depths], columns=SHOWN, height=2.8, sharey=True)
    handles = {}
    for ax, depth in zip(axes, depths, strict=True):
        for joint in (True, False):
            rows = frame[(frame["depth"] == depth) & (frame["joint"] == joint)]
            how, x = style.look(rows["estimator"].iloc[0]), rows["block"] + 1 + OFFSET[joint]
            face = how.color if joint else "white"
            text = "all blocks together" if joint else "one block at a time"
            handles[text] = style.mark(text, how.marker, how.color, hollow=not joint)
            ax.hlines(rows["theory"], x - 0.11, x + 0.11, color=style.INK, linewidth=1, zorder=4)
            ax.vlines(x, rows["low"], rows["high"], color=how.color, linewidth=1)
            ax.plot(x, rows["estimate"], how.marker, color=how.color, markerfacecolor=face)
        ax.set(xlabel="hidden block", xticks=range(1, int(depth) + 1), xlim=(0.5, depth + 0.5))
        ax.grid(axis="x", visible=False)
    style.log_limits(axes, frame)
    axes[0].set_ylabel("E‖D − J̄‖² ÷ ‖J̄‖² of one estimate D")
    handles["closed form"] = style.mark("closed form", "_", style.INK)
    style.legend(fig, list(handles.values()), style.seeds_text(frame, "bars"))
    return fig
