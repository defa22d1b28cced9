"""How much luck a single learning rate is: validation accuracy against the rate, as the trials of tuning found it."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import logs, tuning
from figures import _labels, style

EXPERIMENTS = ("trials", "finals")
OPTIONAL = ("finals",)
POOLED = True
PLANNED = True  # a trial counts only where all its seeds are there
PROFILES = ("tuning",)
PANEL = ["dataset", "architecture", "optimizer", "layers"]


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs], planned: list) -> pd.DataFrame:
    """Return one row per method and learning rate of a grid (`round` 1), and one per finalist (`round` 2).

    Columns are those of `analysis.tuning.trials`, with `chosen` by the one-standard-error rule. `value` is 0 where `second` is
    "", and `se` is 0 where there is one seed. `layers` names the network in a grid of several, and is "" in others.
    """
    parts = []
    for experiment in planned:
        log = logs_of.get(experiment.role) if experiment.role in tuning.ROLES else None
        if log is None or not (log.runs["experiment"] == experiment.name).any():
            continue
        rows = tuning.trials(experiment, log)
        if experiment.role == "trials":
            part = tuning.by_rate(rows).assign(round=1, chosen=False)
        else:
            part = tuning.choices(rows).drop(columns=["best", "within"]).dropna(subset=["accuracy"]).assign(round=2)
        networks = list(rows["hidden"].unique())  # in the order of the file, which their panels keep
        part = part.sort_values("hidden", key=lambda column, order=networks: column.map(order.index), kind="stable")
        parts.append(part.assign(layers=part["hidden"].map(tuning.layers) if len(networks) > 1 else ""))
    frame = pd.concat(parts, ignore_index=True).fillna({"value": 0.0, "se": 0.0})
    # a method here is an estimator without its second setting, which no log has a label for
    return frame.assign(**{"trained_with.method": frame["method"], "trained_with.options": frame["given"]})


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel of curves per grid, a line per method, and one of its finals, a row per method: the chosen one in a ring."""
    grids = list(frame.groupby(PANEL, sort=False))
    labels = style.ordered(frame["trained_with"])
    drawn = [(_curves, _title(*key), rows[rows["round"] == 1]) for key, rows in grids]
    drawn += [(_finals, f"{_title(*key)}: finals", rows[rows["round"] == 2]) for key, rows in grids]
    drawn = [(show, title, rows) for show, title, rows in drawn if len(rows)]
    fig, axes = style.panels([title for _, title, _ in drawn], columns=2, height=3)
    for ax, (show, _, rows) in zip(axes, drawn, strict=True):
        show(ax, rows, [label for label in labels if label in set(rows["trained_with"])])
    handles = [style.handle(label) for label in labels]
    note = "curves: round 1, one seed, one epoch, with the second setting that is best at each rate"
    if (frame["round"] == 2).any():
        seeds = int(frame.loc[frame["round"] == 2, "seeds"].max())
        note += f"; finals: mean ± standard error of {seeds} seeds after more epochs; a ring: chosen, with its rate"
    style.legend(fig, handles, note)
    return fig


def _curves(ax: Axes, rows: pd.DataFrame, labels: list[str]) -> None:
    """Draw accuracy against the rate, a line per method."""
    for label in labels:
        curve = rows[rows["trained_with"] == label].sort_values("learning_rate")
        ax.plot(curve["learning_rate"], curve["accuracy"], **style.look(label).line(markersize=3, linewidth=1.1, markevery=2))
    ax.set(xscale="log", xlabel="learning rate")
    style.accuracy_axis(ax, rows["accuracy"])
    ax.set_ylabel("validation accuracy (logit scale)")


def _finals(ax: Axes, rows: pd.DataFrame, labels: list[str]) -> None:
    """Draw the finalists of each method in a row of its own, from the best method down."""
    best = rows.groupby("trained_with")["accuracy"].max().reindex(labels).sort_values()
    for height, label in enumerate(best.index):
        mine, how = rows[rows["trained_with"] == label], style.look(label)
        row, low, high = [height] * len(mine), mine["accuracy"] - mine["se"], mine["accuracy"] + mine["se"]
        ax.hlines(row, low, high, color=how.color, linewidth=1.2)
        ax.plot(mine["accuracy"], row, **how.line(linestyle="none", markersize=3.5))
        for final in mine[mine["chosen"].astype(bool)].itertuples():
            ax.plot([final.accuracy], [height], "o", markersize=8, **RING)
    ax.set_yticks(range(len(best)), [style.look(label).name for label in best.index], fontsize=7)
    rates = [rows[(rows["trained_with"] == label) & rows["chosen"].astype(bool)]["learning_rate"] for label in best.index]
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(best)), [f"{rate.iloc[0]:g}" if len(rate) else "" for rate in rates], fontsize=7)
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    style.accuracy_axis(ax, rows["accuracy"], "x")
    ax.set_xlabel("validation accuracy (logit scale)")


RING = {"markerfacecolor": "none", "markeredgecolor": style.INK, "markeredgewidth": 0.8}


def _title(dataset: str, architecture: str, optimizer: str, layers: str) -> str:
    return f"{style.dataset(dataset)}, {_labels.network(architecture, optimizer, layers)}"
