"""Logs with a known truth, in the files and columns of real ones (docs/architecture.md), made in milliseconds.

An estimator's draws of a block's gradient τ are (τ·v)v for forward gradients, τ + bias + √(α/(2 − α))·noise for FDFA, τ for BP.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from fdfa_core.estimators.labels import label
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import seal, validation

STEPS = (0, 1, 4)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = 24  # components of a hidden block
BIAS = 0.5  # of FDFA in the first block, as a share of ‖τ‖

WIDTHS = """
[data]
name = "digits"
[network]
architecture = "fully_connected"
hidden = [8, 8]
[estimator]
name = "bp"
[training]
steps = 5
[probe]
schedule = { kind = "every", k = 1 }
replicates = 48
estimators = [{ name = "self" }, { name = "fg-w" }, { name = "fdfa", feedback_lr = 0.1, warmup = true }]
[grid]
"network.hidden" = [[8, 8], [16, 16], [32, 32]]
seed = [0, 1, 2]
"""
ALPHAS = """
[network]
hidden = [8, 8]
[estimator]
name = "bp"
[training]
steps = 5
[probe]
schedule = { kind = "every", k = 1 }
replicates = 48
estimators = [{ name = "fdfa", feedback_lr = 0.01 }, { name = "fdfa", feedback_lr = 0.1 }, { name = "fdfa", feedback_lr = 1.0 },
              { name = "fg-a" }]
[grid]
seed = [0, 1, 2]
"""
TRAJECTORY = """
[network]
hidden = [8, 8]
[training]
steps = 5
[probe]
schedule = { kind = "every", k = 1 }
replicates = 48
estimators = [{ name = "bp" }, { name = "fg-w" }, { name = "fg-a", site = "pre" }, { name = "fg-a", site = "post" },
              { name = "dfa" }, { name = "fdfa", feedback_lr = 0.1 }]
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "fdfa", feedback_lr = 0.1 }
[grid]
seed = [0, 1, 2]
"""
METHODS = """
[network]
hidden = [8, 8]
[training]
steps = 5
[probe]
schedule = { kind = "every", k = 1 }
replicates = 48
estimators = [{ name = "self" }]
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "fg-w" }
[[cases]]
estimator = { name = "dfa" }
[[cases]]
estimator = { name = "fdfa", feedback_lr = 0.1 }
[grid]
seed = [0, 1, 2]
"""
EXPERIMENTS = {"width": WIDTHS, "momentum": ALPHAS, "trajectory": TRAJECTORY, "convergence": METHODS}


def moments(values):
    """Mean and the central moments two to four, divided by R."""
    centred = values - values.mean()
    return [float(v) for v in (values.mean(), *((centred**k).mean() for k in (2, 3, 4)))]


def row(draws, target, reference):
    """Return the measured columns of probes.parquet for draws (R, n) of one group of parameters."""
    n, mean = len(draws), draws.mean(0)
    norms = np.linalg.norm(draws, axis=1)
    quantities = {
        "deviation": ((draws - mean) ** 2).sum(1),
        "norm2": norms**2,
        "error": ((draws - target) ** 2).sum(1),
        "slope": draws @ target / (target @ target),
        "cosine": draws @ target / (norms * np.linalg.norm(target)),
        "cosine_reference": draws @ reference / (norms * np.linalg.norm(reference)),
    }
    out = {"size": len(target)}
    for name, values in quantities.items():
        out |= dict(zip((f"{name}_{m}" for m in ("mean", "m2", "m3", "m4")), moments(values), strict=True))
    out["variance"] = out["deviation_mean"] * n / (n - 1)
    out["variance_se"] = np.sqrt(out["deviation_m2"] / (n - 1)) * n / (n - 1)
    errors = draws - target
    total, squares = errors.sum(0), (errors**2).sum(1)
    out["bias2"] = (total @ total - squares.sum()) / (n * (n - 1))
    left = ((total - errors) ** 2).sum(1) - (squares.sum() - squares)
    left /= (n - 1) * (n - 2)
    out["bias2_se"] = np.sqrt(((left - left.mean()) ** 2).sum() * (n - 1) / n)
    out |= {"mean_norm2": mean @ mean, "mean_cosine": mean @ target / np.linalg.norm(mean) / np.linalg.norm(target)}
    out |= {"target_norm": np.linalg.norm(target), "reference_norm": np.linalg.norm(reference)}
    out |= {"reference_variance": 0.3 * (target @ target), "reference_stability": 0.6, "reference_batches": 8}
    return out | {"valid": bool(np.linalg.norm(target) >= 1e-7)}


def draw(rng, method, options, target, replicates, block):
    """Return draws (R, n) of an estimator of this name."""
    v = rng.standard_normal((replicates, len(target)))
    match method:
        case "fg-w" | "fg-a":
            return (v @ target)[:, None] * v
        case "fdfa":
            alpha = options.get("feedback_lr", 0.1)
            bias = BIAS * np.linalg.norm(target) * np.eye(len(target))[0] if block == 0 else 0.0
            return target + bias + np.sqrt(alpha / (2 - alpha)) * np.linalg.norm(target) * v
        case "dfa":
            return np.tile(np.roll(target, 1), (replicates, 1))
    return np.tile(target, (replicates, 1))


def probes(config, seed):
    """Return the probe table of a run."""
    rng, rows = np.random.default_rng([seed, len(config.canonical())]), []
    width = max(config.network.options["hidden"])
    for step in STEPS:
        for estimator in config.probe.estimators:
            own = config.estimator if estimator.name == "self" else estimator
            for block in (0, 1, 2):
                target = rng.standard_normal(SIZE * width // 8 if block < 2 else 10)
                reference = target + 0.1 * rng.standard_normal(len(target))
                if block == 1 and step == 4 and config.estimator.name == "dfa":
                    target = reference = target * 1e-12  # a reference that vanished
                draws = draw(rng, own.name, own.options, target, config.probe.replicates, block)
                about = {
                    "step": step,
                    "epoch": step / 5,
                    "estimator": "self" if estimator.name == "self" else label(own.name, own.options),
                    "method": own.name,
                    "options": json.dumps(own.options),
                    "sampling": "given_batch",
                    "draws": config.probe.replicates,
                    "level": "block",
                    "block": block,
                    "role": "readout" if block == 2 else "hidden",
                    "parameter": "",
                }
                rows.append(about | row(draws, target, reference))
    return pd.DataFrame(rows)


def provenance(config=None, dirty=False, commit=COMMIT, **more):
    """What a run's provenance.json holds."""
    return {
        "code": {"commit": commit, "dirty": dirty},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"processor": "a <processor> & more", "cores": 2, "device": "cpu", "threads": 1},
        "seed": config.seed if config else 0,
        "data": {"name": config.data.name if config else "digits", "sha256": "ab" * 32, "notes": []},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
    } | more


