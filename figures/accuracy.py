"""Table: test accuracy at the end of training, over seeds, for every estimator."""

import pandas as pd

from analysis import accuracy, logs, options, tuning
from figures import _labels, _verdicts, style

EXPERIMENTS = ("convergence",)
OWN = ("convergence",)
POOLED = True
TABLE = True
SETTING = [*accuracy.SETTING, "optimizer", "epochs"]
CAPTION = (
    "Test accuracy (%) after the last epoch: mean ± half the 95 % t-interval over seeds; differences are paired by seed, p is "
    "corrected over the estimators of a setting (Holm)."
)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return one row per estimator and setting, compared with FDFA where it is there.

    A method that each experiment has tuned by itself is one (`tuning.as_tuned`).
    """
    (log,) = logs_of.values()
    log = tuning.as_tuned(log)
    known = options.meanings([log.runs])
    with _labels.reading(known):
        rank = {label: i for i, label in enumerate(style.ordered(log.runs["trained_with"]))}
    fdfa = [label for label in rank if known[label][0] == "fdfa"]
    table = accuracy.table(accuracy.with_setting(log), SETTING, against=fdfa[0] if fdfa else None)
    table = table.sort_values([*SETTING, "trained_with"], key=lambda c: c.map(rank) if c.name == "trained_with" else c)
    return options.described(table, known)


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts."""
    shown = pd.DataFrame(
        {
            "data": frame["dataset"].map(style.dataset),
            "network": [_labels.network(*pair) for pair in zip(frame["architecture"], frame["optimizer"], strict=True)],
            "epochs": frame["epochs"].astype(str),
            "estimator": [style.look(label).name for label in frame["trained_with"]],
            "accuracy (%)": [_accuracy(row) for row in frame.itertuples()],
            "best epoch (%)": [f"{100 * v:.2f}" if v == v else "–" for v in frame["best_accuracy"]],
            "seeds": [f"{row.seeds}" + (f" ({row.diverged} diverged)" if row.diverged else "") for row in frame.itertuples()],
        }
    )
    if "p_holm" in frame:
        shown["difference from FDFA"] = [_difference(row) for row in frame.itertuples()]
    return shown


def _accuracy(row) -> str:
    if row.seeds == 0:
        return "all diverged"
    half = f" ± {50 * (row.high - row.low):.2f}" if row.interval == "seeds" else ""
    return f"{100 * row.accuracy:.2f}{half}"


def _difference(row) -> str:
    if not row.difference == row.difference or _labels.meaning(row.trained_with)[0] == "fdfa" and row.difference == 0:
        return "–"
    p = f" (p {_verdicts.p_value(row.p_holm)})"
    tested = row.difference_low < row.difference_high  # a single seed has no interval, hence no test
    return f"{100 * row.difference:+.2f}{p if tested else ''}".replace("-", "−")
