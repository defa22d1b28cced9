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
    """Draw one panel per hidden block, with the fitted slope at the end of each line."""
    return _scaling.draw_noise(frame, "width", "width of the hidden layers", 3, {"bp": style.NOISE})
