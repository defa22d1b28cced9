"""Names, columns and types of the tables that a run writes."""

from __future__ import annotations

METRICS = ("step", "epoch", "batch_loss", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")
TIMING = ("step", "training_seconds", "instrument_seconds", "evaluation_seconds")
PROBES = ("step", "epoch", "estimator", "method", "options", "sampling", "draws", "level", "block", "role", "parameter")
FEEDBACK = ("step", "epoch", "estimator", "method", "options", "block", "replicates")
TABLES = {"metrics": METRICS, "probes": PROBES, "timing": TIMING, "feedback": FEEDBACK}  # columns that identify a row, at least
TYPES = (
    dict.fromkeys(("step", "draws", "block", "replicates", "size", "reference_batches"), "int64")
    | dict.fromkeys(("estimator", "method", "options", "sampling", "level", "role", "parameter"), "string")
    | {"valid": "bool"}
)  # of the columns that do not hold float64

QUANTITIES = ("deviation", "norm2", "error", "slope", "cosine", "cosine_reference")
MOMENTS = tuple(f"{quantity}_{moment}" for quantity in QUANTITIES for moment in ("mean", "m2", "m3", "m4"))
VANISHED = 1e-7  # a gradient of a smaller norm is rounding error: nothing can be aligned with it, or measured against it

# Columns of probes.parquet beyond the keys, by which a foreign or outdated table is told.
PROBE_COLUMNS = (
    "reference_variance",
    "reference_stability",
    "reference_batches",
    "size",
    *MOMENTS,
    "variance",
    "variance_se",
    "bias2",
    "bias2_se",
    "mean_norm2",
    "mean_cosine",
    "target_norm",
    "reference_norm",
    "valid",
)
# Of methods whose estimate is of a gradient of their own, NaN for all others.
OWN_COLUMNS = ("own_error", "own_error_se", "own_norm")
ACTIVATION_COLUMNS = ("activation_rms",)  # of whole hidden blocks, NaN in all other rows
# What later versions added, in the order in which they did: a table of an earlier one lacks a group, which reads as NaN.
ADDED_COLUMNS = (OWN_COLUMNS, ACTIVATION_COLUMNS)
LATER_COLUMNS = sum(ADDED_COLUMNS, ())
FEEDBACK_COLUMNS = (
    "jacobian_norm",
    "error2",
    "error2_se",
    "variance",
    "variance_se",
    "bias2",
    "bias2_se",
    "gradient_norm",
    "gradient_bias2",
    "gradient_bias2_se",
    "averaging2",
    "lag2",
    "start2",
    "sampling2",
    "expected_bias2",
)
# All columns of a table that has rows, in the order in which a run writes them. A table without rows has its keys only.
COLUMNS = TABLES | {"probes": PROBES + PROBE_COLUMNS + LATER_COLUMNS, "feedback": FEEDBACK + FEEDBACK_COLUMNS}


def expected_tables(probed: bool, feedback: bool) -> list[str]:
    """Return the names of the tables that a run writes.

    Args:
        probed: whether its configuration has a table `probe`.
        feedback: whether that table asks for the feedback.
    """
    asked = {"probes": probed, "feedback": probed and feedback}
    return [name for name in TABLES if asked.get(name, True)]
