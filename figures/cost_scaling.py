"""How the cost of one gradient estimate grows with the network, the batch, and the number of draws."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import benches
from figures import _labels, style

EXPERIMENTS = ()
BENCH = "cost_scaling"
PANELS = {
    "width": "width of the hidden layers",
    "depth": "number of hidden layers",
    "batch_size": "batch size",
    "outputs": "number of outputs",
    "tokens": "tokens of a transformer",
    "layers": "layers of a transformer",
    "draws": "draws or replicas at one point",
}
DRAWS = {  # what the benchmark calls them → name in print, estimator whose colour they have, marker, line
    "fg-a: gradients": ("FG-A", "fg-a", "^", "-."),
    "fg-a: scalars": ("FG-A, only norms and angles of the draws", "fg-a", "d", ":"),
    "fdfa: replicas": ("FDFA, only the feedback of the replicas", "fdfa", "d", ":"),
}


@_labels.labelled
def compute(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return milliseconds and the ratio to a BP gradient, medians with quartiles, for every size and estimator."""
    (table,) = tables.values()
    machine = benches.machine_text(table)
    ratio = {"ratio": "estimate", "ratio_low": "low", "ratio_high": "high"}
    table = table.drop(columns=["low", "high", "machine", "threads"]).rename(columns=ratio)
    return table.assign(machine=machine)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel for each size that changes; the dashed line is a BP gradient."""
    fig, axes = style.panels(list(PANELS.values()), columns=3, height=2.4)
    labels = style.ordered(set(frame["estimator"]) - DRAWS.keys() - {"bp"})
    bp = style.look("bp")
    for ax, quantity in zip(axes, PANELS, strict=True):
        rows = frame[frame["quantity"] == quantity]
        for label in labels:
            style.bars(ax, rows[rows["estimator"] == label], "size", label)
        for name, (_, label, marker, linestyle) in DRAWS.items():
            style.bars(ax, rows[rows["estimator"] == name], "size", label, marker=marker, linestyle=linestyle)
        ax.axhline(1, color=bp.color, linewidth=1, linestyle=bp.linestyle, zorder=1)
        ax.set_xscale("log")
        style.ticks(ax, rows["size"])
        if quantity == "draws":
            ax.set_yscale("log")
            style.plain_log(ax.yaxis)
        else:
            ax.set_ylim(0, 1.08 * frame.loc[frame["quantity"] != "draws", "high"].max())
    axes[0].set_ylabel("time ÷ that of a BP gradient")
    axes[3].set_ylabel("time ÷ that of a BP gradient")
    axes[6].set_ylabel("time of one draw ÷\nthat of a BP gradient")
    handles = [style.mark("BP", "none", bp.color, "-"), *map(style.handle, labels)]
    more = [how for name, how in DRAWS.items() if name != "fg-a: gradients"]  # which looks as FG-A does elsewhere
    handles += [style.mark(name, marker, style.look(like).color, line) for name, like, marker, line in more]
    note = (
        "784-800-800-10 with batch normalisation (draws: without), batch 64; transformer: four layers, 256 wide, 64 tokens, "
        "batch 8; but for what changes\nmedians, bars: quartiles"
    )
    style.legend(fig, handles, f"{note}\n{frame['machine'].iloc[0]}")
    return fig
