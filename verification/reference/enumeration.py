"""Exact moments by visiting outcomes, in plain NumPy: a derivation that shares no line with `analysis.theory` and estimators.

The derivatives of a sample are built by hand from its affine maps, which are linear in the weights and in the input. A
perturbation law is replaced by points and weights with its moments up to the fifth: all signs for Rademacher; axes and corners
for the sphere (Stroud 1971, U_n 5-2); the same points, stretched or at zero, for Gaussian. A forward gradient's square is of
fourth degree in a direction, so these sums are expectations and no approximations. GrAPE's estimate and difference quotients
are no polynomials: they are enumerated for signs only, of which the points are all.

What is independent is put together by elementary rules: the law of total variance over batches, 1/N for the mean of N samples,
1/K for that of K directions. A method that couples the samples of a batch is enumerated batch by batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from verification.reference.cases import Options, Problem, ReferenceCase, problem, unit_arrays

Moments = tuple[np.ndarray, np.ndarray]  # mean and variance, each over all parameters in order, or over entries of the feedback
MOST_POINTS = 2**20


class Sample:
    """What one sample contributes.

    Attributes:
        error: e, the gradient of its own loss at the outputs, (O,).
        target: the target, one-hot for a class, (O,).
        before, after: ∂outputs/∂(affine output) and ∂outputs/∂(layer output) per hidden layer, (O, units).
        weights: ∂(affine output)/∂(parameters of the layer) per layer, (units, P_l), the layer's input held fixed.
        inputs: ∂(affine output)/∂(layer input) per layer, (units, units below).
        slopes: the activations' derivatives per hidden layer, (units,).
        outputs: value of every layer, flattened.
    """

    def __init__(self, p: Problem, index: int):
        h = p.x[index]
        self.weights, self.inputs, self.slopes, self.outputs = [], [], [], []
        for layer in p.layers:
            a = layer.affine(layer.weight, layer.bias, h)
            none = None if layer.bias is None else 0 * layer.bias
            columns = [layer.affine(w, none, h).ravel() for w in unit_arrays(layer.weight.shape)]
            if layer.bias is not None:
                columns += [layer.affine(0 * layer.weight, b, h).ravel() for b in unit_arrays(layer.bias.shape)]
            self.weights.append(np.stack(columns, 1))
            self.inputs.append(np.stack([layer.affine(layer.weight, none, d).ravel() for d in unit_arrays(h.shape)], 1))
            self.slopes.append(layer.slope(a).ravel())
            h = layer.value(a)
            self.outputs.append(h.ravel())
        self.target = np.eye(p.outputs)[p.y[index]] if p.loss == "cross_entropy" else p.y[index]
        self.error = p.loss_gradient(self.outputs[-1], self.target)
        jacobian, self.before, self.after = np.eye(p.outputs), [], []
        for above, slope in zip(reversed(self.inputs[1:]), reversed(self.slopes[:-1]), strict=True):
            after = jacobian @ above
            jacobian = after * slope
            self.after.insert(0, after)
            self.before.insert(0, jacobian)

    def jacobians(self, site: str) -> list[np.ndarray]:
        """Return ∂outputs/∂site per hidden layer, (O, units)."""
        return self.before if site == "pre" else self.after

    def locals(self, site: str) -> list[np.ndarray]:
        """Return ∂site/∂(parameters of the layer) per hidden layer, (units, P_l)."""
        hidden = zip(self.weights[:-1], self.slopes, strict=False)
        return [a if site == "pre" else slope[:, None] * a for a, slope in hidden]

    @property
    def readout(self) -> np.ndarray:
        """The gradient of the readout's parameters."""
        return self.error @ self.weights[-1]

    @cached_property
    def gradient(self) -> np.ndarray:
        """The gradient of the sample's own loss."""
        hidden = [self.error @ j @ a for j, a in zip(self.before, self.weights, strict=False)]
        return np.concatenate([*hidden, self.readout])


