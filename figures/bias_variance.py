"""Mean squared error split into squared bias and variance, for every estimator and hidden block.

Points on a logarithmic axis, not stacked bars: a stack adds lengths, and lengths on a logarithmic axis do not add.
"""

import pandas as pd
from matplotlib.figure import Figure

from analysis import bias, logs, select
from figures import _labels, style

EXPERIMENTS = ("trajectory",)
OWN = ("trajectory",)
MARKS = {
    "mse": ("mean squared error", "|", style.INK),
    "variance": ("variance", "o", "#E69F00"),
    "bias2": ("bias²", "D", "#0072B2"),
}
OFFSETS = {"mse": 0.0, "variance": 0.2, "bias2": -0.2}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return bias², variance and mean squared error ÷ ‖BP's gradient‖² at the end of training, over seeds."""
    (log,) = logs_of.values()
    probes = select.last_step(select.hidden_blocks(log.probes))
    return bias.split_over_seeds(probes[probes["method"] != "bp"], ["trained_with", "estimator", "block"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per hidden block; an arrow where no bias was detected ends at its upper bound."""
    blocks = sorted(frame["block"].unique())
    labels = style.ordered(frame["estimator"])[::-1]
    cells = [(path, block) for path in style.ordered(frame["trained_with"]) for block in blocks]
    titles = [style.block_title(block, len(blocks), path) for path, block in cells]
    fig, axes = style.panels(titles, len(blocks), height=0.5 + 0.27 * len(labels), sharey=True, sharex=True)
    floor = frame["estimate"].where(frame["detected"], frame["high"]).pipe(lambda v: v[v > 0]).min() / 4
    for ax, (path, block) in zip(axes, cells, strict=True):
        ax.set(xscale="log", yticks=range(len(labels)), ylim=(-0.6, len(labels) - 0.4))
        ax.set_yticklabels([style.look(label).name for label in labels])
        ax.grid(axis="y", visible=False)
        for i in range(1, len(labels), 2):
            ax.axhspan(i - 0.5, i + 0.5, color="#f4f4f4", zorder=0)
        for row in frame[(frame["trained_with"] == path) & (frame["block"] == block)].itertuples():
            _, marker, color = MARKS[row.quantity]
            y = labels.index(row.estimator) + OFFSETS[row.quantity]
            if row.detected:
                ax.plot([max(row.low, floor), row.high], [y, y], color=color, linewidth=1.1)
                ax.plot(row.estimate, y, marker, color=color, markersize=8 if marker == "|" else 4.2, markeredgewidth=1.2)
            elif row.high > 0:
                ax.plot([floor, row.high], [y, y], color=color, linewidth=1.1)
                ax.plot(floor, y, "<", color=color)
                ax.plot(row.high, y, "|", color=color, markersize=5)
    for ax in axes[-len(blocks) :]:
        ax.set_xlabel("squared error and its parts ÷ ‖BP's gradient‖²")
    handles = [style.mark(name, marker, color, "-") for name, marker, color in MARKS.values()]
    handles.append(style.mark("no bias detected: at most", "<", MARKS["bias2"][2], "-"))
    style.legend(fig, handles, style.seeds_text(frame, "lines"))
    return fig
