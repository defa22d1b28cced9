"""How the noise of each estimator changes while a network is trained."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import logs, select, statistics, variance
from figures import _labels, style

EXPERIMENTS = ("trajectory",)
OWN = ("trajectory",)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return NSR per hidden block, estimator and step over seeds, for each trajectory of the weights.

    For "bp" it is the data noise at this batch size over ‖∇‖². For the others it is the variance given the batch, of the
    perturbations and their history alone, over the squared norm of that batch's gradient: late in training a batch may be
    learnt by heart, and noise that shrinks with its gradient would seem to have vanished if divided by that of all data.
    """
    (log,) = logs_of.values()
    probes = select.hidden_blocks(log.probes)
    noise = variance.data_noise(probes[probes["method"] == "bp"])
    noisy = variance.normalised(probes[(probes["method"] != "bp") & (probes["variance"] > 0)], by="target")
    by = ["trained_with", "block", "estimator", "step"]
    return pd.concat(
        [
            statistics.over_seeds(noise, "nsr", by, log=True),
            statistics.over_seeds(noisy, "nsr", by, se="nsr_se", log=True),
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
            ax.set_ylabel("variance ÷ ‖gradient‖² of the block")
    style.log_limits(axes, frame)
    labels = style.ordered(frame["estimator"])
    handles = [style.handle(label, label=style.look(label).name + style.NOISE * (label == "bp")) for label in labels]
    style.legend(fig, handles, style.seeds_text(frame))
    return fig
