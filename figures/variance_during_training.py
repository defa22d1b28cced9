"""How the noise of each estimator changes while a network is trained."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import logs, select, statistics, variance
from figures import _labels, style

EXPERIMENTS = ("trajectory",)
OWN = ("trajectory",)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return the noise per hidden block, estimator and step over seeds, for each trajectory of the weights.

    It is the total variance over that of the batch gradient itself, from batch to batch. That of "bp" is 1: what a perfect
    estimator would still have. The others' is the variance given the batch, of the perturbations and their history alone. One
    denominator serves all: two norms, of a batch's gradient and of all data's, would differ by much and so mislead.
    """
    (log,) = logs_of.values()
    probes = select.hidden_blocks(log.probes)
    noise = variance.over_data_noise(variance.data_noise(probes[probes["method"] == "bp"]))
    noisy = variance.over_data_noise(probes[(probes["method"] != "bp") & (probes["variance"] > 0)])
    by = ["trained_with", "block", "estimator", "step"]
    return pd.concat(
        [
            statistics.over_seeds(noise, "ratio", by, log=True),
            statistics.over_seeds(noisy, "ratio", by, se="ratio_se", log=True),
        ],
        ignore_index=True,
    )


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a row of panels for each trajectory and a panel for each hidden block."""
    blocks = sorted(frame["block"].unique())
    cells = [(path, block) for path in style.ordered(frame["trained_with"]) for block in blocks]
    titles = [style.block_title(block, len(blocks), path) for path, block in cells]
    fig, axes = style.panels(titles, columns=len(blocks), sharey=True)
    for ax, (path, block) in zip(axes, cells, strict=True):
        rows = frame[(frame["trained_with"] == path) & (frame["block"] == block)]
        for label in style.ordered(rows["estimator"]):
            style.band(ax, rows[rows["estimator"] == label], "step", label)
        style.steps_axis(ax, frame["step"])
        if block == blocks[0]:
            ax.set_ylabel("variance given the batch ÷ variance of the batch gradient")
    style.log_limits(axes, frame)
    labels = style.ordered(frame["estimator"])
    handles = [style.handle(label, label=style.look(label).name + style.NOISE * (label == "bp")) for label in labels]
    style.legend(fig, handles, style.seeds_text(frame))
    return fig
