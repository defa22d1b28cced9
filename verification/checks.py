"""Measuring a case and comparing it with theory: rows of predicted, measured, standard error, z and p.

**No batch is drawn.** The populations are so small that every batch (and, for feedback, every sequence of batches) can be
visited with its probability as a weight. Draws given a batch are a stratum; what scatters is the perturbations alone, so
that a mistake in the data part of a variance is seen without noise.

**Statistics.** With μ the predicted mean, the slope ⟨g, μ⟩/‖μ‖² has the mean 1, and ‖g − μ‖² has the predicted total variance
as its mean. Both are plain means of independent draws, so the sample's own standard deviation gives their standard error
whatever the kurtosis; z is on the log scale for variances. Families of components go by their largest |z|, corrected by
their number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from analysis.theory import FeedbackLaw, Prediction, laws, predict
from analysis.theory.decorrelation import input_forms
from fdfa_core.estimators import Estimator, make_estimator
from fdfa_core.measuring.scalars import measure_draws
from fdfa_core.measuring.summary import summarise
from fdfa_core.training.feedback_watch import mean_jacobian
from verification.cases import Case, batches, problem

CHUNK = 4_000  # draws taken in one call
ALL = -1  # in place of a block: all components that are random given the batch
EXACT = 1e-9  # relative difference that rounding may leave where nothing is random
Row = dict[str, object]
Visited = Iterable[tuple[list[int], float]]


class Strata:
    """Independent observations of a number, or of a vector, in strata of known weight.

    Scalars are kept (their order tells dependence); of vectors only sums are, around a fixed `centre`.
    """

    def __init__(self, centre: Tensor | float = 0.0):
        self.centre, self.weights, self.counts, self.sums, self.squares = centre, [], [], [], []
        self.scalars: list[list[Tensor]] = []

    def open(self, weight: float) -> None:
        """Begin a stratum."""
        self.weights.append(weight)
        for kept in (self.counts, self.sums, self.squares):
            kept.append(0)
        self.scalars.append([])

    def add(self, values: Tensor) -> None:
        """Add observations (R,) or (R, …) to the stratum."""
        off = values - self.centre
        self.counts[-1] += len(values)
        self.sums[-1] = self.sums[-1] + off.sum(0)
        self.squares[-1] = self.squares[-1] + off.square().sum(0)
        if values.dim() == 1:
            self.scalars[-1].append(values)

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the stratified mean and its standard error, each of the shape of one observation."""
        mean, variance = self.centre, 0.0
        for weight, n, total, square in zip(self.weights, self.counts, self.sums, self.squares, strict=True):
            mean = mean + weight * total / n
            variance = variance + weight**2 * (square - total.square() / n).clamp(min=0) / (n - 1) / n
        return mean, variance.sqrt()

    def correlation(self, between_calls: bool) -> tuple[float, float]:
        """Return the correlation of scalars with their neighbours (or with the same place in the next call), and its s.e."""
        products = []
        for calls in self.scalars:
            v = torch.stack(calls)  # (calls, R)
            centred = v - v.mean()
            scale = centred.square().mean()
            if scale > EXACT**2 * v.square().mean():
                pairs = centred[1:] * centred[:-1] if between_calls else centred[:, 1:] * centred[:, :-1]
                products.append(pairs.flatten() / scale)
        found = torch.cat([torch.zeros(0), *products])
        if not len(found):
            return 0.0, 0.0
        return float(found.mean()), float(found.square().mean().sqrt() / len(found) ** 0.5)


def flat(gradients: dict[str, Tensor], draws: int | None = None) -> Tensor:
    """Return {name: tensor} as one vector (P,), or with draws as (R, P)."""
    shape = (-1,) if draws is None else (draws, -1)
    return torch.cat([g.double().reshape(shape) for g in gradients.values()], -1)


