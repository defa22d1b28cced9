"""How well a forward gradient points along its batch's gradient, against the dimension that it perturbs."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import logs
from figures import _labels, style

EXPERIMENTS = ("cosine",)
LINES = {"mean": "-", "projection": "--"}
VALUES, RATIOS = ("estimate", "low", "high"), ("ratio", "ratio_low", "ratio_high")


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return mean cosines over seeds per method, number of directions and dimension, with the closed form."""
    from analysis import cosines  # loads torch, which planning and drawing do without

    (log,) = logs_of.values()
    return cosines.against_dimension(log.probes)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw cosines with the closed form on the left, measured ÷ closed form on the right."""
    fig, (left, right) = style.panels(["mean cosine", "measured ÷ closed form"], columns=2, height=3)
    ways = sorted(set(zip(frame["tangents"], frame["combine"], strict=True)))
    for tangents, combine in ways:
        rows = frame[(frame["tangents"] == tangents) & (frame["combine"] == combine)]
        line = rows.sort_values("dimension").drop_duplicates("dimension")
        left.plot(line["dimension"], line["theory"], color=style.INK, linewidth=0.8, linestyle=LINES[combine], zorder=4)
        if combine == "mean":
            text = f"{tangents} direction{'s' * (tangents > 1)}"
            left.text(line["dimension"].iloc[-1] * 1.3, line["theory"].iloc[-1], text, fontsize=7.5, va="center")
        for method in style.ordered(rows["method"]):
            mine, how = rows[rows["method"] == method], style.look(method)
            face = "white" if combine == "projection" else how.color
            dots = {"color": how.color, "marker": how.marker, "linestyle": "none", "markerfacecolor": face}
            for ax, (estimate, low, high) in ((left, VALUES), (right, RATIOS)):
                ax.plot(mine["dimension"], mine[estimate], **dots)
                ax.vlines(mine["dimension"], mine[low], mine[high], color=how.color, linewidth=1)
    right.axhline(1, color=style.INK, linewidth=0.8)
    for ax in (left, right):
        ax.set(xscale="log", xlabel="dimension: parameters (FG-W), neurons (FG-A)")
    left.set(yscale="log", ylabel="cos(estimate, gradient of the batch)", xlim=(None, frame["dimension"].max() * 30))
    reach = np.abs(frame[["ratio_low", "ratio_high"]] - 1).to_numpy().max() * 1.1
    right.set_ylim(1 - reach, 1 + reach)
    handles = [
        style.mark(style.look(m).name, style.look(m).marker, style.look(m).color) for m in style.ordered(frame["method"])
    ]
    handles.append(style.mark("projection on the directions", "o", style.GREY, "--", hollow=True))
    style.legend(fig, handles, f"{style.seeds_text(frame, 'bars')}; lines: closed form (a Beta law)")
    return fig
