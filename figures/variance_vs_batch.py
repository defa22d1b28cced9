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
    curves = _scaling.curves(log, "batch_size")
    usual = log.probes.loc[options.at_default(log.probes, "tangents", "site"), "estimator"]
    return curves[curves["estimator"].isin(usual)]


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per hidden block, with the fitted slope at the end of each line."""
    return _scaling.draw_noise(frame, "batch_size", "batch size", 3.2, {})
