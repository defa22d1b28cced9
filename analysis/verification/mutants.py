"""Mistakes planted one at a time, in estimators, instruments and theory: a verification is worth what it notices.

Each mutant is a realistic slip that gives gradients of the right shape and no error. It is put in by replacing one attribute
for the time of a `with`, and must make some row of the light suite fail. A row counts only at p < 0.01/1000, below Holm's
first step for any suite of up to 1,000 rows, so that cases can be tried one by one until the mistake is noticed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import nn

from analysis import verification
from analysis.theory import feedback, feedback_form, fourth_moment, local_maps, predictions
from analysis.verification import checks
from analysis.verification.cases import Case, suite
from fdfa_core import linearize, losses, moments, perturbations
from fdfa_core.estimators import direct_feedback, forward_feedback, tangents
from fdfa_core.writing import make_directory

THRESHOLD = verification.FAMILY_LEVEL / 1000


@dataclass(frozen=True)
class Mutant:
    """One planted mistake.

    Attributes:
        name: what is wrong.
        where: "estimator", "instrument" or "theory".
        watch: substrings of case labels (`Case.label`), most likely to notice first; other cases are not tried.
        plant: returns a context manager inside which the mistake is in.
    """

    name: str
    where: str
    watch: tuple[str, ...]
    plant: Callable[[], contextlib.AbstractContextManager]


MUTANTS: list[Mutant] = []
FG_A, FG_W, FDFA = "fg-a on small,", "fg-w on small,", "fdfa(feedback_lr=0.4, steps=2) on small,"


def mutant(name: str, where: str, *watch: str):
    """Register a function as a mutant; it yields inside the patches, or returns (object, attribute, replacement)."""

    def register(function):
        @contextlib.contextmanager
        def plant() -> Iterator[None]:
            owner, attribute, replacement = function()
            with patch.object(owner, attribute, replacement):
                yield

        MUTANTS.append(Mutant(name, where, watch, plant))
        return function

    return register


def _after(owner, attribute: str, change):
    """Replace a function by itself followed by `change(result, *arguments)`."""
    original = getattr(owner, attribute)
    return owner, attribute, lambda *args, **kwargs: change(original(*args, **kwargs), *args, **kwargs)


def caught_by(each: Mutant, cases: list[Case]) -> tuple[str, dict[str, object]] | None:
    """Return the first case that notices a mutant and its worst row, or None."""
    watched = [case for text in each.watch for case in cases if text in case.label]
    with each.plant():
        for case in watched:
            worst = min(verification.rows(case), key=lambda row: row["p"])
            if worst["p"] < THRESHOLD:
                return case.label, worst
    return None


def run(jobs: int | None = None) -> pd.DataFrame:
    """Plant every mutant and return a row each: what it is, whether it was `caught`, by which `case` and how.

    Columns: `mutant`, `where`, `caught`, `case`, `quantity`, `block`, `predicted`, `measured`, `z`.
    """
    found = Parallel(n_jobs=jobs or -1)(delayed(_row)(i) for i in range(len(MUTANTS)))
    return pd.DataFrame(found)


def _row(index: int) -> dict[str, object]:
    each = MUTANTS[index]
    caught = caught_by(each, suite("light"))
    case, worst = caught or ("", {})
    shown = {key: worst.get(key) for key in ("quantity", "block", "predicted", "measured", "z")}
    return {"mutant": each.name, "where": each.where, "caught": caught is not None, "case": case} | shown


def write(frame: pd.DataFrame, out_dir: str | Path) -> list[Path]:
    """Write mutants.csv and mutants.md; return their paths."""
    out = Path(out_dir)
    make_directory(out)
    table, report = out / "mutants.csv", out / "mutants.md"
    frame.to_csv(table, index=False)
    title = f"# Planted mistakes: {int(frame.caught.sum())} of {len(frame)} noticed by the light verification"
    report.write_text(f"{title}\n\n{frame.to_markdown(index=False, floatfmt='.4g')}\n", encoding="utf-8")
    return [table, report]


# Estimators: loss and perturbations --------------------------------------------------------------------------------------


@mutant("output error not divided by N", "estimator", FG_A)
def _():
    return _after(losses.CrossEntropy, "error", lambda result, self, y, t: (result[0], result[1] * len(y)))


@mutant("softmax error without its target", "estimator", FG_A)
def _():
    return losses.CrossEntropy, "error", lambda self, y, t: (losses.F.cross_entropy(y, t), y.softmax(-1) / len(y))


@mutant("mean squared error without its factor 2", "estimator", "fg-a(loss=mse)")
def _():
    return _after(losses.MeanSquaredError, "error", lambda result, *_: (result[0], result[1] / 2))


@mutant("perturbation scaled by 1.05", "estimator", FG_A)
def _():
    return _after(perturbations.Gaussian, "sample", lambda v, *_, **__: 1.05 * v)


@mutant("uniform perturbation in place of the Gaussian (unit variance)", "estimator", FG_W, FG_A)
def _():
    return _after(perturbations.Gaussian, "sample", lambda v, *_, **__: torch.special.ndtr(v).sub(0.5).mul(12**0.5))


@mutant("Rademacher signs positive with probability 0.6", "estimator", "perturbation=rademacher")
def _():
    def sample(self, shape, *, generator, dtype):
        return torch.empty(shape, dtype=dtype).bernoulli_(0.6, generator=generator).mul_(2).sub_(1)

    return perturbations.Rademacher, "sample", sample


@mutant("sphere of radius √(d+1)", "estimator", "fg-a(perturbation=sphere)")
def _():
    return _after(perturbations.Sphere, "sample", lambda v, *_, **__: v * ((v.shape[-1] + 1) / v.shape[-1]) ** 0.5)


@mutant("stale perturbation reused by the next call", "estimator", FG_A)
def _():
    original, kept = perturbations.Gaussian.sample, {}

    def sample(self, shape, *, generator, dtype):
        return kept.setdefault(tuple(shape), original(self, shape, generator=generator, dtype=dtype))

    return perturbations.Gaussian, "sample", sample


@mutant("one direction for all samples of the batch", "estimator", FG_A)
def _():
    return _after(tangents.Tangents, "sample", lambda v, *_, **__: v[..., :1, :].expand_as(v).clone())


@mutant("half of the draws repeat the other half's directions", "estimator", FG_A)
def _():
    def repeat(v, self, lead, *_, **__):
        half = v[: (lead[0] + 1) // 2].repeat_interleave(2, 0) if lead else v
        return half[: len(v)]

    return _after(tangents.Tangents, "sample", repeat)


@mutant("tangents summed, not averaged", "estimator", "fg-a(tangents=3)")
def _():
    return _after(tangents.Tangents, "combine", lambda g, self, slopes, directions: g * slopes.shape[-1])


@mutant("projection divided by its expected share K/d", "estimator", "fg-a(tangents=2, combine=projection)")
def _():
    def rescale(g, self, slopes, directions):
        return g * directions.shape[-1] / directions.shape[-2] if self.how == "projection" else g

    return _after(tangents.Tangents, "combine", rescale)


# Estimators: linearisation ----------------------------------------------------------------------------------------------


@mutant("activation's derivative dropped in the local gradient", "estimator", "fdfa(feedback_lr=0.4", FG_A)
def _():
    return linearize.RULES[nn.Tanh], "pull", lambda self, signal, need_input: ({}, signal)


@mutant("ReLU passes the tangent of dead units", "estimator", "fg-a(joint=False) on small-relu", "small-relu")
def _():
    return linearize.RULES[nn.ReLU], "push", lambda self, tangent, parameters: tangent


@mutant("batch normalisation's scale dropped from its derivative", "estimator", "small-relu")
def _():
    return _after(linearize.RULES[nn.BatchNorm1d], "pull", lambda found, self, signal, *_: (found[0], signal))


@mutant("batch statistics in evaluation mode", "estimator", "small-relu")
def _():
    cls = linearize.RULES[nn.BatchNorm1d]
    original = cls.__init__

    def init(self, module, x, context):
        twin = copy.copy(module)  # shares parameters and statistics
        twin.training = len(x) > 1
        original(self, twin, x, context)

    return cls, "__init__", init


@mutant("bias gradient forgotten", "estimator", FG_A)
def _():
    def forget(result, self, *_):
        gradients, below = result
        return {n: torch.zeros_like(g) if n.endswith("bias") else g for n, g in gradients.items()}, below

    return _after(linearize.RULES[nn.Linear], "pull", forget)


@mutant("square weight transposed in the tangent product", "estimator", FG_A)
def _():
    cls = linearize.RULES[nn.Linear]
    original = cls.push

    def push(self, tangent, parameters):
        square = tangent is not None and parameters is None and self.weight.shape[0] == self.weight.shape[1]
        return tangent @ self.weight if square else original(self, tangent, parameters)

    return cls, "push", push


@mutant("perturbs after the activation where before it was asked for", "estimator", FG_A)
def _():
    original = linearize.BlockMap.push

    def push(self, tangent, inject=None, site="post", parameters=None):
        return original(self, tangent, inject, "post", parameters)

    return linearize.BlockMap, "push", push


@mutant("samples' slopes shifted by one", "estimator", FG_A)
def _():
    original = tangents.Tangents.combine

    def combine(self, slopes, directions):
        return original(self, slopes.roll(1, -2) if slopes.dim() > 2 else slopes, directions)

    return tangents.Tangents, "combine", combine


# Estimators: feedback ---------------------------------------------------------------------------------------------------


@mutant("feedback updated before it is used", "estimator", "[order]")
def _():
    cls = forward_feedback.ForwardDirectFeedbackAlignment
    original = cls.backward

    def backward(self, x, y):
        self.advance(x, y)
        return original(self, x, y)

    return cls, "backward", backward


@mutant("α and 1 − α swapped", "estimator", FDFA)
def _():
    cls = forward_feedback.ForwardDirectFeedbackAlignment
    original = cls.update

    def update(self, *args):
        with patch.object(self, "feedback_lr", 1 - self.feedback_lr):
            original(self, *args)

    return cls, "update", update


@mutant("feedback never forgets: B ← B + α D", "estimator", FDFA)
def _():
    cls = forward_feedback.ForwardDirectFeedbackAlignment
    original = cls.update

    def update(self, *args):
        before = [b.clone() for b in self.feedback]
        original(self, *args)
        for b, old in zip(self.feedback, before, strict=True):
            b.add_(self.feedback_lr * old)

    return cls, "update", update


@mutant("cross-talk left out: one block at a time where all were asked for", "estimator", FDFA)
def _():
    return forward_feedback.OutputResponses, "groups", lambda self, blocks, step: [[i] for i in range(blocks)]


@mutant("one block a step, but always the same", "estimator", "joint=cyclic")
def _():
    return _after(forward_feedback.OutputResponses, "groups", lambda g, self, n, step: [[0]] if self.joint == "cyclic" else g)


@mutant("feedback step not divided by N", "estimator", FDFA)
def _():
    return _after(
        forward_feedback.OutputResponses,
        "measure",
        lambda found, self, trace, *_: {i: (d * len(trace.output), u) for i, (d, u) in found.items()},
    )


@mutant("replicas share their perturbations", "estimator", FDFA)
def _():
    return _after(forward_feedback, "design_sample", lambda v, *_, **__: v[:1].expand_as(v).contiguous())


@mutant("responses paired with the perturbation of another sample", "estimator", FDFA)
def _():
    return _after(
        forward_feedback.OutputResponses,
        "measure",
        lambda found, *_: {i: (d, torch.cat([u[..., :1, :], u[..., :-1, :]], -2)) for i, (d, u) in found.items()},
    )


@mutant("antithetic directions in place of independent ones", "estimator", FDFA)
def _():
    original = forward_feedback.design_sample
    return forward_feedback, "design_sample", lambda law, design, *a, **k: original(law, "antithetic", *a, **k)


@mutant("sign of DRTP's teaching signal", "estimator", "drtp")
def _():
    return _after(direct_feedback.DirectRandomTargetProjection, "teaching_signal", lambda t, *_: -t)


@mutant("DRTP's target not divided by N", "estimator", "drtp")
def _():
    return _after(direct_feedback.DirectRandomTargetProjection, "teaching_signal", lambda t, *_: t * len(t))


# Instruments -------------------------------------------------------------------------------------------------------------


@mutant("variance divided by n, not n − 1", "instrument", "[instruments]")
def _():
    return _after(checks, "summarise", lambda row, s: row | {"variance": row["variance"] * (1 - 1 / len(s.norm2))})


@mutant("squared bias without the correction for its own noise", "instrument", "[instruments]")
def _():
    return moments, "_unbiased_bias2", lambda error, bias, raw: (raw, 0 * raw)


# Theory ------------------------------------------------------------------------------------------------------------------


@mutant("kurtosis 3 assumed for Rademacher", "theory", "rademacher")
def _():
    return perturbations.Rademacher, "kurtosis", 3.0


@mutant("sphere taken for a Gaussian", "theory", "fg-a(perturbation=sphere)")
def _():
    return fourth_moment, "fourth_moment", lambda law, dimension: fourth_moment.FourthMoment(1.0, 0.0)


@mutant("data part divided by N − 1", "theory", FG_A, FDFA)
def _():
    return _after(predictions, "_spread", lambda v, a, b, n: {k: x * n / max(n - 1, 1) for k, x in v.items()})


@mutant("population variance over M − 1", "theory", FG_A, FDFA)
def _():
    size = 2  # M of the watched cases
    return _after(predictions, "_spread", lambda v, *_: {k: x * size / (size - 1) for k, x in v.items()})


@mutant("noise of one's own units alone in a joint pass", "theory", FG_A)
def _():
    formula, defaults = predictions.FORMULAS["fg-a"]
    alone = partial(_with_joint_false, formula)
    return predictions, "FORMULAS", {**predictions.FORMULAS, "fg-a": (alone, defaults)}


def _with_joint_false(formula, *args, **options):
    return formula(*args, **{**options, "joint": False})


@mutant("activation's derivative dropped in the dense path", "theory", "site=post", FDFA)
def _():
    return local_maps, "_derivative", lambda activation, a: torch.ones_like(a)


@mutant("batch normalisation's scale dropped in the dense path", "theory", "small-relu")
def _():
    original = local_maps._dense_factors

    def factors(module, x, names):
        found = original(module, x, names)
        if found is None:
            return None
        scaled = [layer for layer in local_maps._layers(module) if isinstance(layer, torch.nn.BatchNorm1d)]
        if not scaled:
            return found
        scale = scaled[0].weight * (scaled[0].running_var + scaled[0].eps).rsqrt()
        weight = next(iter(found))
        return found | {weight: (found[weight][0] / scale, found[weight][1])}

    return local_maps, "_dense_factors", factors


@mutant("Jacobian's spread over samples left out of the feedback", "theory", "fdfa(feedback_lr=0.6")
def _():
    return feedback.FeedbackLaw, "data", property(lambda self: [torch.zeros_like(r) for r in self.moments.second])


@mutant("cross-talk left out of the feedback's covariance", "theory", FDFA)
def _():
    original = feedback.law_of
    return predictions, "law_of", lambda population, n, rate, joint, *rest: original(population, n, rate, False, *rest)


@mutant("long-run covariance of the feedback from the first step on", "theory", FDFA)
def _():
    original = feedback.FeedbackLaw.factor
    return feedback.FeedbackLaw, "factor", lambda self, steps=None: original(self)


@mutant("α for α/(2 − α)", "theory", "steps=40")
def _():
    return _after(feedback.FeedbackLaw, "factor", lambda f, self, *_: f * (2 - self.feedback_lr))


@mutant("start at zero forgotten in the feedback's mean", "theory", FDFA)
def _():
    return feedback.FeedbackLaw, "memory", lambda self, steps=None: 0.0


@mutant("covariance between output rows ignored", "theory", FDFA)
def _():
    original = feedback.FeedbackLaw.covariance
    diagonal = torch.func.vmap(torch.diag)
    return (
        feedback.FeedbackLaw,
        "covariance",
        lambda self, steps=None: [torch.diag_embed(diagonal(c)) for c in original(self, steps)],
    )


@mutant("product of feedback noise and batch noise left out", "theory", FDFA)
def _():
    return feedback_form.UnitForm, "of_samples", lambda self, chunk: {}
