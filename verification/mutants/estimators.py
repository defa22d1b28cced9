"""Mistakes in estimators."""

from __future__ import annotations

import copy
from unittest.mock import patch

import torch
from torch import nn

from fdfa_core import losses, perturbations
from fdfa_core.estimators import activity_perturbation, direct_feedback, forward_feedback, tangents, weight_perturbation
from fdfa_core.estimators.direct_feedback import of_rank
from fdfa_core.linearisation.maps import RULES
from fdfa_core.linearisation.trace import BlockMap
from fdfa_core.networks.decorrelation import Decorrelation
from verification.planting import FDFA, FG_A, FG_W, after, mutant


@mutant("output error not divided by N", "estimator", FG_A)
def _():
    return after(losses.CrossEntropy, "error", lambda result, self, y, t: (result[0], result[1] * len(y)))


@mutant("softmax error without its target", "estimator", FG_A)
def _():
    return losses.CrossEntropy, "error", lambda self, y, t: (losses.F.cross_entropy(y, t), y.softmax(-1) / len(y))


@mutant("mean squared error without its factor 2", "estimator", "fg-a(loss=mse)")
def _():
    return after(losses.MeanSquaredError, "error", lambda result, *_: (result[0], result[1] / 2))


@mutant("perturbation scaled by 1.05", "estimator", FG_A)
def _():
    return after(perturbations.Gaussian, "sample", lambda v, *_, **__: 1.05 * v)


@mutant("idle units perturbed in place of the active ones", "estimator", "mask=active")
def _():
    return after(BlockMap, "active", lambda moving, *_: 1 - moving)


@mutant("singular vectors of the smallest values guessed in place of the largest", "estimator", "guess(rank=2)")
def _():
    def smallest(weight, rank=None):
        return torch.linalg.svd(weight, full_matrices=False).Vh[-rank:].T if rank else row_space(weight)

    row_space = activity_perturbation.row_space
    return activity_perturbation, "row_space", smallest


@mutant("feedback of low rank loses its largest part", "estimator", "dfa(rank=1)", "dkp(rank=1)")
def _():
    return direct_feedback, "of_rank", lambda matrix, rank: matrix if rank is None else matrix - of_rank(matrix, 1)


@mutant("difference quotient over ε in place of 2ε", "estimator", "zo(")
def _():
    return after(weight_perturbation.ZerothOrder, "losses", lambda losses, *_: 2 * losses)


@mutant("low-rank direction not divided by √r", "estimator", "perturbation=low-rank-2")
def _():
    return after(perturbations.LowRank, "sample_parameters", lambda v, *_: v * 2**0.5)


@mutant("uniform perturbation in place of the Gaussian (unit variance)", "estimator", FG_W, FG_A)
def _():
    return after(perturbations.Gaussian, "sample", lambda v, *_, **__: torch.special.ndtr(v).sub(0.5).mul(12**0.5))


@mutant("Rademacher signs positive with probability 0.6", "estimator", "perturbation=rademacher")
def _():
    def sample(self, shape, *, generator, dtype):
        return torch.empty(shape, dtype=dtype).bernoulli_(0.6, generator=generator).mul_(2).sub_(1)

    return perturbations.Rademacher, "sample", sample


@mutant("sphere of radius √(d+1)", "estimator", "fg-a(perturbation=sphere)")
def _():
    return after(perturbations.Sphere, "sample", lambda v, *_, **__: v * ((v.shape[-1] + 1) / v.shape[-1]) ** 0.5)


@mutant("stale perturbation reused by the next call", "estimator", FG_A)
def _():
    original, kept = perturbations.Gaussian.sample, {}

    def sample(self, shape, *, generator, dtype):
        return kept.setdefault(tuple(shape), original(self, shape, generator=generator, dtype=dtype))

    return perturbations.Gaussian, "sample", sample


@mutant("one direction for all samples of the batch", "estimator", FG_A)
def _():
    return after(tangents.Tangents, "sample", lambda v, *_, **__: v[..., :1, :].expand_as(v).clone())


