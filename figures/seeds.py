"""Every seed a dot: how much higher FDFA's test accuracy ends than each method's with the same seed."""

import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis import logs
from analysis.verdicts import evidence, protocol
from figures import _labels, style

EXPERIMENTS = ("convergence",)
POOLED = True
QUESTIONS = ("Q3 accuracy", "Q3 parity")
LINEAR = 5  # points, up to which the axis is linear
VARIANTS = {protocol.ON_TRIAL: ("FDFA, momentum rule (on trial)", "#0072B2"), protocol.BESIDE: ("FDFA, Adam rule", "#E69F00")}
TICKS = (-100, -20, -5, -2, 0, 2, 5, 20, 100)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return one row per setting, method, variant of FDFA and seed: `value`, the difference of final test accuracies."""
    values = evidence.values(logs_of)
    values = values[values["question"].isin(QUESTIONS)]
    datasets = logs_of["convergence"].runs.drop_duplicates("experiment").set_index("experiment")["dataset"]
    return values.assign(margin=values["setting"].map(datasets).map(protocol.MARGINS)).drop(columns="question")


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel per setting and a line per method; FDFA ends higher on the right, and the band is the margin."""
    settings = list(dict.fromkeys(frame["setting"]))
    methods = style.ordered(frame["component"])
    fig, axes = style.panels(settings, columns=min(2, len(settings)), height=0.7 + 0.22 * len(methods), sharey=True)
    shown = frame.assign(points=100 * frame["value"], kind=frame["variant"])
    for ax, setting in zip(axes, settings, strict=True):
        rows = shown[shown["setting"] == setting]
        margin = 100 * rows["margin"].iloc[0]
        ax.axvspan(-margin, margin, color=style.PALE, linewidth=0)
        ax.axvline(0, color=style.INK, linewidth=0.8)
        seaborn.stripplot(
            rows,
            x="points",
            y="component",
            hue="kind",
            order=methods,
            hue_order=list(VARIANTS),
            palette={kind: color for kind, (_, color) in VARIANTS.items()},
            dodge=True,
            jitter=False,
            size=3.2,
            alpha=0.8,
            legend=False,
            ax=ax,
        )
        ax.set_xscale("symlog", linthresh=LINEAR, linscale=1.5)  # a method that falls apart must not hide the others
        ax.set_xlim(min(1.5 * rows["points"].min(), -LINEAR / 2), max(1.5 * rows["points"].max(), LINEAR / 2))
        low, high = ax.get_xlim()
        ax.set_xticks([tick for tick in TICKS if low <= tick <= high], minor=False)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="FDFA less the method (points)", ylabel="", yticks=range(len(methods)))
        ax.set_yticklabels([style.look(method).name for method in methods])
    handles = [style.mark(name, "o", color) for name, color in VARIANTS.values()]
    note = f"a dot is a seed; the band is the margin that does not matter; axes are linear to ±{LINEAR} and logarithmic beyond"
    style.legend(fig, handles, note)
    return fig
