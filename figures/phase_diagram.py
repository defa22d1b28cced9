"""Where FDFA beats FG-A: batch size against the rate of the feedback, in variance and in mean squared error."""

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis import logs
from figures import _labels, style

EXPERIMENTS = ("batch",)
BATCH_SIZES = 2 ** np.arange(0, 20.1, 0.5)
FEEDBACK_LRS = np.logspace(-3, 0, 25)
NAMES = {"variance": "variance", "mse": "mean squared error"}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return FDFA ÷ FG-A by closed form on a grid and as measured, over seeds, all hidden blocks together."""
    from analysis import phases  # loads torch, which planning and drawing do without

    (log,) = logs_of.values()
    return phases.diagram(log, BATCH_SIZES, FEEDBACK_LRS)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one column per way of perturbing and one row per criterion: a field from theory, dots as measured."""
    ways = sorted(set(zip(frame["joint"], frame["tangents"], strict=True)), key=lambda way: way[1])
    cells = [(way, criterion) for criterion in NAMES for way in ways]
    titles = [_way(*way) if criterion == "variance" else "" for way, criterion in cells]
    fig, axes = style.panels(titles, columns=len(ways), height=2.5, sharex=True, sharey=True)
    reach = np.abs(np.log10(frame["estimate"])).max()
    scale = {"cmap": "PuOr", "norm": Normalize(-reach, reach)}
    for ax, ((joint, tangents), criterion) in zip(axes, cells, strict=True):
        rows = frame[(frame["joint"] == joint) & (frame["tangents"] == tangents) & (frame["criterion"] == criterion)]
        grid = rows[rows["kind"] == "grid"].assign(value=lambda f: np.log10(f["estimate"]))
        table = grid.pivot(index="feedback_lr", columns="batch_size", values="value")
        field = ax.pcolormesh(table.columns, table.index, table, shading="gouraud", rasterized=True, **scale)
        if table.to_numpy().min() < 0 < table.to_numpy().max():
            ax.contour(table.columns, table.index, table, levels=[0.0], colors=style.INK, linewidths=1.4)
        dots = rows[rows["kind"] == "measured"]
        colors = np.log10(dots["estimate"])
        ax.scatter(dots["batch_size"], dots["feedback_lr"], c=colors, s=34, edgecolors=style.INK, linewidths=0.9, **scale)
        ax.set(xscale="log", yscale="log", xlim=(0.7, table.columns.max()), ylim=(table.index.min(), 1.45))
        ax.grid(visible=False)
        ax.xaxis.set_major_locator(FixedLocator([10**k for k in range(7)]))
        ax.xaxis.set_minor_locator(NullLocator())
    for ax in axes[-len(ways) :]:
        ax.set_xlabel("batch size N")
    for ax, name in zip(axes[:: len(ways)], NAMES.values(), strict=True):
        ax.set_ylabel(f"{name}\nα (rate of the feedback)")
    bar = fig.colorbar(field, ax=axes, pad=0.02, aspect=30)
    bar.set_label("log₁₀ (FDFA ÷ FG-A)   FDFA better ← 0 → FG-A better")
    handles = [style.mark("measured", "o", style.INK, hollow=True), style.mark("equal", "", style.INK, "-")]
    measured = frame[frame["kind"] == "measured"]
    style.legend(
        fig, handles, f"{style.seeds_text(measured, 'intervals in the CSV')}; field: closed form, mean over these seeds"
    )
    return fig


def _way(joint: bool, tangents: int) -> str:
    blocks = "all blocks together" if joint else "one block at a time"
    return f"{blocks}, {tangents} direction{'s' * (tangents > 1)}"