class Comparison:
    """Rows of one case.

    Args:
        prediction: what theory says of the gradient.
    """

    def __init__(self, prediction: Prediction):
        self.prediction, self.rows = prediction, []
        self.mean, self.variance = flat(prediction.mean), flat(prediction.variance)
        owner = [torch.full((v.numel(),), int(n.split(".", 1)[0])) for n, v in prediction.mean.items()]
        self.owner = torch.cat(owner)
        self.blocks = sorted(set(self.owner.tolist()))

    def of(self, block: int) -> Tensor:
        """Return which components belong to a block."""
        return self.owner == block

    @property
    def random(self) -> Tensor:
        """Components that are random given the batch."""
        noise = flat(self.prediction.perturbation) + flat(self.prediction.feedback)
        return noise > EXACT * noise.max()

    def add(self, quantity: str, block: int, predicted: float, measured: float, se: float, log: bool = False, n: int = 0):
        """Add a row for one number; without scatter (se = 0) it must agree to rounding."""
        row: Row = {"quantity": quantity, "block": block, "predicted": predicted, "measured": measured, "se": se, "draws": n}
        if se <= EXACT * max(abs(predicted), 1e-12):
            agree = abs(measured - predicted) <= EXACT * max(abs(predicted), 1e-6)
            self.rows.append(row | {"z": 0.0 if agree else math.inf, "p": 1.0 if agree else 0.0, "exact": True})
            return
        if log and measured > 0 < predicted:
            z = math.log(measured / predicted) * measured / se
        else:
            z = (measured - predicted) / se
        self.rows.append(row | {"z": z, "p": 2 * stats.norm.sf(abs(z)), "exact": False})

    def add_family(self, quantity: str, predicted: Tensor, mean: Tensor, se: Tensor, log: bool = False, n: int = 0):
        """Add a row for many components: the one that is furthest off, with Bonferroni's p over the components."""
        scatter = se > EXACT * predicted.abs().clamp(min=1e-9)
        off = (mean - predicted)[~scatter].abs() > EXACT * predicted[~scatter].abs().clamp(min=1e-6)
        z = torch.zeros_like(mean)
        safe = torch.where(scatter, se, torch.ones_like(se))
        z = torch.where(scatter, (mean - predicted) / safe, z)
        if log:
            positive = scatter & (mean > 0) & (predicted > 0)
            ratio = torch.where(positive, mean / predicted, torch.ones_like(mean))
            z = torch.where(positive, ratio.log() * mean / safe, z)
        worst = int(z.abs().argmax())
        p = min(1.0, 2 * float(stats.norm.sf(abs(float(z[worst])))) * max(int(scatter.sum()), 1))
        row = {"quantity": quantity, "block": ALL, "predicted": float(predicted[worst]), "measured": float(mean[worst])}
        row |= {"se": float(se[worst]), "draws": n, "z": float(z[worst]), "p": p, "exact": False}
        self.rows.append(row | ({"z": math.inf, "p": 0.0} if bool(off.any()) else {}))


class GradientStrata:
    """What is kept of a gradient's draws: per block slopes on the mean and squared deviations, and sums per component.

    Args:
        comparison: receives the rows; its predicted mean is what deviations are taken from.
    """

    def __init__(self, comparison: Comparison):
        self.to, mu = comparison, comparison.mean
        self.groups = {ALL: comparison.random, **{block: comparison.of(block) for block in comparison.blocks}}
        self.norm2 = {block: float(mu[mine].square().sum()) for block, mine in self.groups.items()}
        self.slopes = {block: Strata() for block in self.groups if self.norm2[block] > 0}
        self.totals = {block: Strata() for block in self.groups}
        self.means, self.variances = Strata(mu), Strata(comparison.variance)

    @property
    def all(self) -> list[Strata]:
        """Every table."""
        return [*self.slopes.values(), *self.totals.values(), self.means, self.variances]

    def open(self, weight: float) -> None:
        """Begin a stratum."""
        for strata in self.all:
            strata.open(weight)

    def add(self, mean: Tensor, square: Tensor) -> None:
        """Add independent observations (R, P) whose means are E g and E (g − μ)²."""
        for block, mine in self.groups.items():
            self.totals[block].add(square[:, mine].sum(1))
            if block in self.slopes:
                self.slopes[block].add(mean[:, mine] @ self.to.mean[mine] / self.norm2[block])
        self.means.add(mean)
        self.variances.add(square)

    def rows(self) -> None:
        """Compare all with theory."""
        n = sum(self.means.counts)
        for block, mine in self.groups.items():
            if block in self.slopes:
                self.to.add("mean", block, 1.0, *map(float, self.slopes[block].mean()), n=n)
            spread = float(self.to.variance[mine].sum())
            self.to.add("variance", block, spread, *map(float, self.totals[block].mean()), log=True, n=n)
        self.to.add_family("component means", self.to.mean, *self.means.mean(), n=n)
        self.to.add_family("component variances", self.to.variance, *self.variances.mean(), log=True, n=n)
        for quantity, between in (("correlation of neighbours", False), ("correlation of calls", True)):
            self.to.add(quantity, ALL, 0.0, *self.totals[ALL].correlation(between), n=n)


