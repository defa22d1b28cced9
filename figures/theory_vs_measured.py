"""Measured variance against the closed form, for every setting of the experiments with frozen weights."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis import logs
from analysis.rebuilt import closed_forms
from figures import _labels, style

EXPERIMENTS = ("width", "batch", "layers")
OPTIONAL = ("batch", "layers")


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return measured / closed form per setting and hidden block over seeds, and how many intervals hold the closed form."""
    ratios = closed_forms.agreement(list(logs_of.values()))
    method = ratios["estimator"].map(lambda label: _labels.meaning(label)[0])
    counts = ratios.drop_duplicates("estimator").assign(method=method).groupby("method")[["held", "of"]].sum()
    return ratios.drop(columns=["held", "of"]).assign(method=method).merge(counts.reset_index(), on="method")


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the identity line on the left, ratios with intervals on the right."""
    methods = style.ordered(frame["method"])
    fig, (left, right) = style.panels(["measured against closed form", "measured ÷ closed form"], columns=2, height=3.2)
    for method in methods:
        rows, how = frame[frame["method"] == method], style.look(method)
        dots = {"color": how.color, "marker": how.marker, "linestyle": "none", "markersize": 3.2, "alpha": 0.75}
        left.plot(rows["theory"], rows["measured"], **dots)
        right.vlines(rows["theory"], rows["low"], rows["high"], color=how.color, linewidth=0.7, alpha=0.6)
        right.plot(rows["theory"], rows["estimate"], **dots)
    span = [frame["theory"].min() / 2, frame["theory"].max() * 2]
    left.plot(span, span, color=style.INK, linewidth=0.8, zorder=1)
    left.set(xscale="log", yscale="log", xlim=span, ylim=span, ylabel="measured: total variance ÷ ‖∇ of the block‖²")
    right.axhline(1, color=style.INK, linewidth=0.8, zorder=4)
    right.set(xscale="log", xlim=span)
    style.log_limits([right], frame, decades=0.2)
    right.yaxis.set_major_locator(FixedLocator([0.3, 0.5, 0.7, 1, 1.4, 2, 3]))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_locator(NullLocator())
    for ax in (left, right):
        ax.set_xlabel("closed form")
    held = frame.drop_duplicates("method").set_index("method")
    handles = [style.mark(_text(held.loc[m]), style.look(m).marker, style.look(m).color) for m in methods]
    note = f"{style.seeds_text(frame, 'bars')}; in brackets: 95 % intervals over draws that hold the closed form"
    style.legend(fig, handles, note)
    return fig


def _text(row: pd.Series) -> str:
    return f"{style.look(row.name).name} ({row['held']} of {row['of']})"
