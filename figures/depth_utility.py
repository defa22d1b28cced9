"""What training the hidden layers is worth: test accuracy beyond that of frozen hidden layers, for every estimator."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis import accuracy, logs, options, tuning
from figures import _labels, style

EXPERIMENTS = ("convergence",)
POOLED = True
LINEAR = 5  # points, up to which the axis is linear
BASELINE, BEST = "frozen", "bp"
SETTING = ["dataset", "architecture", "optimizer", "epochs"]


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return the accuracy of every estimator beyond that of frozen hidden layers, in each setting, over paired seeds.

    A method that each experiment has tuned by itself is one (`tuning.as_tuned`).
    """
    (log,) = logs_of.values()
    log = tuning.as_tuned(log)
    table = accuracy.table(accuracy.with_setting(log), SETTING, against=BASELINE).dropna(subset="difference")
    several = table["difference_low"] < table["difference_high"]
    shown = table[[*SETTING, "trained_with", "seeds", "p_holm"]]
    bounds = {"estimate": "difference", "low": "difference_low", "high": "difference_high"}
    shown = shown.assign(
        **{name: table[column] for name, column in bounds.items()}, interval=several.map({True: "seeds", False: "none"})
    )
    return options.described(shown, options.meanings([log.runs]))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per setting and one line per estimator; the readout alone is at 0, and BP is the dashed line."""
    settings = frame[SETTING].drop_duplicates().sort_values(SETTING).itertuples(index=False, name=None)
    cells = [(key, frame[(frame[SETTING] == list(key)).all(axis=1)]) for key in settings]
    labels = [label for label in style.ordered(frame["trained_with"])[::-1] if label != BASELINE]
    titles = [f"{style.dataset(dataset)}, {_labels.network(*how)}, {epochs} epochs" for (dataset, *how, epochs), _ in cells]
    fig, axes = style.panels(titles, columns=min(2, len(titles)), height=0.6 + 0.2 * len(labels), sharey=True)
    for ax, (_, rows) in zip(axes, cells, strict=True):
        ax.set(
            yticks=range(len(labels)),
            ylim=(-0.6, len(labels) - 0.4),
            xlabel="test accuracy gained (percentage points)",
        )
        ax.set_yticklabels([style.look(label).name for label in labels])
        ax.axvline(0, color=style.INK, linewidth=0.8)
        for best in rows.loc[rows["trained_with"] == BEST, "estimate"]:
            ax.axvline(100 * best, color=style.GREY, linewidth=0.9, linestyle="--")
        for row in rows[rows["trained_with"] != BASELINE].itertuples():
            y, look = labels.index(row.trained_with), style.look(row.trained_with)
            ax.plot([100 * row.low, 100 * row.high], [y, y], color=look.color, linewidth=1.1)
            ax.plot(100 * row.estimate, y, **look.line(linestyle="none", markersize=5))
        ax.set_xscale("symlog", linthresh=LINEAR, linscale=1.5)  # a method that falls apart must not hide the others
        ax.set_xlim(min(120 * rows["low"].min(), -LINEAR / 2), max(120 * rows["high"].max(), LINEAR / 2))
        low, high = ax.get_xlim()
        ax.set_xticks([t for t in (-100, -20, -5, -2, 0, 2, 5, 10, 20) if low <= t <= high], minor=False)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    handles = [style.mark("BP", "none", style.GREY, "--"), style.mark("frozen hidden layers", "none", style.INK, "-")]
    style.legend(fig, handles, f"{style.seeds_text(frame, 'lines')}; axes are linear to ±{LINEAR} and logarithmic beyond")
    return fig