def points(law: str, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, dimension) and weights (n,) with the law's moments up to the fifth."""
    d = dimension
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=d))).reshape(-1, d)
    if law == "rademacher":
        return signs, np.full(len(signs), 1 / len(signs))
    axes = math.sqrt(d) * np.concatenate([np.eye(d), -np.eye(d)])
    weights = np.array([1 / (d * (d + 2))] * (2 * d) + [d / (2**d * (d + 2))] * len(signs))
    sphere = np.concatenate([axes, signs])
    if law == "sphere":
        return sphere, weights
    stretched = np.concatenate([sphere * math.sqrt((d + 2) / d), np.zeros((1, d))])  # E‖v‖² = d and E‖v‖⁴ = d(d + 2)
    return stretched, np.append(weights * d / (d + 2), 2 / (d + 2))


def weight_points(law: str, shapes: Iterable[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Return points and weights of directions over all parameters together, (n, P)."""
    shapes = list(shapes)
    if not law.startswith("low-rank-"):
        return points(law, sum(map(math.prod, shapes)))
    rank, values, weights = int(law.removeprefix("low-rank-")), np.zeros((1, 0)), np.ones(1)
    for shape in shapes:
        more, chance = points("gaussian", shape[0])
        if len(shape) > 1:
            columns = math.prod(shape[1:])
            (a, chance_a), (b, chance_b) = (points("gaussian", rank * n) for n in (shape[0], columns))
            a, b = a.reshape(-1, 1, shape[0], rank), b.reshape(1, -1, rank, columns)
            more = (a @ b / math.sqrt(rank)).reshape(-1, shape[0] * columns)
            chance = np.outer(chance_a, chance_b).ravel()
        values = np.concatenate([np.repeat(values, len(more), 0), np.tile(more, (len(values), 1))], 1)
        weights = np.outer(weights, chance).ravel()
    return values, weights


def moments(atoms: np.ndarray, weights: np.ndarray | None = None) -> Moments:
    """Return mean and variance of atoms (n, P), which are equally likely without weights."""
    mean = np.average(atoms, 0, weights)
    return mean, np.average((atoms - mean) ** 2, 0, weights)


def averaged(parts: list[Moments], directions: int = 1, size: int = 1) -> Moments:
    """Return the moments of a mean over `size` independent conditions, each with a mean over K independent directions.

    Args:
        parts: mean and variance of one direction's estimate, given each of the equally likely conditions.
        directions: K.
        size: how many conditions are drawn with replacement and averaged.
    """
    mean, between = moments(np.stack([m for m, _ in parts]))
    return mean, (between + np.mean([v for _, v in parts], 0) / directions) / size


def feasible(case: ReferenceCase) -> bool:
    """Return whether all outcomes can be visited: not too many of them, and a polynomial estimate where the law has more."""
    p, options = problem(case.problem), case.options
    if options.get("combine", "mean") != "mean":
        return False  # a projection divides by random lengths
    if case.estimator in ("fg-w", "zo") and not str(options["perturbation"]).startswith("low-rank"):
        return 2 ** sum(v.size for v in p.parameters.values()) <= MOST_POINTS
    coupled = case.batch_size if case.estimator == "grape" or options.get("slope") == "batch" else 1
    return 2 ** (coupled * sum(p.units)) <= MOST_POINTS


@cache
def enumerate_case(case: ReferenceCase) -> dict[str, np.ndarray | list[Moments]]:
    """Return `mean`, `variance`, `gradient`, `data_noise` (P,) of a case, and `feedback` of FDFA: moments per hidden layer."""
    p = problem(case.problem)
    samples = [Sample(p, i) for i in range(len(p.x))]
    gradient, noise = averaged([(s.gradient, 0 * s.gradient) for s in samples], size=case.batch_size)
    mean, variance, *feedback = _METHODS[case.estimator](p, samples, case)
    return {"mean": mean, "variance": variance, "gradient": gradient, "data_noise": noise, "feedback": feedback}


def of_rank(matrix: np.ndarray, rank: int | None) -> np.ndarray:
    """Return the best approximation (…, m, n) of matrices of some rank, by their singular values; None leaves them alone."""
    if rank is None:
        return matrix
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]


def _exact(per_sample: Callable[[Sample], np.ndarray], samples: list[Sample], size: int) -> Moments:
    return averaged([(g := per_sample(s), 0 * g) for s in samples], size=size)


def _bp(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    return _exact(lambda s: s.gradient, samples, case.batch_size)


def _direct(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    site, rank = case.options["site"], case.options.get("rank")
    feedback = [of_rank(b, rank) for b in case.state["feedback"]]

    def estimate(s: Sample) -> np.ndarray:
        taught = s.error if case.estimator == "dfa" else s.target
        return np.concatenate([*(taught @ b @ a for b, a in zip(feedback, s.locals(site), strict=True)), s.readout])

    return _exact(estimate, samples, case.batch_size)


def _feedback_alignment(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    def estimate(s: Sample) -> np.ndarray:
        signal, parts = s.error, [s.readout]
        for layer in reversed(range(len(p.layers) - 1)):
            signal = (signal @ case.state["weights"][layer]) * s.slopes[layer]
            parts.insert(0, signal @ s.weights[layer])
        return np.concatenate(parts)

    return _exact(estimate, samples, case.batch_size)


def _weight_perturbation(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    options, size = case.options, case.batch_size
    v, chance = weight_points(options["perturbation"], [value.shape for value in p.parameters.values()])
    gradients = [s.gradient for s in samples]
    if not options["per_sample"]:
        gradients, size = [np.mean(batch, 0) for batch in itertools.product(gradients, repeat=size)], 1
    return averaged([moments((v @ g)[:, None] * v, chance) for g in gradients], options["tangents"], size)


def _zeroth_order(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    options, sizes = case.options, [value.size for value in p.parameters.values()]
    signs, chance = points(options["perturbation"], sum(sizes))

    def losses(step: float) -> np.ndarray:
        """Return the loss of every sample at every point θ + step · v, (points, M)."""
        found = []
        for v in signs:
            parts = zip(p.parameters.items(), np.split(v, np.cumsum(sizes)[:-1]), strict=True)
            moved = {name: value + step * part.reshape(value.shape) for (name, value), part in parts}
            found.append([p.loss_at(index, moved) for index in range(len(samples))])
        return np.array(found)

    quotients = (losses(options["epsilon"]) - losses(-options["epsilon"])) / (2 * options["epsilon"])
    slopes = [quotients[:, list(batch)].mean(1) for batch in itertools.product(range(len(samples)), repeat=case.batch_size)]
    cut = math.inf if options["clip"] is None else options["clip"]
    return averaged([moments(np.clip(s, -cut, cut)[:, None] * signs, chance) for s in slopes], options["tangents"])


def _guessed(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    options = case.options
    rows = [np.linalg.svd(layer.weight, full_matrices=False)[2] for layer in p.layers[1:]]  # largest singular value first
    bases = [v[: options["rank"]] for v in rows]
    u, chance = points(options["perturbation"], sum(map(len, bases)))
    directions = [part @ v for part, v in zip(np.split(u, np.cumsum([len(v) for v in bases])[:-1], 1), bases, strict=True)]
    parts = []
    for s in samples:
        slope = sum(v @ (s.error @ j) for v, j in zip(directions, s.after, strict=True))
        pulled = np.concatenate([v @ a for v, a in zip(directions, s.locals("post"), strict=True)], 1)
        mean, variance = moments(slope[:, None] * pulled, chance)
        parts.append((np.concatenate([mean, s.readout]), np.concatenate([variance, 0 * s.readout])))
    return averaged(parts, options["tangents"], case.batch_size)


@dataclass(frozen=True)
class Site:
    """The units of one sample in one hidden layer (or the outputs), as a perturbation meets them.

    Attributes:
        signal: gradient of the loss that the layer follows, (units,).
        local: ∂site/∂(parameters of the layer), (units, P_l).
        open: 1 for units that are perturbed, 0 for masked ones, (units,).
    """

    signal: np.ndarray
    local: np.ndarray
    open: np.ndarray


def _sites(s: Sample, options: Options) -> list[Site]:
    jacobians, maps = s.jacobians(options["site"]), s.locals(options["site"])
    masked = options["mask"] == "active"
    hidden = zip(jacobians, maps, s.slopes, strict=False)
    found = [Site(s.error @ j, a, (g != 0) * 1.0 if masked else np.ones(len(g))) for j, a, g in hidden]
    return [*found, Site(s.error, s.weights[-1], np.ones(len(s.error)))]


def _groups(hidden: int, options: Options) -> list[list[int]]:
    last = hidden + (options.get("readout") == "perturbed")
    return [list(range(last))] if options.get("joint", True) is True else [[i] for i in range(last)]


def _activity_perturbation(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    options, hidden = case.options, len(p.layers) - 1
    together = case.batch_size if options["slope"] == "batch" else 1
    parts = []
    for batch in itertools.product(samples, repeat=together):
        sites = [_sites(s, options) for s in batch]
        of_layer: dict[int, Moments] = {}
        for group in _groups(hidden, options):
            keys = [(q, i) for q in range(together) for i in group]
            sizes = [len(sites[q][i].signal) for q, i in keys]
            u, chance = points(options["perturbation"], sum(sizes))
            pieces = dict(zip(keys, np.split(u, np.cumsum(sizes)[:-1], 1), strict=True))
            pieces = {(q, i): v * sites[q][i].open for (q, i), v in pieces.items()}
            slope = sum(v @ sites[q][i].signal for (q, i), v in pieces.items()) / together
            for i in group:
                pulled = sum(pieces[q, i] @ sites[q][i].local for q in range(together))
                of_layer[i] = moments(slope[:, None] * pulled, chance)
        if hidden not in of_layer:
            exact = np.mean([s.readout for s in batch], 0)
            of_layer[hidden] = exact, 0 * exact
        parts.append(tuple(np.concatenate([of_layer[i][k] for i in range(hidden + 1)]) for k in (0, 1)))
    return averaged(parts, options["tangents"], case.batch_size // together)


def _local_readouts(p: Problem, s: Sample, case: ReferenceCase) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return error and ∂(local outputs)/∂(layer output) of every hidden layer; the last one uses the network's readout."""
    found = []
    for r, b, h in zip(case.state["readout_weights"], case.state["readout_biases"], s.outputs, strict=False):
        found.append((p.loss_gradient(r @ h + b, s.target), r))
    return [*found, (s.error, s.inputs[-1])]


def _local_activity_perturbation(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    options, parts = case.options, []
    for s in samples:
        each = []
        for (e, r), slope, a in zip(_local_readouts(p, s, case), s.slopes, s.locals(options["site"]), strict=False):
            signal = e @ (r * slope if options["site"] == "pre" else r)
            u, chance = points(options["perturbation"], len(signal))
            each.append(moments((u @ signal)[:, None] * (u @ a), chance))
        each.append((s.readout, 0 * s.readout))
        parts.append(tuple(np.concatenate([m[k] for m in each]) for k in (0, 1)))
    return averaged(parts, options["tangents"], case.batch_size)


def _local_weight_perturbation(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    parts = []
    for batch in itertools.product(samples, repeat=case.batch_size):
        each = []
        for layer in range(len(p.layers) - 1):
            pairs = [(s, *_local_readouts(p, s, case)[layer]) for s in batch]
            g = np.mean([e @ (r * s.slopes[layer]) @ s.weights[layer] for s, e, r in pairs], 0)
            v, chance = points(case.options["perturbation"], len(g))
            each.append(moments((v @ g)[:, None] * v, chance))
        exact = np.mean([s.readout for s in batch], 0)
        parts.append(tuple(np.concatenate([m[k] for m in [*each, (exact, 0 * exact)]]) for k in (0, 1)))
    return averaged(parts, case.options["tangents"])


def _pieces(s: Sample, group: list[int], options: Options) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Return every outcome of (Σ J u) ⊗ u_l of one sample, {layer: (n, O × units)}, and their weights."""
    jacobians = s.jacobians(options["site"])
    sizes = [jacobians[i].shape[1] for i in group]
    u, chance = points(options["perturbation"], sum(sizes))
    parts = dict(zip(group, np.split(u, np.cumsum(sizes)[:-1], 1), strict=True))
    d = sum(v @ jacobians[i].T for i, v in parts.items())
    return {i: (d[:, :, None] * v[:, None, :]).reshape(len(u), -1) for i, v in parts.items()}, chance


def _forward_feedback(p: Problem, samples: list[Sample], case: ReferenceCase):
    options, hidden = case.options, len(p.layers) - 1
    law: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # mean and covariance of one update's estimate, flattened
    for group in _groups(hidden, options):
        outcomes = [_pieces(s, group, options) for s in samples]
        for i in group:
            means = np.stack([chance @ pieces[i] for pieces, chance in outcomes])
            within = [((a := pieces[i] - m).T * chance) @ a for (pieces, chance), m in zip(outcomes, means, strict=True)]
            spread = np.cov(means.T, bias=True) + np.mean(within, 0) / options["tangents"]
            law[i] = means.mean(0), spread / case.batch_size
    columns, feedback = [], []
    for i in range(hidden):
        cyclic = options["joint"] == "cyclic" and case.steps is not None  # blocks take turns
        turns = len(range(i, case.steps, hidden)) if cyclic else case.steps
        w = case.average_weights(turns)
        mean, covariance = w.sum() * law[i][0], (w**2).sum() * law[i][1]
        feedback.append(tuple(v.reshape(p.outputs, -1) for v in (mean, np.diag(covariance))))
        maps = [np.kron(s.error[:, None], s.locals(options["site"])[i]) for s in samples]  # (O × units, P_l): g = Bᵀ map
        batch = np.stack([np.mean(each, 0) for each in itertools.product(maps, repeat=case.batch_size)])
        given = np.einsum("o,bop->bp", mean, batch)
        of_feedback = np.einsum("bop,oq,bqp->p", batch, covariance, batch, optimize=True) / len(batch)
        columns.append((given.mean(0), of_feedback + given.var(0)))
    columns.append(_exact(lambda s: s.readout, samples, case.batch_size))
    return *(np.concatenate([m[k] for m in columns]) for k in (0, 1)), *feedback


def _grape(p: Problem, samples: list[Sample], case: ReferenceCase) -> Moments:
    options, size = case.options, case.batch_size
    signs = points("rademacher", size * sum(p.units))[0].reshape(-1, size, sum(p.units))
    cuts = np.cumsum(p.units)[:-1]
    parts = []
    for batch in itertools.product(samples, repeat=size):
        u = [np.split(signs[:, q], cuts, 1) for q in range(size)]
        d = [sum(v @ j.T for v, j in zip(u[q], s.jacobians(options["site"]), strict=True)) for q, s in enumerate(batch)]
        gradient = []
        for i, b in enumerate(case.state["feedback"]):
            estimate = np.mean([d[q][:, :, None] * u[q][i][:, None, :] for q in range(size)], 0)  # (n, O, units)
            length, norm = np.sqrt((estimate**2).sum(1, keepdims=True)), np.sqrt((b**2).sum(0))
            towards = np.divide(estimate, length, out=np.zeros_like(estimate), where=length > 0)
            cosine = (towards * b).sum(1, keepdims=True) / norm
            refined = b + options["feedback_lr"] / b.shape[1] * (towards - cosine * b / norm) / norm
            refined /= np.sqrt((refined**2).sum(1, keepdims=True))
            refined = of_rank(refined, options.get("rank"))
            signals = [s.error @ refined @ s.locals(options["site"])[i] for s in batch]
            gradient.append(np.mean(signals, 0))
        exact = np.mean([s.readout for s in batch], 0)
        parts.append(moments(np.concatenate([*gradient, np.tile(exact, (len(signs), 1))], 1)))
    return averaged(parts)


_METHODS = {
    "bp": _bp,
    "dfa": _direct,
    "drtp": _direct,
    "fa": _feedback_alignment,
    "fg-w": _weight_perturbation,
    "zo": _zeroth_order,
    "fg-a": _activity_perturbation,
    "guess": _guessed,
    "lg-fg-a": _local_activity_perturbation,
    "lg-fg-w": _local_weight_perturbation,
    "fdfa": _forward_feedback,
    "grape": _grape,
}
