"""The angle between each estimator and backpropagation's gradient, of the same batch and of all data, while it trains."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import alignment, logs, select
from figures import _labels, _references, style

EXPERIMENTS = ("convergence",)
OWN = ("trajectory",)
BY = ["estimator", "block", "step"]
ROWS = {
    "angle": "angle to BP's gradient of the batch (°)",
    "angle_reference": "angle to the reference gradient ∇ (°)",
    "share": _references.SHARE,
}
AGAINST = {"angle": "target", "angle_reference": "reference"}
IN_A_ROW = 4  # hidden blocks


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return long rows over seeds, by `quantity`.

    "angle" and "angle_reference" are in degrees, to the gradient of the batch and to that of the reference set, with
    `stability`, `share` and `stable` of the reference (`alignment.angles`). "share" is that share with its interval over seeds.
    "vanished" is the share of seeds without a reference.
    """
    (log,) = logs_of.values()
    probes = select.hidden_blocks(log.probes)
    own = probes["source"] == "self"
    probes = probes[own] if own.any() else probes  # in a loop of the user's no estimator of the project trains
    parts = [
        alignment.angles(probes, BY, against).drop(columns=["untrusted", "of"]).assign(quantity=quantity)
        for quantity, against in AGAINST.items()
    ]
    of_reference = parts[0][[*BY, "stability", "share", "stable", "chance"]]
    parts.append(alignment.references(probes, BY).merge(of_reference, on=BY).assign(quantity="share"))
    gone = alignment.vanished(probes, BY)
    if len(gone):
        share = gone["rows"] / gone["of"]
        about = {"seeds": gone["of"], "interval": "none", "chance": 0.0, "stability": 0.0, "share": 0.0, "stable": False}
        parts.append(gone[BY].assign(estimate=share, low=share, high=share, **about, quantity="vanished"))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a column a hidden block: both angles, with chance at 90°, and how much of the reference is no noise."""
    blocks = sorted(frame["block"].unique())
    labels = style.ordered(frame["estimator"])
    shade = 0.16 if len(labels) < 7 else 0.1
    whole = len(blocks) <= IN_A_ROW
    titles = [style.block_title(block, len(blocks)) if row == "angle" or not whole else "" for row in ROWS for block in blocks]
    fig, axes = style.panels(titles, columns=len(blocks) if whole else IN_A_ROW, height=2.5)
    for ax, (quantity, block) in zip(axes, [(row, block) for row in ROWS for block in blocks], strict=True):
        rows = frame[frame["block"] == block]
        shown = rows[rows["quantity"] == quantity]
        if quantity == "share":
            ax.axhline(alignment.STABLE, color=style.GREY, linewidth=0.8)
            ax.set(ylim=(-0.03, 1.03))
        else:
            spread = shown["chance"].max()
            ax.axhspan(90 - spread, 90 + spread, color=style.PALE, zorder=0)
            ax.axhline(90, color=style.GREY, linewidth=0.8, zorder=1)
            ax.axhline(0, color=style.GREY, linewidth=0.8, zorder=1)
            gone = rows[rows["quantity"] == "vanished"]
            ax.plot(gone["step"], [-5] * len(gone), "x", color=style.ALARM, markersize=4)
            ax.set(ylim=(-8, 125), yticks=range(0, 121, 30))
        for label in labels:
            _references.curve(ax, shown[shown["estimator"] == label], "step", label, shade, markersize=3.5)
        style.steps_axis(ax, frame["step"])
        if block == blocks[0]:
            ax.set_ylabel(ROWS[quantity])
        if whole and quantity != "share":
            ax.set_xlabel("")
    handles = [style.handle(label) for label in labels]
    handles.append(style.patch("chance: 90° ∓ 1 s.d.", style.PALE))
    if (frame["quantity"] == "vanished").any():
        handles.append(style.mark("reference vanished (seeds left out)", "x", style.ALARM))
    handles += _references.handles(frame[frame["quantity"].isin(AGAINST)])
    style.legend(fig, handles, style.seeds_text(frame[frame["quantity"] == "angle"]))
    return fig
