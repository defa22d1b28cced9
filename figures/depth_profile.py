"""What to look at beside an accuracy, block by block: direction, growth of activations, the reference, and frozen blocks."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis import accuracy, alignment, layers, logs, select
from figures import _labels, _references, style

EXPERIMENTS = ("convergence",)
BASELINE = "frozen"
BY = ["trained_with", "block"]
PANELS = {
    "cosine": "cosine to BP's gradient of the batch",
    "growth": "activations ÷ those at the first probe",
    "amplification": "activations ÷ those of the block below",
    "norm": "norm of the reference gradient ∇",
    "share": _references.SHARE,
    "accuracy": "test accuracy (logit scale)",
}
LOGARITHMIC = ("growth", "amplification", "norm")
EDGE = layers.FLOOR / 1e3  # smaller norms are drawn here, since zero has no place on a logarithmic axis
WIDE = 0.5  # of a block, over which methods are spread
WITHOUT = "not measured in these logs"
SETTING = ("dataset", "architecture")


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return long rows over seeds, at the last probe of every run, per hidden block and by `quantity`.

    "cosine" is that of the method's own estimate to BP's gradient of the same batch; `stable` is False where the reference is
    mostly noise in some seed (`alignment.mean_cosines`). "growth" and "amplification" are those of `layers.activations`, and
    have no rows where the logs are older than this measurement. "norm" is ‖∇‖, and "share" how much of ‖∇‖² is no noise.
    "accuracy", with `block` −1, is the final test accuracy. Only cosines can be not `stable`.
    """
    (log,) = logs_of.values()
    probes = select.hidden_blocks(log.probes)
    probes = probes[probes["source"] == "self"]
    last = select.last_step(probes)
    final = accuracy.table(log.metrics, SETTING).rename(columns={"accuracy": "estimate"}).dropna(subset="estimate")
    parts = [
        alignment.mean_cosines(last, BY).assign(quantity="cosine"),
        layers.growth(probes, BY, last=True).assign(stable=True),
        layers.reference_norms(last, BY).assign(quantity="norm", stable=True),
        alignment.references(last, BY).assign(quantity="share", stable=True),
        final.assign(quantity="accuracy", block=-1, stable=True),
    ]
    columns = [*BY, "quantity", "estimate", "low", "high", "seeds", "interval", "stable"]
    return pd.concat([part[columns] for part in parts if len(part)], ignore_index=True)


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel a quantity, with a line a method; the dashed line in the last is the accuracy of frozen hidden layers."""
    fig, axes = style.panels(list(PANELS.values()), height=2.7)
    labels = style.ordered(frame["trained_with"])
    blocks = sorted(frame.loc[frame["block"] >= 0, "block"].unique())
    for ax, quantity in zip(axes, PANELS, strict=True):
        rows = frame[frame["quantity"] == quantity]
        if quantity == "accuracy":
            _accuracies(ax, rows, labels)
            continue
        for label, beside in zip(labels, _spread(len(labels)), strict=True):
            mine = rows[rows["trained_with"] == label].assign(place=lambda f, beside=beside: f["block"] + 1 + beside)
            if quantity == "norm":
                mine = mine.assign(**{c: mine[c].clip(lower=EDGE) for c in ("estimate", "low", "high")})
            _references.curve(ax, mine, "place", label, shade=None, markersize=3.5)
        ax.set(xlabel="hidden block", xlim=(0.6, max(blocks) + 1.4))
        ax.xaxis.set_major_locator(MaxNLocator(min(len(blocks), 6), integer=True))
        if rows.empty:
            ax.text(0.5, 0.5, WITHOUT, transform=ax.transAxes, ha="center", va="center", color=style.GREY)
            ax.set(yticks=[])
        elif quantity in LOGARITHMIC:
            ax.axhline(layers.FLOOR if quantity == "norm" else 1, color=style.GREY, linewidth=0.8)
            _logarithmic(ax)
        elif quantity == "share":
            ax.axhline(alignment.STABLE, color=style.GREY, linewidth=0.8)
            ax.set(ylim=(-0.03, 1.03))
        else:
            ax.axhline(0, color=style.GREY, linewidth=0.8)
            ax.set(ylim=(min(-0.1, rows["estimate"].min() - 0.1), 1.05))
    handles = [style.handle(label) for label in labels] + _references.handles(frame)
    if BASELINE in set(frame.loc[frame["quantity"] == "accuracy", "trained_with"]):
        handles.append(style.mark("accuracy of frozen hidden layers", "none", style.look(BASELINE).color, "--"))
    note = f"{style.seeds_text(frame, 'bars')}; at the last probe; ‖∇‖ below 10⁻⁷ (grey line) is rounding error"
    if (frame.loc[frame["quantity"] == "norm", "estimate"] < EDGE).any():
        note += ", and below 10⁻¹⁰ it is drawn at the edge"
    style.legend(fig, handles, note)
    return fig


def _spread(methods: int) -> list[float]:
    """Return how far beside a block's number each method stands, so that equal values do not hide one another."""
    return [WIDE * ((i + 0.5) / methods - 0.5) for i in range(methods)]


def _logarithmic(ax: Axes) -> None:
    """Make y logarithmic, with round numbers at its ticks where it spans less than a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 10 * low:
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        style.plain_log(ax.yaxis)


def _accuracies(ax: Axes, rows: pd.DataFrame, labels: list[str]) -> None:
    """Draw a line a method, from the first in the legend down, each with the interval of its accuracy."""
    style.accuracy_axis(ax, rows["estimate"], "x")
    ax.set(yticks=[], ylim=(len(labels) - 0.4, -0.6), xlabel="in the order of the legend")
    for row in rows.itertuples():
        look, y = style.look(row.trained_with), labels.index(row.trained_with)
        ax.plot([row.low, row.high], [y, y], color=look.color, linewidth=1.1)
        ax.plot(row.estimate, y, **look.line(linestyle="none", markersize=4.5))
        if row.trained_with == BASELINE:
            ax.axvline(row.estimate, color=look.color, linewidth=0.9, linestyle="--", zorder=0)
