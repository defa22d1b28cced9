"""What theory says of one run's samples and initial network. The recorded answers carry the hash of this module's code.

Two populations matter: fresh batches are drawn from the reference set, with replacement, as the theory assumes; the feedback
follows the training batches, which go through the training set epoch by epoch and are the same for all replicas. The draw of
batches adds little to the feedback's spread (the data part of `FeedbackLaw`, below 1 % of it here), so that the difference is
far below the standard errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from fdfa_core.errors import Unsupported

PARTS = ["data", "perturbation", "feedback", "cross"]
COLUMNS = ["step", "estimator", "block", "variance", *PARTS, "bias2", "mse", "target_norm", "nsr"]
LAW = ("site", "joint", "perturbation", "tangents", "directions")  # options of FDFA that its feedback's law depends on


class Problem:
    """A run's initial network with the reference set and the training set, as float tensors on the CPU.

    Args:
        text: the run's configuration as canonical JSON (column `config` of `Logs.runs`).

    Attributes:
        config: the configuration.
        net: the network before the first step, in training mode.
        reference: the samples (x, y) of the probes' reference set that fill a batch of training.
        train: the training set (x, y).
    """

    def __init__(self, text: str):
        from fdfa_core import data
        from fdfa_core.experiments.tables import RunConfig
        from fdfa_core.training import build

        self.config = RunConfig.from_json(text)
        dataset = data.load(self.config.data.name)
        train, _ = build.splits(self.config, dataset)
        self.net = build.network(self.config, train, dataset).train()
        self.train = build.samples(train, self.net)
        x, y = build.samples(build.reference(train, self.config.probe.reference_size), self.net)
        whole = len(x) - len(x) % self.config.training.batch_size
        self.reference = x[:whole], y[:whole]


def rows(problem: Problem, requests: Sequence[tuple[str, str, str, int]]) -> pd.DataFrame:
    """Return closed forms; what has none is left out.

    Args:
        problem: the network and its samples.
        requests: (label, method, options as JSON, step). FDFA's options are all of them, with their defaults; those of other
            methods are the ones that were given.
    """
    frames = []
    forward_feedback = _FeedbackForms(problem)
    for label, name, text, step in requests:
        try:
            if name == "fdfa":
                found = forward_feedback(step, json.loads(text))
            else:
                found = _predict(problem, name, **json.loads(text)).frame()
        except Unsupported:
            continue
        found = found[(found["level"] == "block") & (found["block"] < len(problem.net) - 1)]
        frames.append(found.assign(step=step, estimator=label))
    forms = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return forms.rename(columns={"noise_to_signal": "nsr"})[COLUMNS]


class _FeedbackForms:
    """FDFA's closed forms on one problem, with the law of the feedback and the sums over samples made once."""

    def __init__(self, problem: Problem):
        self.problem, self.laws, self.whole = problem, {}, {}

    def __call__(self, step: int, settings: Mapping[str, Any]) -> pd.DataFrame:
        from analysis.theory import feedback_law

        given = {name: settings[name] for name in LAW}
        rate, warmup = settings["feedback_lr"], settings["warmup"]
        if settings["feedback_rule"] != "momentum":
            raise Unsupported(f"no closed form here for these options: {dict(settings)}")
        key = json.dumps(given, sort_keys=True)
        if key not in self.laws:
            batch_size = self.problem.config.training.batch_size
            self.laws[key] = feedback_law(self.problem.net, self.problem.train[0], batch_size, feedback_lr=1.0, **given)
        law = replace(self.laws[key], feedback_lr=rate, warmup=warmup)
        if not warmup or step < 1 or given.get("joint") == "cyclic":  # whose blocks wait for their first turn
            return self._predict(law, step, given)
        # With warm-up the feedback's mean is J̄ from the first step on, and α scales the two noise parts alone.
        if key not in self.whole:
            self.whole[key] = self._predict(self.laws[key], 1, given)
        whole = self.whole[key]
        noise = (whole[["feedback", "cross"]] * float(law.factor(step))).to_dict("series")
        found = whole.assign(**noise)
        total = found[PARTS].sum(axis=1)
        return found.assign(variance=total, mse=total + found["bias2"], noise_to_signal=total / found["target_norm"] ** 2)

    def _predict(self, law, step: int, given: Mapping[str, Any]) -> pd.DataFrame:
        return _predict(self.problem, "fdfa", feedback_law=law, steps=step, **given).frame()


def feedback_rows(problem: Problem, shadows: Sequence[tuple[str, Mapping[str, Any]]], steps: Sequence[int]) -> pd.DataFrame:
    """Return E‖B_t − J̄‖² / ‖J̄‖² of FDFA's shadows, one row per step, estimator and hidden block.

    Args:
        problem: the network and its samples.
        shadows: label and all options, with their defaults.
        steps: t.
    """
    from analysis.theory import feedback_law

    found, laws = [], {}
    for label, settings in shadows:
        given = {name: settings[name] for name in LAW}
        key, batch_size = json.dumps(given, sort_keys=True), problem.config.training.batch_size
        laws[key] = laws.get(key) or feedback_law(problem.net, problem.train[0], batch_size, feedback_lr=1.0, **given)
        law = replace(laws[key], feedback_lr=settings["feedback_lr"], warmup=settings["warmup"])
        norms = [float(jacobian.square().sum()) for jacobian in law.jacobian]
        for step in steps:
            errors = law.squared_error(step)
            found += [
                {"step": step, "estimator": label, "block": block, "predicted": error / norm}
                for block, (error, norm) in enumerate(zip(errors, norms, strict=True))
            ]
    return pd.DataFrame(found)


def contest_row(problem: Problem, joint: bool, tangents: int) -> pd.DataFrame:
    """Return the coefficients of FDFA against FG-A (post site) of `analysis.theory.laws.Contest`, in one row."""
    from analysis.theory.laws import contest

    found = contest(problem.net, *problem.reference, problem.config.training.loss, joint=joint, tangents=tangents)
    return pd.DataFrame([vars(found) | {"batch_limit": found.batch_limit}])


def quotient_rows(problem: Problem, epsilons: Sequence[float]) -> pd.DataFrame:
    """Return `analysis.theory.difference.quotient_errors` on the first batch of the reference set."""
    from analysis.theory.difference import quotient_errors

    (x, y), training = problem.reference, problem.config.training
    return quotient_errors(problem.net, x[: training.batch_size], y[: training.batch_size], epsilons, training.loss)


def _predict(problem: Problem, name: str, **given):
    from analysis.theory import FORMULAS, predict

    if name not in FORMULAS or given.keys() - FORMULAS[name][1].keys():
        raise Unsupported(f"no closed form for {name} with these options: {given}")
    training = problem.config.training
    return predict(name, problem.net, *problem.reference, training.batch_size, training.loss, **given)
