"""The angle between each estimator and backpropagation's gradient of the same batch, block by block, over training."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import alignment, logs, select
from figures import _labels, style

EXPERIMENTS = ("convergence",)
OWN = ("trajectory",)
BY = ["estimator", "block", "step"]


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return long rows: `quantity` "angle" (degrees, over seeds) and "vanished" (share of seeds without a reference)."""
    (log,) = logs_of.values()
    probes = select.hidden_blocks(log.probes)
    own = probes["source"] == "self"
    probes = probes[own] if own.any() else probes  # in a loop of the user's no estimator of the project trains
    angles = alignment.angles(probes, BY).drop(columns=["untrusted", "of"]).assign(quantity="angle")
    gone = alignment.vanished(probes, BY)
    share = gone["rows"] / gone["of"]
    flags = gone[BY].assign(
        estimate=share, low=share, high=share, seeds=gone["of"], interval="none", chance=0.0, stability=0.0, quantity="vanished"
    )
    return pd.concat([angles, flags], ignore_index=True) if len(flags) else angles


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel a hidden block: BP at 0°, chance at 90° with its spread, and marks where the reference vanished."""
    blocks = sorted(frame["block"].unique())
    labels = style.ordered(frame["estimator"])
    shade = 0.16 if len(labels) < 7 else 0.1
    fig, axes = style.panels([style.block_title(b, len(blocks)) for b in blocks], height=2.9, sharey=True)
    for ax, block in zip(axes, blocks, strict=True):
        rows = frame[frame["block"] == block]
        angles = rows[rows["quantity"] == "angle"]
        spread = angles["chance"].max()
        ax.axhspan(90 - spread, 90 + spread, color=style.PALE, zorder=0)
        ax.axhline(90, color=style.GREY, linewidth=0.8, zorder=1)
        ax.axhline(0, color=style.GREY, linewidth=0.8, zorder=1)
        for label in labels:
            style.band(ax, angles[angles["estimator"] == label], "step", label, shade, markersize=3.5)
        gone = rows[rows["quantity"] == "vanished"]
        ax.plot(gone["step"], [-5] * len(gone), "x", color=style.ALARM, markersize=4)
        ax.set(ylim=(-8, 125), yticks=range(0, 121, 30))
        style.steps_axis(ax, frame["step"])
    axes[0].set_ylabel("angle to BP's gradient of the batch (°)")
    handles = [style.handle(label) for label in labels]
    handles.append(style.patch("chance: 90° ∓ 1 s.d.", style.PALE))
    if (frame["quantity"] == "vanished").any():
        handles.append(style.mark("reference vanished (seeds left out)", "x", style.ALARM))
    style.legend(fig, handles, style.seeds_text(frame[frame["quantity"] == "angle"]))
    return fig
