"""What a gradient estimate costs, and how well it points.

One point of training: a small network on the digits after a hundred steps of BP. Fixed random feedback aligns with the weights
only while they are trained with it, and so stands here at an angle of about 90 degrees.
"""

import pandas as pd
from matplotlib.figure import Figure

from analysis import benches
from figures import _labels, style

EXPERIMENTS = ()
BENCH = "cost_vs_alignment"
Z = 1.959964  # standard errors to either side: 95 %
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
LINEAR = 0.01  # cosines below this are drawn on a linear scale


@_labels.labelled
def compute(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return milliseconds (median, quartiles), mean cosine with a 95 % interval over draws, and relative squared error."""
    (table,) = tables.values()
    machine = benches.machine_text(table)
    table = table[table["mean_cosine"].notna()].rename(columns={"low": "milliseconds_low", "high": "milliseconds_high"})
    half = Z * table["cosine_se"]
    return table.assign(
        estimate=table["mean_cosine"], low=table["mean_cosine"] - half, high=table["mean_cosine"] + half, machine=machine
    ).drop(columns=["mean_cosine", "threads"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one point an estimator: mean cosine on the left, squared error on the right, both against milliseconds."""
    titles = ["mean cosine to the BP gradient", "squared error ÷ ‖BP gradient‖²"]
    fig, (left, right) = style.panels(titles, columns=2, height=3.6)
    labels, variants = style.ordered(frame["estimator"]), []
    for label in labels:
        (row,) = frame[frame["estimator"] == label].itertuples()
        line = style.look(label).line(linestyle="none")
        spread = {"color": line["color"], "linewidth": 1}
        left.plot(row.milliseconds, row.estimate, **line)
        left.vlines(row.milliseconds, row.low, row.high, **spread)
        left.hlines(row.estimate, row.milliseconds_low, row.milliseconds_high, **spread)
        if row.relative_error > 1e-6:  # BP: rounding errors
            right.plot(row.milliseconds, row.relative_error, **line)
            right.hlines(row.relative_error, row.milliseconds_low, row.milliseconds_high, **spread)
            if label != row.method:
                variants.append((row.milliseconds, row.relative_error, _variant(label)))
    left.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
    left.set_yticks([-0.1, -0.01, 0, 0.01, 0.1, 1], ["−0.1", "−0.01", "0", "0.01", "0.1", "1"])
    left.set_ylim(-0.3, 1.3)
    left.axhline(0, color=style.GREY, linewidth=0.8, zorder=1)
    right.set_yscale("log")
    right.margins(y=0.12)
    right.axhline(1, color=style.GREY, linewidth=0.8, zorder=1)
    for ax in (left, right):
        ax.set(xscale="log", xlabel="milliseconds of one estimate")
        style.ticks(ax, [t for t in TICKS if frame["milliseconds"].min() / 1.5 < t < 1.5 * frame["milliseconds"].max()])
    first = frame.iloc[0]
    note = (
        f"64-128-128-10 on the digits, a batch of 64, after {first.steps} steps of BP; feedback in its stationary state\n"
        f"{first.draws} draws, bars: 95 % interval over draws and quartiles of the time; {first.machine}"
    )
    style.legend(fig, [style.handle(label, linestyle="none") for label in labels], note)
    style.point_labels(right, variants)
    return fig


def _variant(label: str) -> str:
    """What sets a variant apart from its method's default."""
    name = style.look(label).name
    return name.partition("(")[2].rstrip(")") or name.partition(" ")[2]
