"""Table: our runs beside those of the paper's released code, with the same network, data and settings."""

import pandas as pd

from analysis import logs, released
from figures import _labels, style

EXPERIMENTS = ("released",)
PROFILES = ("paper",)  # the others have no run at these settings
TABLE = True
CAPTION = (
    "Means over seeds after an epoch, ours and the released code's (2 hidden layers of 800 on MNIST, learning rate 1e-4): "
    "difference with 95 % interval (Welch), p corrected over all rows (Holm)."
)
NAMES = {"test_accuracy": ("test accuracy (%)", 100, ".2f"), "test_loss": ("test loss", 1, ".4f")}


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return the comparison at the end of every epoch, by estimator and quantity."""
    (log,) = logs_of.values()
    return released.compare(log.metrics, released.read())


@_labels.understood
def show(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts."""
    return pd.DataFrame([_texts(row) for row in frame.itertuples()])


def _texts(row) -> dict[str, str]:
    name, scale, digits = NAMES[row.quantity]
    ours, theirs, low, high = (f"{scale * v:{digits}}" for v in (row.ours, row.theirs, row.low, row.high))
    return {
        "estimator": style.look(row.trained_with).name,
        "quantity": name,
        "epoch": str(row.epoch),
        "ours": f"{ours} ({row.seeds})",
        "released code": f"{theirs} ({row.seeds_theirs})",
        "difference": f"{scale * row.difference:+{digits}} [{low}, {high}]".replace("-", "−"),
        "p (corrected)": f"{row.p_holm:.3f}",
    }
