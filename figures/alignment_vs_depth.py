"""Do deeper networks learn less well from these gradients: alignment and accuracy against the number of hidden layers."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import accuracy, alignment, logs, options, select, tuning
from figures import _labels, _references, style

EXPERIMENTS = ("depth",)
PANELS = {
    "first": "first hidden block, to the batch",
    "mean": "mean of hidden blocks, to the batch",
    "accuracy": "test accuracy (logit scale)",
    "first_reference": "first hidden block, to ∇",
    "mean_reference": "mean of hidden blocks, to ∇",
    "share": "mean of hidden blocks: " + _references.SHARE,
}
AGAINST = {"": "target", "_reference": "reference"}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return long rows over seeds, against depth, by `quantity`.

    "first" and "mean" are angles to the gradient of the batch at the last probe of training, of the first hidden block and of
    all; "first_reference" and "mean_reference" those to the gradient of the reference set. `stable` is False where that
    reference is mostly noise in a block or seed (`alignment.angles`). "share" is how much of it is no noise, and "accuracy"
    the final test accuracy; these two have no reference to be unstable, and are always `stable`. A method that each depth has
    tuned by itself is one (`tuning.as_tuned`).
    """
    (log,) = logs_of.values()
    log = tuning.as_tuned(log)
    by = ["trained_with", "depth"]
    probes = select.last_step(select.hidden_blocks(log.probes))
    probes = probes[(probes["source"] == "self") & (probes["method"] != "frozen")]
    parts = [
        alignment.angles(rows, by, against).assign(quantity=quantity + ending)
        for quantity, rows in {"first": probes[probes["block"] == 0], "mean": probes}.items()
        for ending, against in AGAINST.items()
    ]
    parts.append(alignment.references(probes, by).assign(quantity="share", stable=True))
    final = accuracy.table(log.metrics, by[1:]).rename(columns={"accuracy": "estimate"}).dropna(subset="estimate")
    columns = [*by, "estimate", "low", "high", "seeds", "interval", "stable", "quantity"]
    parts.append(final.assign(quantity="accuracy", stable=True))
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)[columns]
    return options.described(frame, options.meanings([log.runs]))


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel a quantity."""
    fig, axes = style.panels(list(PANELS.values()), height=2.7)
    labels = style.ordered(frame["trained_with"])
    for ax, quantity in zip(axes, PANELS, strict=True):
        rows = frame[frame["quantity"] == quantity]
        for label in labels:
            _references.curve(ax, rows[rows["trained_with"] == label], "depth", label, shade=None)
        ax.set(xlabel="hidden layers", xticks=sorted(frame["depth"].unique()))
        if quantity == "share":
            ax.axhline(alignment.STABLE, color=style.GREY, linewidth=0.8)
            ax.set(ylim=(-0.03, 1.03))
        elif quantity != "accuracy":
            ax.axhline(90, color=style.GREY, linewidth=0.8)
            ax.set(ylim=(-5, 110), yticks=range(0, 91, 30))
        else:
            style.accuracy_axis(ax, rows["estimate"])
    axes[0].set_ylabel("angle to BP's gradient of the batch (°)")
    axes[3].set_ylabel("angle to the reference gradient ∇ (°)")
    handles = [style.handle(label) for label in labels] + _references.handles(frame)
    style.legend(fig, handles, style.seeds_text(frame, "bars"))
    return fig
