"""Mistakes in the closed forms, and in what measures."""

from __future__ import annotations

from functools import partial

import torch

from analysis.theory import feedback, feedback_form, fourth_moment, laws, local_maps, predictions
from fdfa_core import perturbations
from fdfa_core.measuring import summary
from fdfa_core.networks.decorrelation import Decorrelation
from verification import checks
from verification.planting import FDFA, FG_A, after, mutant


@mutant("kurtosis 3 assumed for Rademacher", "theory", "rademacher")
def _():
    return perturbations.Rademacher, "kurtosis", 3.0


@mutant("sphere taken for a Gaussian", "theory", "fg-a(perturbation=sphere)")
def _():
    return fourth_moment, "fourth_moment", lambda law, dimension: fourth_moment.FourthMoment(1.0, 0.0)


@mutant("data part divided by N − 1", "theory", FG_A, FDFA)
def _():
    return after(predictions, "spread", lambda v, a, b, n: {k: x * n / max(n - 1, 1) for k, x in v.items()})


@mutant("population variance over M − 1", "theory", FG_A, FDFA)
def _():
    size = 2  # M of the watched cases
    return after(predictions, "spread", lambda v, *_: {k: x * size / (size - 1) for k, x in v.items()})


@mutant("noise of one's own units alone in a joint pass", "theory", FG_A)
def _():
    formula, defaults = predictions.FORMULAS["fg-a"]
    alone = partial(_with_joint_false, formula)
    return predictions, "FORMULAS", {**predictions.FORMULAS, "fg-a": (alone, defaults)}


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


@mutant("inputs taken from before the decorrelating layer", "theory", "[inputs]")
def _():
    def undone(found, module, x, names):
        behind = found is not None and any(type(layer) is Decorrelation for layer in local_maps._layers(module))
        return {n: (gate, h if h is None else x) for n, (gate, h) in found.items()} if behind else found

    return after(local_maps, "_dense_factors", undone)


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
    return after(feedback.FeedbackLaw, "factor", lambda f, self, *_: f * (2 - self.feedback_lr))


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


@mutant("squared cosine of a rank-one piece as 1/(n + 1)", "theory", "[pieces]")
def _():
    return laws, "rank_one_squared_cosine", lambda units: 1 / (units + 1)


def _with_joint_false(formula, *args, **options):
    return formula(*args, **{**options, "joint": False})


@mutant("variance divided by n, not n − 1", "instrument", "[instruments]")
def _():
    return after(checks, "summarise", lambda row, s: row | {"variance": row["variance"] * (1 - 1 / len(s.norm2))})


@mutant("squared bias without the correction for its own noise", "instrument", "[instruments]")
def _():
    return summary, "_unbiased_bias2", lambda error, bias, raw: (raw, 0 * raw)
