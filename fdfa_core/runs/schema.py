"""Names, columns and types of the tables that a run writes."""

from __future__ import annotations

METRICS = ("step", "epoch", "batch_loss", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")
TIMING = ("step", "training_seconds", "instrument_seconds", "evaluation_seconds")
PROBES = ("step", "epoch", "estimator", "method", "options", "sampling", "draws", "level", "block", "role", "parameter")
FEEDBACK = ("step", "epoch", "estimator", "method", "options", "block", "replicates")
TABLES = {"metrics": METRICS, "probes": PROBES, "timing": TIMING, "feedback": FEEDBACK}
TYPES = dict.fromkeys(("step", "draws", "block", "replicates"), "int64") | dict.fromkeys(
    ("estimator", "method", "options", "sampling", "level", "role", "parameter"), "string"
)

QUANTITIES = ("deviation", "norm2", "error", "slope", "cosine", "cosine_reference")
MOMENTS = tuple(f"{quantity}_{moment}" for quantity in QUANTITIES for moment in ("mean", "m2", "m3", "m4"))
VANISHED = 1e-7  # a gradient of a smaller norm is rounding error: nothing can be aligned with it, or measured against it

# Columns of probes.parquet beyond the keys, by which a foreign or outdated table is told.
PROBE_COLUMNS = (
    "size",
    "variance",
    "variance_se",
    "bias2",
    "bias2_se",
    "mean_norm2",
    "mean_cosine",
    "target_norm",
    "reference_norm",
    "reference_variance",
    "reference_stability",
    "reference_batches",
    "valid",
    *MOMENTS,
)
