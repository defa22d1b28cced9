"""What α buys FDFA: slower feedback lowers the variance and leaves the bias."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import bias, logs, momentum, options, select
from figures import _labels, style

EXPERIMENTS = ("momentum",)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return bias², variance and mean squared error ÷ ‖BP's gradient‖² of FDFA per hidden block and α, over seeds.

    Rows of quantity "law": the variance at the largest α scaled as at frozen weights. `rule` is "momentum" for all of these.
    The rule of the released code, where it was measured beside, has rows of `rule` "adam" and no α.
    """
    (log,) = logs_of.values()
    probes = select.last_step(select.hidden_blocks(log.probes))
    probes = probes[(probes["method"] == "fdfa") & (probes["source"] == "shadow")]
    adam = probes[options.column(probes, "feedback_rule").eq("adam")]
    probes = probes.assign(alpha=options.alpha(probes))
    probes = probes[probes["alpha"].notna()]
    parts = bias.split_over_seeds(probes, ["block", "alpha"])
    warmup = bool(options.column(probes, "warmup").eq(True).all())
    frames = [parts, momentum.variance_law(parts, int(probes["step"].max()), warmup)]
    frames = [frame.assign(rule="momentum") for frame in frames]
    if len(adam):
        frames.append(bias.split_over_seeds(adam, ["block"]).assign(rule="adam"))
    return pd.concat(frames, ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per hidden block; where no bias was detected, its upper bound as a triangle. The Adam rule is a level."""
    looks = {
        "mse": ("mean squared error", style.INK, "s", "-"),
        "variance": ("variance", "#E69F00", "o", "--"),
        "bias2": ("bias²", "#0072B2", "D", "-."),
    }
    blocks = sorted(frame["block"].unique())
    adam, frame = frame[(frame["rule"] == "adam") & frame["detected"]], frame[frame["rule"] == "momentum"]
    fig, axes = style.panels([style.block_title(b, len(blocks)) for b in blocks], height=2.8, sharey=True)
    for ax, block in zip(axes, blocks, strict=True):
        for quantity, (_, color, marker, line) in looks.items():
            rows = frame[(frame["block"] == block) & (frame["quantity"] == quantity)].sort_values("alpha")
            found, bound = rows[rows["detected"]], rows[~rows["detected"] & (rows["high"] > 0)]
            ax.plot(found["alpha"], found["estimate"], color=color, marker=marker, linestyle=line)
            ax.vlines(found["alpha"], found["low"], found["high"], color=color, linewidth=1)
            ax.plot(bound["alpha"], bound["high"], "v", color=color, markerfacecolor="white")
            for level in adam[(adam["block"] == block) & (adam["quantity"] == quantity)].itertuples():
                ax.axhline(level.estimate, color=color, linewidth=1, linestyle=":")
                ax.axhspan(level.low, level.high, color=color, alpha=0.12, linewidth=0)
        law = frame[(frame["block"] == block) & (frame["quantity"] == "law")].sort_values("alpha")
        ax.plot(law["alpha"], law["estimate"], color=style.INK, linewidth=0.8, zorder=4)
        ax.set(xscale="log", xlabel="α (rate of the feedback)")
        style.ticks(ax, frame["alpha"])
    style.log_limits(axes, pd.concat([frame[frame["detected"]], adam]))
    axes[0].set_ylabel("squared error and its parts ÷ ‖BP's gradient‖²")
    handles = [style.mark(name, marker, color, line) for name, color, marker, line in looks.values()]
    if (~frame["detected"]).any():
        handles.append(style.mark("no bias detected: upper bound", "v", looks["bias2"][1], hollow=True))
    handles.append(style.mark("variance by α/(2−α) from that at the largest α", "", style.INK, "-"))
    if len(adam):
        handles.append(style.mark("the same of the Adam rule at its tuned rate", "", style.GREY, ":"))
    style.legend(fig, handles, style.seeds_text(frame, "bars and bands"))
    return fig
