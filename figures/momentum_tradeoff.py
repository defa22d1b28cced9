"""What α buys FDFA: slower feedback lowers the variance and leaves the bias."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import bias, logs
from figures import style

EXPERIMENTS = ("momentum",)


def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return bias², variance and mean squared error ÷ ‖BP's gradient‖² of FDFA per hidden block and α, over seeds.

    A column `theory` joined to this frame is drawn as a thin line.
    """
    (log,) = logs_of.values()
    probes = logs.last_step(logs.hidden_blocks(log.probes))
    probes = probes.assign(alpha=logs.option(probes, "feedback_lr"))
    probes = probes[(probes["method"] == "fdfa") & (probes["source"] == "shadow") & probes["alpha"].notna()]
    return bias.split_over_seeds(probes, ["block", "alpha"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel a hidden block; where no bias was detected, its upper bound as a triangle."""
    looks = {
        "mse": ("mean squared error", style.INK, "s", "-"),
        "variance": ("variance", "#E69F00", "o", "--"),
        "bias2": ("bias²", "#0072B2", "D", "-."),
    }
    blocks = sorted(frame["block"].unique())
    fig, axes = style.panels([style.block_title(b, len(blocks)) for b in blocks], height=2.8, sharey=True)
    for ax, block in zip(axes, blocks, strict=True):
        for quantity, (_, color, marker, line) in looks.items():
            rows = frame[(frame["block"] == block) & (frame["quantity"] == quantity)].sort_values("alpha")
            found, bound = rows[rows["detected"]], rows[~rows["detected"] & (rows["high"] > 0)]
            ax.plot(found["alpha"], found["estimate"], color=color, marker=marker, linestyle=line)
            ax.vlines(found["alpha"], found["low"], found["high"], color=color, linewidth=1)
            ax.plot(bound["alpha"], bound["high"], "v", color=color, markerfacecolor="white")
            if "theory" in rows:
                ax.plot(rows["alpha"], rows["theory"], color=color, linewidth=0.7)
        ax.set(xscale="log", xlabel="α (rate of the feedback)")
        style.ticks(ax, frame["alpha"])
    style.log_limits(axes, frame[frame["detected"]])
    axes[0].set_ylabel("÷ ‖BP's gradient‖²")
    handles = [style.mark(name, marker, color, line) for name, color, marker, line in looks.values()]
    if (~frame["detected"]).any():
        handles.append(style.mark("no bias detected: upper bound", "v", looks["bias2"][1], hollow=True))
    style.legend(fig, handles, style.seeds_text(frame, "bars"))
    return fig