def _predict(case: Case, **more) -> Prediction:
    net, x, y = problem(case.network, case.samples)
    options = dict(case.options)
    loss = options.pop("loss", "cross_entropy")
    return predict(case.estimator, net, x, y, case.batch_size, loss, **options, **more)


def _estimator(case: Case, seed: int, replicas: int | None = None):
    net, x, y = problem(case.network, case.samples)
    estimator = make_estimator(case.estimator, net, seed=seed, replicas=replicas, **case.options)
    estimator.shortcuts = False  # verify the passes that training takes
    return estimator, x, y


def check_draws(case: Case) -> list[Row]:
    """Forward gradients: draws given every batch, or given all samples as the one batch."""
    comparison = Comparison(_predict(case, **({"sampling": "given_batch"} if case.kind == "given" else {})))
    draw_all(comparison, *_estimator(case, case.seed), case.visited, case.draws)
    return comparison.rows


def check_inputs(case: Case) -> list[Row]:
    """FG-A behind decorrelated inputs: draws, and each block's variance from the network without the decorrelating layers."""
    comparison, plain = Comparison(_predict(case)), problem(case.network.removeprefix("decorrelated-"), case.samples)
    matrices = dict(problem(case.network, case.samples)[0].named_buffers())
    bare = predict("fg-a", *plain, case.batch_size, **case.options)
    for block, (name, form) in enumerate(input_forms(*plain, case.batch_size, **case.options).items()):
        total = form.total(matrices[name.replace("weight", "0.matrix")])
        total += float(bare.variance[name.replace("weight", "bias")].sum())
        comparison.add("variance from the inputs", block, total, comparison.prediction.total("variance", block), 0.0)
    return check_draws(case) + comparison.rows


def draw_all(comparison: Comparison, estimator: Estimator, x: Tensor, y: Tensor, visited: Visited, draws: int) -> None:
    """Compare draws given some batches of known probability; each batch is a stratum, and gets its share of the draws."""
    kept = GradientStrata(comparison)
    for indices, weight in visited:
        kept.open(weight)
        count = max(64, math.ceil(draws * weight))
        calls = max(2, math.ceil(count / CHUNK))  # two at least: successive calls must differ
        each = math.ceil(count / calls)
        for _ in range(calls):
            drawn = flat(estimator.sample(x[indices], y[indices], each), each)
            kept.add(drawn, (drawn - comparison.mean).square())
    kept.rows()


