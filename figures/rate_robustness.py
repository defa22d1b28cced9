"""How much luck a single learning rate is: validation accuracy against the rate, as the trials of tuning found it."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import logs, tuning
from figures import _labels, style

EXPERIMENTS = ("trials", "finals")
OPTIONAL = ("finals",)
POOLED = True
PLANNED = True  # a trial counts only where all its seeds are there
PROFILES = ("tuning",)
PANEL = ["dataset", "architecture", "optimizer"]


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs], planned: list) -> pd.DataFrame:
    """Return one row per method and learning rate of a grid (`round` 1), and one per finalist (`round` 2).

    Columns are those of `analysis.tuning.trials`, with `chosen` by the one-standard-error rule. `value` is 0 where `second` is
    "", and `se` is 0 where there is one seed.
    """
    parts = []
    for experiment in planned:
        log = logs_of.get(experiment.role) if experiment.role in tuning.ROLES else None
        if log is None or not (log.runs["experiment"] == experiment.name).any():
            continue
        rows = tuning.trials(experiment, log)
        if experiment.role == "trials":
            parts.append(tuning.by_rate(rows).assign(round=1, chosen=False))
        else:
            parts.append(tuning.choices(rows).drop(columns=["best", "within"]).dropna(subset=["accuracy"]).assign(round=2))
    frame = pd.concat(parts, ignore_index=True).fillna({"value": 0.0, "se": 0.0})
    # a method here is an estimator without its second setting, which no log has a label for
    return frame.assign(**{"trained_with.method": frame["method"], "trained_with.options": frame["given"]})


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a panel per grid: a line per method, its finalists as dots with their standard error, the chosen one in a ring."""
    grids = list(frame.groupby(PANEL, sort=False))
    labels = style.ordered(frame["trained_with"])
    fig, axes = style.panels([_title(*key) for key, _ in grids], columns=2, height=3)
    for ax, (_, rows) in zip(axes, grids, strict=True):
        for label in labels:
            mine = rows[rows["trained_with"] == label]
            curve, finals = mine[mine["round"] == 1].sort_values("learning_rate"), mine[mine["round"] == 2]
            how = style.look(label)
            ax.plot(curve["learning_rate"], curve["accuracy"], **how.line(markersize=3, linewidth=1.1, markevery=2))
            low, high = finals["accuracy"] - finals["se"], finals["accuracy"] + finals["se"]
            ax.vlines(finals["learning_rate"], low, high, color=how.color, linewidth=1.2, zorder=4)
            ax.plot(finals["learning_rate"], finals["accuracy"], "o", color=how.color, markersize=3.5, zorder=5)
            best = finals[finals["chosen"].astype(bool)]
            ax.plot(best["learning_rate"], best["accuracy"], "o", markersize=8, zorder=6, **RING)
        ax.set(xscale="log", xlabel="learning rate")
        style.accuracy_axis(ax, rows["accuracy"])
    for ax in axes[::2]:
        ax.set_ylabel("validation accuracy (logit scale)")
    handles = [style.handle(label) for label in labels]
    note = "lines: round 1, one seed, one epoch, with the second setting that is best at each rate"
    if (frame["round"] == 2).any():
        seeds = int(frame.loc[frame["round"] == 2, "seeds"].max())
        note += f"; dots: finals, mean ± standard error of {seeds} seeds; a ring: chosen"
    style.legend(fig, handles, note)
    return fig


RING = {"markerfacecolor": "none", "markeredgecolor": style.INK, "markeredgewidth": 0.8}


def _title(dataset: str, architecture: str, optimizer: str) -> str:
    return f"{dataset}, {architecture.replace('_', ' ')}" + ("" if optimizer == "adam" else f", {optimizer.upper()}")
