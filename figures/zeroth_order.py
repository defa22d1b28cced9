"""How far a difference quotient is from the slope that it stands for, against the distance of its two points."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import logs
from analysis.rebuilt import closed_forms
from figures import _labels, style

EXPERIMENTS = ("width",)
PROFILES = ("smoke", "quick")  # whose data are at hand: no record holds losses at so many points
ACTIVATIONS = {"relu": "ReLU (kinks)", "tanh": "tanh in its place (smooth)"}
EPSILONS = [float(f"{epsilon:.3g}") for epsilon in np.logspace(-6, 0, 13)]
MOST = 100_000  # parameters of a network that is evaluated at so many points
DEFAULT = 1e-3  # ε of the estimator `zo`
LINES = {"float32": "-", "float64": "--"}
COLORS = ("#56B4E9", "#D55E00")


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return the error of quotients over seeds per activation, width, precision and ε, and the term of a smooth loss."""
    (log,) = logs_of.values()
    return closed_forms.quotient_errors(log, list(ACTIVATIONS), EPSILONS, MOST)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per activation; colour is the size of the network, and the line style is the precision."""
    fig, axes = style.panels(list(ACTIVATIONS.values()), columns=2, height=3.2, sharey=True)
    sizes = dict(zip(sorted(frame["size"].unique()), COLORS, strict=False))
    for ax, activation in zip(axes, ACTIVATIONS, strict=True):
        mine = frame[frame["activation"] == activation]
        for size, color in sizes.items():
            for precision, line in LINES.items():
                rows = mine[(mine["size"] == size) & (mine["precision"] == precision)].sort_values("epsilon")
                ax.plot(rows["epsilon"], rows["estimate"], color=color, linestyle=line)
                ax.fill_between(rows["epsilon"], rows["low"], rows["high"], color=color, alpha=0.16, linewidth=0)
            if activation != "relu":  # the leading term of a smooth loss
                ax.plot(rows["epsilon"], rows["leading"], color=style.INK, linewidth=0.8, linestyle=":", zorder=4)
        ax.axvline(DEFAULT, color=style.PALE, linewidth=1, zorder=0)
        ax.set(xscale="log", yscale="log", xlabel="ε")
        ax.set_ylim(frame["estimate"].min() / 3, 30)
    axes[0].set_ylabel("error of slopes ÷ slopes (rms)")
    handles = [style.mark(f"{size:,} parameters", "", color, "-") for size, color in sizes.items()]
    handles += [style.mark(precision, "", style.GREY, line) for precision, line in LINES.items()]
    handles += [style.mark("(ε²/6) D³ℓ[v, v, v]", "", style.INK, ":"), style.mark("ε of ZO unless given", "", style.PALE, "-")]
    style.legend(fig, handles, style.seeds_text(frame))
    return fig