def check_feedback(case: Case) -> list[Row]:
    """FDFA: chains of feedback after every sequence of batches, and the gradient on every batch after that.

    The gradient's randomness is the chain's and the last batch's. The latter is averaged over exactly, which splits the
    variance: the mean over batches scatters by the feedback part alone.
    """
    prediction = _predict(case, steps=case.steps)
    comparison, law = Comparison(prediction), prediction.feedback_law
    estimator, x, y = _estimator(case, case.seed, replicas=1)
    last = list(batches(case.samples, case.batch_size))
    constant = case.network == "linear"  # its Jacobian is: which batches taught the feedback does not matter
    sequences = [[last[t % len(last)] for t in range(case.steps)]] if constant else itertools.product(last, repeat=case.steps)
    kept, feedback = GradientStrata(comparison), FeedbackStrata(comparison, law, case.steps)
    for number, sequence in enumerate(sequences):
        weight = 1.0 if constant else math.prod(w for _, w in sequence)
        kept.open(weight)
        feedback.open(weight)
        for call in range(max(1, round(case.draws * weight / CHUNK))):
            chains = min(CHUNK, max(64, math.ceil(case.draws * weight)))
            estimator, *_ = _estimator(case, case.seed + 7919 * number + 104_729 * call, replicas=chains)
            mean, square = after_batches(estimator, x, y, sequence, last, comparison.mean)
            kept.add(mean, square)
            feedback.add(mean, estimator.feedback)
    kept.rows()
    feedback.rows()
    return comparison.rows