def write_run(root, config, *, diverged=False):
    """Write the directory of a finished (or diverged) run."""
    directory = root / config.id
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config.canonical())
    rng = np.random.default_rng([config.seed, *config.estimator.name.encode()])
    steps = np.array(STEPS[:2] if diverged else (*STEPS, 5))  # one that diverged did so at step 2
    loss = 2.3 * np.exp(-0.3 * steps) * np.exp(0.1 * rng.standard_normal(len(steps)))
    accuracy = np.clip(1 - loss / 2.5 + 0.01 * rng.standard_normal(len(steps)), 0, 1)
    metrics = {"step": steps, "epoch": steps / 5, "batch_loss": np.where(steps == 0, np.nan, loss), "learning_rate": 1e-3}
    metrics |= {"train_loss": loss, "train_accuracy": accuracy, "test_loss": loss * 1.1, "test_accuracy": accuracy}
    metrics = pd.DataFrame(metrics)
    metrics.to_parquet(directory / "metrics.parquet")
    timing = {"step": steps, "training_seconds": steps * 0.1, "instrument_seconds": 0.0, "evaluation_seconds": 0.0}
    pd.DataFrame(timing).to_parquet(directory / "timing.parquet")
    if config.probe is not None:
        probes(config, config.seed).to_parquet(directory / "probes.parquet")
    outcome = {"status": "diverged", "diverged_step": 2} if diverged else {"status": "finished", "diverged_step": None}
    outcome |= {"steps": 2 if diverged else int(steps[-1]), "final": final(metrics)}
    (directory / "summary.json").write_text(json.dumps(outcome))
    (directory / "provenance.json").write_text(json.dumps(provenance(config)))


def seal_run(run):
    """Give the directory of a run the seal that its maker would have given it."""
    tables = {path.stem: path for path in run.glob("*.parquet")}
    files = {path.relative_to(run).as_posix(): path for path in (*tables.values(), *run.glob("gradients/*"))}
    tables = {name: validation.conform(pq.read_table(path), name, path) for name, path in tables.items()}
    origin, outcome = (json.loads((run / f"{name}.json").read_text()) for name in ("provenance", "summary"))
    (run / "provenance.json").write_text(json.dumps(seal.sealed(origin, outcome, tables, files)))


def final(metrics):
    """What a summary says of the last row of the metrics."""
    return {name: None if np.isnan(value) else float(value) for name, value in metrics.iloc[-1].items()}


def rewrite(run, table, change):
    """Replace a table of a run by ``change(table)``, the summary with it, so that the run stays sound."""
    frame = change(pd.read_parquet(run / f"{table}.parquet"))
    frame.to_parquet(run / f"{table}.parquet", index=False)
    if table == "metrics":
        outcome = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(outcome | {"final": final(frame)}))


def write(place: Path, experiments: dict[str, str], diverged=()) -> tuple[Path, Path]:
    """Write experiment files (profile "tiny") and all their runs; returns the two directories (experiments, runs).

    `diverged` holds pairs of method and seed.
    """
    folder, root = place / "experiments" / "tiny", place / "runs"
    folder.mkdir(parents=True)
    for name, text in experiments.items():
        (folder / f"{name}.toml").write_text(text)
    for experiment in load_profile("tiny", folder.parent).values():
        for config in experiment.runs():
            if not (root / config.id).exists():
                write_run(root, config, diverged=(config.estimator.name, config.seed) in set(diverged))
    return folder.parent, root
