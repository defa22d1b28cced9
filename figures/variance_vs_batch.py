"""How the noise of an estimate falls with the batch size, and where it does not."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import logs, options
from figures import _labels, _scaling, style

EXPERIMENTS = ("batch",)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return NSR = total variance / ‖∇‖² per hidden block, estimator and batch size, over seeds, with closed form and slope."""
    (log,) = logs_of.values()
    found = _scaling.curves(log, "batch_size")
    usual = log.probes.loc[options.at_default(log.probes, "tangents", "site"), "estimator"]
    return found[found["estimator"].isin(usual)]


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel a hidden block, with the fitted slope at the end of each line."""
    blocks = sorted(frame["block"].unique())
    labels = style.ordered(frame["estimator"])
    fig, axes = style.panels([style.block_title(b, len(blocks)) for b in blocks], columns=2, height=3.2)
    for ax, block in zip(axes, blocks, strict=True):
        rows = frame[frame["block"] == block]
        ax.set(xscale="log", xlabel="batch size")
        style.log_limits([ax], rows)
        for label in labels:
            curve = rows[rows["estimator"] == label]
            style.bars(ax, curve, "batch_size", label)
            _scaling.theory_line(ax, curve, "batch_size")
        style.ticks(ax, rows["batch_size"])
        ends = rows[rows["batch_size"] == rows["batch_size"].max()]
        texts = [(r.estimate, _scaling.slope_text(r), style.look(r.estimator).color) for r in ends.itertuples()]
        style.end_labels(ax, texts, "slope [95 %]")
    axes[0].set_ylabel("total variance ÷ ‖∇ of the block‖²")
    handles = [style.handle(label) for label in labels] + [_scaling.theory_handle()]
    style.legend(fig, handles, style.seeds_text(frame, "bars and slopes"))
    return fig