def after_batches(estimator: Estimator, x: Tensor, y: Tensor, sequence, last, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Advance R replicas over the batches `sequence`; return Σ w g and Σ w (g − centre)², (R, P), over the batches `last`."""
    for indices, _ in sequence:
        estimator.advance(x[indices], y[indices])
    mean = square = 0.0
    for indices, weight in last:
        g = flat(estimator.sample(x[indices], y[indices], estimator.replicas), estimator.replicas)
        mean, square = mean + weight * g, square + weight * (g - centre).square()
    return mean, square


class FeedbackStrata:
    """What is kept of chains of feedback: per block slope on the mean, squared deviation, and the part that gradients see."""

    def __init__(self, comparison: Comparison, law: FeedbackLaw, steps: int):
        self.to, self.means = comparison, [b.flatten() for b in law.mean(steps)]
        self.spread = [float(c.diagonal(dim1=1, dim2=2).sum()) for c in law.covariance(steps)]
        self.slopes, self.totals, self.parts = ([Strata() for _ in self.means] for _ in range(3))

    def open(self, weight: float) -> None:
        """Begin a stratum."""
        for strata in (*self.slopes, *self.totals, *self.parts):
            strata.open(weight)

    def add(self, gradient: Tensor, feedback: list[Tensor]) -> None:
        """Add chains: the gradient of each averaged over all batches (R, P), and its feedback (R, O, *site) per block."""
        off = (gradient - self.to.mean).square()
        for block, (held, mean) in enumerate(zip(feedback, self.means, strict=True)):
            held = held.flatten(1)
            self.slopes[block].add(held @ mean / mean.square().sum())
            self.totals[block].add((held - mean).square().sum(1))
            self.parts[block].add(off[:, self.to.of(block)].sum(1))

    def rows(self) -> None:
        """Compare all with theory."""
        for block in range(len(self.means)):
            n = sum(self.slopes[block].counts)
            part = self.to.prediction.total("feedback", block)
            self.to.add("feedback part", block, part, *map(float, self.parts[block].mean()), log=True, n=n)
            self.to.add("feedback mean", block, 1.0, *map(float, self.slopes[block].mean()), n=n)
            spread = self.spread[block]
            self.to.add("feedback variance", block, spread, *map(float, self.totals[block].mean()), log=True, n=n)


def check_fixed(case: Case) -> list[Row]:
    """Estimators that draw nothing: mean and variance over every batch, to rounding."""
    estimator, x, y = _estimator(case, case.seed)
    feedback = {"feedback": estimator.feedback} if hasattr(estimator, "feedback") else {}
    comparison = Comparison(_predict(case, **feedback))
    visited = list(batches(case.samples, case.batch_size))
    gradients = torch.stack([flat(estimator.estimate(x[i], y[i])) for i, _ in visited])
    weights = gradients.new_tensor([w for _, w in visited])
    mean = weights @ gradients
    zero = torch.zeros_like(mean)
    comparison.add_family("component means", comparison.mean, mean, zero)
    comparison.add_family("component variances", comparison.variance, weights @ (gradients - mean).square(), zero)
    return comparison.rows


def check_pieces(case: Case) -> list[Row]:
    """Rank-one pieces (J u) uᵀ of each sample's Jacobian: the mean squared cosine with the Jacobian is 1/n in every block."""
    net, x, y = problem(case.network, case.samples)
    estimator, *_ = _estimator(case, case.seed)
    comparison = Comparison(predict("bp", net, x, y, 1))
    kept = [Strata() for _ in net.hidden]
    jacobians = []
    for i in range(len(x)):
        trace = estimator.trace(x[i : i + 1])
        jacobians = mean_jacobian(net, x[i : i + 1], estimator.site)
        measured = estimator.responses.measure(trace, estimator.site, 0, (case.draws,), estimator.generator)
        for block, (d, u) in measured.items():
            pieces = d.mT @ u
            squared = (pieces * jacobians[block]).sum((1, 2)).square() / pieces.square().sum((1, 2))
            kept[block].open(1 / len(x))
            kept[block].add(squared / jacobians[block].square().sum())
    for block, strata in enumerate(kept):
        predicted = laws.rank_one_squared_cosine(jacobians[block].shape[1])
        comparison.add("squared cosine of a piece", block, predicted, *map(float, strata.mean()), n=len(x) * case.draws)
    return comparison.rows


def check_order(case: Case) -> list[Row]:
    """The gradient of a step uses the feedback of the steps before it; the first teaches hidden blocks nothing.

    The feedback after a step is (1 − α) B + α D; at α < 1 two steps on one batch leave B in the estimate with its weight.
    """
    estimator, x, y = _estimator(case, case.seed)
    comparison = Comparison(_predict(case, steps=0))
    for step in range(3):
        before = flat(estimator.estimate(x, y))
        estimator.backward(x, y)
        written = flat({name: p.grad for name, p in estimator.net.named_parameters()})
        scale = max(float(before.abs().max()), 1e-12)
        largest = float((written - before).abs().max())
        comparison.add(f"gradient of step {step + 1} minus estimate", ALL, 0.0, largest / scale, 0.0)
        if step == 0:
            hidden = float(before[comparison.owner < comparison.blocks[-1]].abs().max())
            comparison.add("hidden gradient of step 1", ALL, 0.0, hidden, 0.0)
    estimator.net.zero_grad()
    return comparison.rows


def check_instruments(case: Case) -> list[Row]:
    """What the probes report from R = 4 draws, averaged: an unbiased variance and an unbiased squared bias."""
    each = 4
    net, x, y = problem(case.network, case.samples)
    comparison = Comparison(predict(case.estimator, net, x, y, len(x), sampling="given_batch", **case.options))
    estimator, *_ = _estimator(case, case.seed)
    target = comparison.prediction.target
    variance, bias2 = [], []
    for _ in range(case.draws // each):
        draws = estimator.draws(x, y, each)
        hidden = {n: g for n, g in draws.items() if int(n.split(".", 1)[0]) < comparison.blocks[-1]}
        scalars = measure_draws(lambda drawn=hidden: iter([drawn]), target, target)
        row = summarise(sum(list(scalars.values())[1:], next(iter(scalars.values()))))
        variance.append(row["variance"])
        bias2.append(row["bias2"])
    expected = sum(comparison.prediction.total("variance", b) for b in comparison.blocks[:-1])
    for quantity, values, predicted in (("reported variance", variance, expected), ("reported squared bias", bias2, 0.0)):
        se = np.std(values, ddof=1) / len(values) ** 0.5
        comparison.add(quantity, ALL, predicted, float(np.mean(values)), float(se), log=predicted > 0, n=case.draws)
    return comparison.rows


CHECKS: dict[str, Callable[[Case], list[Row]]] = {
    "draws": check_draws, "given": check_draws, "inputs": check_inputs, "feedback": check_feedback, "fixed": check_fixed,
    "order": check_order, "pieces": check_pieces, "instruments": check_instruments,
}  # fmt: skip
