"""How the noise of an estimate grows with the network's width: perturbing weights, neurons, or only the feedback."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import logs, select, statistics, variance
from analysis.rebuilt import closed_forms
from figures import _labels, _scaling, style

EXPERIMENTS = ("width",)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return NSR = total variance / ‖∇‖² per hidden block, estimator and width, over seeds, with its log–log slope.

    BP's data noise stands beside the others as estimator "bp". Where all points have a closed form, it is the column `theory`.
    """
    (log,) = logs_of.values()
    probes = select.last_step(select.hidden_blocks(log.probes))
    noise = variance.data_noise(probes[probes["method"] == "bp"])
    noisy = variance.normalised(probes[probes["method"] != "bp"])
    by, parts = ["block", "estimator"], []
    for rows, se in ((noise, None), (noisy, "nsr_se")):
        curves = statistics.over_seeds(rows, "nsr", [*by, "width"], se=se, log=True)
        slopes = statistics.slopes(rows, "width", "nsr", by).drop(columns=["seeds", "curvature"])
        slopes = slopes.rename(columns={"low": "slope_low", "high": "slope_high", "interval": "slope_interval"})
        parts.append(curves.merge(slopes, on=by))
    frame = pd.concat(parts, ignore_index=True).assign(sampling=probes["sampling"].iloc[0])
    return closed_forms.with_theory(frame, closed_forms.curve(log, [*by, "width"]), [*by, "width"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel a hidden block, with the fitted slope at the end of each line."""
    blocks = sorted(frame["block"].unique())
    labels = style.ordered(frame["estimator"])
    fig, axes = style.panels([style.block_title(b, len(blocks)) for b in blocks], columns=2, height=3)
    for ax, block in zip(axes, blocks, strict=True):
        rows = frame[frame["block"] == block]
        ax.set(xscale="log", xlabel="width of the hidden layers")
        style.log_limits([ax], rows)
        for label in labels:
            curve = rows[rows["estimator"] == label]
            style.bars(ax, curve, "width", label)
            _scaling.theory_line(ax, curve, "width")
        style.ticks(ax, rows["width"])
        ends = rows[rows["width"] == rows.groupby("estimator")["width"].transform("max")]
        style.end_labels(
            ax, [(r.estimate, _scaling.slope_text(r), style.look(r.estimator).color) for r in ends.itertuples()], "slope [95 %]"
        )
    axes[0].set_ylabel("total variance ÷ ‖∇ of the block‖²")
    handles = [style.handle(label, label=style.look(label).name + style.NOISE * (label == "bp")) for label in labels]
    handles += [_scaling.theory_handle()] if "theory" in frame else []
    style.legend(fig, handles, style.seeds_text(frame, "bars and slopes"))
    return fig
