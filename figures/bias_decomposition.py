"""Where FDFA's bias comes from while the weights move: one Jacobian for all samples, old weights, the start at zero."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import feedback, logs, options, select
from figures import _labels, style

EXPERIMENTS = ("drift",)
LOOKS = {
    "expected": ("bias, exact", style.INK, "-"),
    "averaging": ("one Jacobian for all samples", "#0072B2", "--"),
    "lag": ("lag behind the weights", "#D55E00", "-."),
    "start": ("start at zero", "#009E73", ":"),
    "sampling": ("the batches' Jacobians", "#CC79A7", (0, (1, 1))),
}
FLOOR = 1e-5  # of ‖∇‖²: less than this is left out


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return bias² ÷ ‖∇‖² and its parts per hidden block: against α at the last probe, and against steps for one α."""
    (log,) = logs_of.values()
    rows = log.feedback.assign(alpha=options.alpha(log.feedback))
    warm = options.column(rows, "warmup").eq(True)
    by = ["block", "alpha", "step"]
    last = feedback.bias_parts(select.last_step(rows[warm]), by).assign(against="alpha")
    return pd.concat([last, feedback.bias_parts(rows[~warm], by).assign(against="step")], ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a row of panels against α and one against steps, with one column per hidden block."""
    blocks = sorted(frame["block"].unique())
    slow = frame.loc[frame["against"] == "step", "alpha"].iloc[0]
    last = int(frame.loc[frame["against"] == "alpha", "step"].max())
    cells = [(against, block) for against in ("alpha", "step") for block in blocks]
    how = {"alpha": f"step {last}, with warm-up", "step": f"α = {slow:g}, from B = 0"}
    titles = [f"{style.block_title(block, len(blocks))}; {how[against]}" for against, block in cells]
    fig, axes = style.panels(titles, columns=len(blocks), height=2.6, sharey=True)
    for ax, (against, block) in zip(axes, cells, strict=True):
        rows = frame[(frame["against"] == against) & (frame["block"] == block)].sort_values(against)
        for quantity, (_, color, line) in LOOKS.items():
            part = rows[rows["quantity"] == quantity]
            ax.plot(part[against], part["estimate"].clip(lower=FLOOR / 100), color=color, linestyle=line)
        measured = rows[rows["quantity"] == "measured"]
        seen, bound = measured[measured["detected"]], measured[~measured["detected"] & (measured["high"] > 0)]
        ax.plot(seen[against], seen["estimate"], "o", color=style.INK, markerfacecolor="white", zorder=5)
        ax.vlines(seen[against], seen["low"], seen["high"], color=style.INK, linewidth=1)
        ax.plot(bound[against], bound["high"], "v", color=style.INK, markerfacecolor="white", zorder=5)
        ax.set(xscale="log", xlabel="α (rate of the feedback)" if against == "alpha" else "training step")
        style.ticks(ax, rows[against])
    axes[0].set(yscale="log", ylim=(FLOOR, 3 * frame["estimate"].max()))
    for ax in axes[:: len(blocks)]:
        ax.set_ylabel("squared norm ÷ ‖∇ of the block‖²")
    handles = [style.mark("bias, measured", "o", style.INK, hollow=True)]
    if (frame["quantity"].eq("measured") & ~frame["detected"]).any():
        handles.append(style.mark("not detected: upper bound", "v", style.INK, hollow=True))
    handles += [style.mark(name, "", color, line) for name, color, line in LOOKS.values()]
    style.legend(fig, handles, style.seeds_text(frame, "bars"))
    return fig
