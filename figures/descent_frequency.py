"""How often each method's own update points downhill on the reference set, early, halfway and late in training."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import descent, logs
from figures import _labels, style

EXPERIMENTS = ("convergence",)
WINDOWS = (("#7fb8da", "o"), ("#2171b5", "s"), ("#08306b", "D"))  # light to dark; markers differ too


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return the share of probes with ⟨∇, g⟩ > 0 per estimator, hidden block (and all of them) and window of training.

    Columns of `descent.frequency`. Frozen hidden layers have no update and are left out.
    """
    (log,) = logs_of.values()
    probes = log.probes
    return descent.frequency(probes[(probes["source"] == "self") & (probes["method"] != "frozen")] if len(probes) else probes)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel a hidden block and one for all, a line a method, and a point with its interval for each window."""
    blocks = sorted(frame["block"].unique(), key=lambda block: (block < 0, block))  # all together stand last
    hidden = sum(block >= 0 for block in blocks)
    labels = style.ordered(frame["estimator"])
    titles = [style.block_title(block, hidden) if block >= 0 else "all hidden blocks together" for block in blocks]
    fig, axes = style.panels(titles, columns=2 if len(titles) == 4 else 3, height=0.8 + 0.29 * len(labels), sharey=True)
    windows = frame.drop_duplicates("window").sort_values("window")
    for ax, block in zip(axes, blocks, strict=True):
        ax.axvline(0.5, color=style.GREY, linewidth=0.8)
        for row in frame[frame["block"] == block].itertuples():
            color, marker = WINDOWS[row.window]
            place = labels.index(row.estimator) + 0.25 * (row.window - (len(windows) - 1) / 2)
            face = color if row.stable else "white"
            ax.hlines(place, row.low, row.high, color=color, linewidth=0.9)
            ax.plot(row.estimate, place, marker, color=color, markerfacecolor=face, markersize=3.8, clip_on=False)
        ax.set(xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1], yticks=range(len(labels)), ylim=(len(labels) - 0.5, -0.5))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("share of probes\nwith ⟨∇, g⟩ > 0")
        ax.set_yticklabels([style.look(label).name + mark for label, mark in _marked(frame, labels).items()])
    handles = [
        style.mark(f"steps {row.first:,} to {row.last:,}".replace(",", " "), marker, color)
        for row, (color, marker) in zip(windows.itertuples(), WINDOWS, strict=False)
    ]
    if not frame["stable"].all():
        handles.append(style.mark("hollow: in some probe over half of ‖∇‖² is noise", "o", style.GREY, hollow=True))
    note = f"{style.seeds_text(frame, 'bars')}; the vertical line is a coin"
    if (frame["draws"] > 1).any():
        note += f"; † sign of the mean of {frame['draws'].max()} draws; that of a single step is closer to a coin's"
    style.legend(fig, handles, note)
    return fig


def _marked(frame: pd.DataFrame, labels: list[str]) -> dict[str, str]:
    """Return a dagger for each estimator whose signs are those of means over draws that differ."""
    draws = frame.groupby("estimator")["draws"].max()
    return {label: " †" if draws[label] > 1 else "" for label in labels}
