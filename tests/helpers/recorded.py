"""Synthetic logs as a record has them: with provenance, two data sets of one role, and one run missing."""

import shutil
from pathlib import Path

import synthetic_logs
from fdfa_core.experiments.loading import load_profile

BASE = """
role = "{role}"
[data]
name = "{data}"
[network]
hidden = [8, 8]
[training]
steps = 5
[probe]
schedule = {{ kind = "every", k = 1 }}
replicates = 8
estimators = [{{ name = "self" }}]
[[cases]]
estimator = {{ name = "bp" }}
[[cases]]
estimator = {{ name = "dfa" }}
[[cases]]
estimator = {{ name = "fdfa", feedback_lr = 0.1 }}
[[cases]]
estimator = {{ name = "frozen" }}
[grid]
seed = [0, 1, 2]
"""
EXPERIMENTS = {
    "digits_fc": BASE.format(role="convergence", data="digits"),
    "mnist_fc": BASE.format(role="convergence", data="mnist"),
    "fashion_fc": BASE.format(role="convergence", data="fashion-mnist"),  # of which nothing is there
}
COMMIT, provenance = synthetic_logs.COMMIT, synthetic_logs.provenance


def write(place: Path) -> tuple[Path, Path]:
    """Write experiments (profile "tiny") and a partial record of them; returns the two directories."""
    experiments, root = synthetic_logs.write(place, EXPERIMENTS)
    profile = load_profile("tiny", experiments)
    gone = [run for run in profile["mnist_fc"].runs() if run.estimator.name == "dfa" and run.seed == 2]
    for run in gone + profile["fashion_fc"].runs():
        shutil.rmtree(root / run.id)
    return experiments, root
