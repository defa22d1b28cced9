"""How the noise of an estimate grows with the number of hidden blocks that are perturbed together."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import logs
from figures import _labels, _scaling, style

EXPERIMENTS = ("layers",)
PLACES = {"first": "first hidden block (at the input)", "last": "last hidden block"}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return NSR = total variance / ‖∇‖² of the first and the last hidden block, per estimator and depth, over seeds."""
    (log,) = logs_of.values()
    curves = _scaling.curves(log, "depth", with_slopes=False)
    first = curves[curves["block"] == 0].assign(place="first")
    last = curves[curves["block"] == curves["depth"] - 1].assign(place="last")
    return pd.concat([first, last], ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per place in the network."""
    labels = style.ordered(frame["estimator"])
    fig, axes = style.panels(list(PLACES.values()), columns=2, height=3.2, sharey=True)
    for ax, place in zip(axes, PLACES, strict=True):
        rows = frame[frame["place"] == place]
        ax.set(xlabel="number of hidden blocks", xticks=sorted(rows["depth"].unique()))
        for label in labels:
            curve = rows[rows["estimator"] == label]
            style.bars(ax, curve, "depth", label)
            _scaling.theory_line(ax, curve, "depth")
    style.log_limits(axes, frame)
    axes[0].set_ylabel("total variance ÷ ‖∇ of the block‖²")
    handles = [style.handle(label) for label in labels] + [_scaling.theory_handle()]
    style.legend(fig, handles, style.seeds_text(frame, "bars"))
    return fig