@mutant("half of the draws repeat the other half's directions", "estimator", FG_A)
def _():
    def repeat(v, self, lead, *_, **__):
        half = v[: (lead[0] + 1) // 2].repeat_interleave(2, 0) if lead else v
        return half[: len(v)]

    return after(tangents.Tangents, "sample", repeat)


@mutant("tangents summed, not averaged", "estimator", "fg-a(tangents=3)")
def _():
    return after(tangents.Tangents, "combine", lambda g, self, slopes, directions: g * slopes.shape[-1])


@mutant("each sample gets as many directions where the best shares were asked for", "estimator", "[given]")
def _():
    return activity_perturbation, "best_counts", lambda noise, needed, total: torch.full((len(noise),), total // len(noise))


@mutant("a sample's estimates divided by the mean number of directions", "estimator", "[given]")
def _():
    return after(activity_perturbation, "mean_weights", lambda weights, counts: weights * counts / counts.double().mean())


@mutant("projection divided by its expected share K/d", "estimator", "fg-a(tangents=2, combine=projection)")
def _():
    def rescale(g, self, slopes, directions):
        return g * directions.shape[-1] / directions.shape[-2] if self.how == "projection" else g

    return after(tangents.Tangents, "combine", rescale)


@mutant("activation's derivative dropped in the local gradient", "estimator", "fdfa(feedback_lr=0.4", FG_A)
def _():
    return RULES[nn.Tanh], "pull", lambda self, signal, need_input: ({}, signal)


@mutant("ReLU passes the tangent of dead units", "estimator", "fg-a(joint=False) on small-relu", "small-relu")
def _():
    return RULES[nn.ReLU], "push", lambda self, tangent, parameters: tangent


@mutant("batch normalisation's scale dropped from its derivative", "estimator", "small-relu")
def _():
    return after(RULES[nn.BatchNorm1d], "pull", lambda found, self, signal, *_: (found[0], signal))


@mutant("batch statistics in evaluation mode", "estimator", "small-relu")
def _():
    cls = RULES[nn.BatchNorm1d]
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

    return after(RULES[nn.Linear], "pull", forget)


@mutant("square weight transposed in the tangent product", "estimator", FG_A)
def _():
    cls = RULES[nn.Linear]
    original = cls.push

    def push(self, tangent, parameters):
        square = tangent is not None and parameters is None and self.weight.shape[0] == self.weight.shape[1]
        return tangent @ self.weight if square else original(self, tangent, parameters)

    return cls, "push", push


@mutant("decorrelating matrix transposed in the tangent product", "estimator", "[inputs]")
def _():
    return RULES[Decorrelation], "push", lambda self, tangent, parameters: None if tangent is None else tangent @ self.matrix


@mutant("perturbs after the activation where before it was asked for", "estimator", FG_A)
def _():
    original = BlockMap.push

    def push(self, tangent, inject=None, site="post", parameters=None):
        return original(self, tangent, inject, "post", parameters)

    return BlockMap, "push", push


@mutant("samples' slopes shifted by one", "estimator", FG_A)
def _():
    original = tangents.Tangents.combine

    def combine(self, slopes, directions):
        return original(self, slopes.roll(1, -2) if slopes.dim() > 2 else slopes, directions)

    return tangents.Tangents, "combine", combine


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


@mutant("one block per step, but always the same", "estimator", "joint=cyclic")
def _():
    return after(forward_feedback.OutputResponses, "groups", lambda g, self, n, step: [[0]] if self.joint == "cyclic" else g)


@mutant("feedback step not divided by N", "estimator", FDFA)
def _():
    return after(
        forward_feedback.OutputResponses,
        "measure",
        lambda found, self, trace, *_: {i: (d * len(trace.output), u) for i, (d, u) in found.items()},
    )


@mutant("replicas share their perturbations", "estimator", FDFA)
def _():
    return after(forward_feedback, "design_sample", lambda v, *_, **__: v[:1].expand_as(v).contiguous())


@mutant("responses paired with the perturbation of another sample", "estimator", FDFA)
def _():
    return after(
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
    return after(direct_feedback.DirectRandomTargetProjection, "teaching_signal", lambda t, *_: -t)


@mutant("DRTP's target not divided by N", "estimator", "drtp")
def _():
    return after(direct_feedback.DirectRandomTargetProjection, "teaching_signal", lambda t, *_: t * len(t))


@mutant("all blocks perturbed together where one at a time was asked for", "estimator", "[pieces]")
def _():
    return forward_feedback.OutputResponses, "groups", lambda self, blocks, step: [list(range(blocks))]
