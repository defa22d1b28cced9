"""Means and variances by visiting every outcome: the slow and obvious twin of `analysis.theory`.

A perturbation law is replaced by a few weighted points with the same moments up to the fourth (fifth where it is symmetric):
all sign vectors for Rademacher, a product of three-point Gauss–Hermite rules for Gaussian, axes and corners for the sphere
(Stroud 1971, U_n 5-2). A forward gradient's square is of fourth degree in the perturbation, so sums over these points are
expectations, not approximations, and theory must agree to rounding.
"""

import itertools
import math

import torch
from torch.func import jacrev

from fdfa_core.linearisation.functional import functional_call
from fdfa_core.losses import make_loss


def law_points(law: str, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (n, dimension) and weights (n,)."""
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dimension)), dtype=torch.float64)
    if law == "rademacher":
        return signs, torch.full((len(signs),), 1 / len(signs), dtype=torch.float64)
    if law == "gaussian":
        nodes = list(itertools.product([(-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6)], repeat=dimension))
        points = torch.tensor([[v for v, _ in node] for node in nodes], dtype=torch.float64)
        return points, torch.tensor([math.prod(w for _, w in node) for node in nodes], dtype=torch.float64)
    assert law == "sphere"
    axes = math.sqrt(dimension) * torch.eye(dimension, dtype=torch.float64)
    weights = [1 / (dimension * (dimension + 2))] * (2 * dimension)
    weights += [dimension / (2**dimension * (dimension + 2))] * len(signs)
    return torch.cat([axes, -axes, signs]), torch.tensor(weights, dtype=torch.float64)


def low_rank_points(rank: int, shapes) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (n, P) and weights of A Bᵀ/√r for matrices; a fourth power has degree four in A and in B each."""
    points, weights = torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for shape in shapes:
        rows, columns = shape[0], math.prod(shape[1:])
        more, chance = law_points("gaussian", rank * (rows + columns) if len(shape) > 1 else rows)
        if len(shape) > 1:
            a, b = more[:, : rank * rows].view(-1, rows, rank), more[:, rank * rows :].view(-1, rank, columns)
            more = (a @ b).flatten(1) / rank**0.5
        points = torch.cat([points.repeat_interleave(len(more), 0), more.repeat(len(points), 1)], 1)
        weights = (weights[:, None] * chance).flatten()
    return points, weights


class Sample:
    """Everything that one sample contributes, from whole-network Jacobians by reverse mode."""

    def __init__(self, net, x, y, loss="cross_entropy", site="post"):
        x, y, self.site = x[None], y[None], site
        self.parameters = {name: p.detach() for name, p in net.named_parameters()}
        forward = self._forward(net, x)
        values = forward([None] * (len(net) - 1))
        nothing = [torch.zeros_like(v) for v in values[:-1]]
        self.jacobians = [j[0].flatten(1) for j in jacrev(lambda moved: forward(moved)[-1])(nothing)]  # (O, units)
        error = jacrev(lambda out: make_loss(loss)(out, y))(values[-1])[0]  # a batch of one: not divided by anything
        self.error = error
        self.signals = [*(error @ j for j in self.jacobians), error]
        self.local, self.values = self._local(net, x, values), values

    def active(self, net) -> list[torch.Tensor]:
        """Which units at the pre sites move their block's output, (units,) of 1 and 0, and all outputs."""
        moving = []
        for block, value in zip(net.hidden, self.values, strict=False):
            jacobian = jacrev(lambda v, block=block: block.activation(v).flatten())(value)
            moving.append(jacobian.flatten(1).ne(0).any(0).double())
        return [*moving, torch.ones_like(self.error)]

    def _forward(self, net, x):
        def run(moved):
            values, h = [], x
            for block, shift in zip(net.hidden, moved, strict=True):
                if self.site == "pre":
                    h = block.affine(h) if shift is None else block.affine(h) + shift
                    values.append(h)
                    h = block.activation(h)
                else:
                    h = block(h) if shift is None else block(h) + shift
                    values.append(h)
            return [*values, net.readout(h)]

        return run

    def _local(self, net, x, values):
        """Per block: flattened parameters' Jacobian (units, P_l), the block input held fixed."""
        jacobians, h = [], x
        for i, block in enumerate(net):
            module = block.affine if self.site == "pre" and i < len(net) - 1 else block
            own = {name: p.detach() for name, p in module.named_parameters()}
            units = values[i].numel()
            found = jacrev(lambda p, m=module, h=h: functional_call(m, p, (h,)).flatten())(own)
            jacobians.append(torch.cat([j.reshape(units, -1) for j in found.values()], 1))
            h = block(h)
        return jacobians


def samples(net, x, y, **options):
    return [Sample(net, a, b, **options) for a, b in zip(x, y, strict=True)]


def flat(gradients) -> torch.Tensor:
    """{name: tensor} as one vector, in the order of the parameters."""
    return torch.cat([g.flatten() for g in gradients.values()])


def moments(atoms: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of atoms (n, P)."""
    mean = weights @ atoms
    return mean, weights @ (atoms - mean).square()


def batch_mean(atoms: torch.Tensor, weights: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every outcome of the mean of `size` independent atoms."""
    total, chance = atoms, weights
    for _ in range(size - 1):
        total = (total[:, None] + atoms).flatten(0, 1)
        chance = (chance[:, None] * weights).flatten()
    return total / size, chance


def tangent_mean(points, weights, tangents, estimate):
    """Every outcome of the mean over tangents of estimate(point)."""
    return batch_mean(torch.stack([estimate(v) for v in points]), weights, tangents)


def population(per_sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Atoms of one sample drawn from the population, from [(atoms, weights)] of its samples."""
    return torch.cat([a for a, _ in per_sample]), torch.cat([w / len(per_sample) for _, w in per_sample])


def fg_w(net, x, y, batch_size, *, perturbation="gaussian", tangents=1, per_sample=False, **options):
    gradients = [torch.cat([z @ a for z, a in zip(s.signals, s.local, strict=True)]) for s in samples(net, x, y, **options)]
    if perturbation.startswith("low-rank-"):
        points, weights = low_rank_points(int(perturbation[9:]), [p.shape for p in net.parameters()])
    else:
        points, weights = law_points(perturbation, len(gradients[0]))

    def outcomes(g):
        return tangent_mean(points, weights, tangents, lambda v: (g @ v) * v)

    if per_sample:
        return moments(*batch_mean(*population([outcomes(g) for g in gradients]), batch_size))
    batches = itertools.product(gradients, repeat=batch_size)
    return moments(*population([outcomes(sum(batch) / batch_size) for batch in batches]))


def fg_a(net, x, y, batch_size, *, perturbation="gaussian", joint=True, readout="exact", tangents=1, mask="none", **options):
    per_sample = []
    for s in samples(net, x, y, **options):
        if mask == "active":  # a direction that is zero at a unit: neither its slope nor its share of the estimate is there
            moving = s.active(net)
            s.signals = [z * units for z, units in zip(s.signals, moving, strict=True)]
            s.local = [units[:, None] * a for units, a in zip(moving, s.local, strict=True)]
        last = len(net) - (readout == "exact")
        sizes = [len(z) for z in s.signals[:last]]
        tail = [] if readout == "perturbed" else [s.signals[-1] @ s.local[-1]]
        if joint:
            points, weights = law_points(perturbation, sum(sizes))

            def estimate(u, s=s, sizes=sizes, tail=tail):
                parts = u.split(sizes)
                slope = sum(z @ v for z, v in zip(s.signals, parts, strict=False))
                return torch.cat([*(slope * (v @ a) for v, a in zip(parts, s.local, strict=False)), *tail])

            per_sample.append(tangent_mean(points, weights, tangents, estimate))
            continue
        atoms, chance = torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        for size, z, a in zip(sizes, s.signals, s.local, strict=False):
            points, weights = law_points(perturbation, size)
            more, w = tangent_mean(points, weights, tangents, lambda v, z=z, a=a: (z @ v) * (v @ a))
            atoms = torch.cat([atoms.repeat_interleave(len(more), 0), more.repeat(len(atoms), 1)], 1)
            chance = (chance[:, None] * w).flatten()
        atoms = torch.cat([atoms, *(t.expand(len(atoms), -1) for t in tail)], 1)
        per_sample.append((atoms, chance))
    return moments(*batch_mean(*population(per_sample), batch_size))


def fg_a_batch_slope(
    net, x, y, batch_size, *, perturbation="gaussian", joint=True, sampling="fresh_batches", site="post", mask="none"
):
    """FG-A (readout exact) whose samples all take the slope of the whole batch's loss."""
    everyone = samples(net, x, y, site=site)
    for s in everyone if mask == "active" else ():
        s.local = [units[:, None] * a for units, a in zip(s.active(net), s.local, strict=True)]
    batches = [everyone] if sampling == "given_batch" else itertools.product(everyone, repeat=batch_size)
    outcomes = []
    for batch in batches:
        hidden = len(net) - 1
        atoms, chance = torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        for group in [range(hidden)] if joint else [[i] for i in range(hidden)]:
            z = torch.cat([s.signals[i] for s in batch for i in group]) / batch_size
            points, weights = law_points(perturbation, len(z))
            parts = points.split([len(s.signals[i]) for s in batch for i in group], 1)
            slope = points @ z
            each = [parts[k] @ s.local[i] * slope[:, None] for k, (s, i) in enumerate((s, i) for s in batch for i in group)]
            more = torch.cat([sum(each[j :: len(group)]) for j in range(len(group))], 1)
            atoms = torch.cat([atoms.repeat_interleave(len(more), 0), more.repeat(len(atoms), 1)], 1)
            chance = (chance[:, None] * weights).flatten()
        tail = sum(s.error @ s.local[-1] for s in batch) / batch_size
        outcomes.append((torch.cat([atoms, tail.expand(len(atoms), -1)], 1), chance))
    return moments(*population(outcomes))


def feedback_steps(per_sample, batch_size, *, perturbation="gaussian", joint=True, tangents=1):
    """Every outcome of one feedback step: atoms (n, Σ O × units), blocks side by side."""
    everything = []
    for s in per_sample:
        sizes = [j.shape[1] for j in s.jacobians]
        if joint:
            points, weights = law_points(perturbation, sum(sizes))

            def step(u, s=s, sizes=sizes):
                parts = u.split(sizes)
                d = sum(j @ v for j, v in zip(s.jacobians, parts, strict=True))
                return torch.cat([torch.outer(d, v).flatten() for v in parts])

            everything.append(tangent_mean(points, weights, tangents, step))
            continue
        atoms, chance = torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        for size, j in zip(sizes, s.jacobians, strict=True):
            points, weights = law_points(perturbation, size)
            more, w = tangent_mean(points, weights, tangents, lambda v, j=j: torch.outer(j @ v, v).flatten())
            atoms = torch.cat([atoms.repeat_interleave(len(more), 0), more.repeat(len(atoms), 1)], 1)
            chance = (chance[:, None] * w).flatten()
        everything.append((atoms, chance))
    return batch_mean(*population(everything), batch_size)


def design_points(law: str, directions: str, rows: int, dimension: int):
    """Every outcome of the dependent directions of a step: (n, rows, dimension) and weights."""
    if directions == "antithetic":
        half = (rows + 1) // 2
        points, weights = law_points(law, half * dimension)
        v = points.unflatten(1, (half, dimension))
        return torch.cat([v, -v[:, : rows // 2]], 1), weights
    assert directions == "orthogonal" and dimension == rows == 2, "in the plane, eight rotations integrate fourth powers"
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    first = torch.stack([angle.cos(), angle.sin()], 1)
    v = math.sqrt(2) * torch.stack([first, torch.stack([-first[:, 1], first[:, 0]], 1)], 1)
    return v, torch.full((8,), 1 / 8, dtype=torch.float64)


def designed_steps(per_sample, batch_size, *, perturbation="gaussian", tangents=1, directions):
    """As `feedback_steps` (all blocks together), the directions of a step being arranged by design."""
    sizes = [j.shape[1] for j in per_sample[0].jacobians]
    points, weights = design_points(perturbation, directions, tangents * batch_size, sum(sizes))
    atoms = []
    for batch in itertools.product(per_sample, repeat=batch_size):
        step = 0.0
        for row, s in enumerate(list(batch) * tangents):
            u = points[:, row]
            d = u @ torch.cat(s.jacobians, 1).T
            step = step + torch.cat([(d[:, :, None] * v[:, None, :]).flatten(1) for v in u.split(sizes, 1)], 1)
        atoms.append(step / (tangents * batch_size))
    return torch.cat(atoms), weights.repeat(len(atoms)) / len(atoms)


def feedback(steps, alpha, count):
    """Every outcome of the feedback after `count` steps from zero."""
    atoms, weights = steps
    held, chance = alpha * atoms, weights
    for _ in range(count - 1):
        held = ((1 - alpha) * held[:, None] + alpha * atoms).flatten(0, 1)
        chance = (chance[:, None] * weights).flatten()
    return held, chance


def fdfa(net, x, y, batch_size, *, feedback_lr, steps, site="post", loss="cross_entropy", **options):
    """Mean and variance of the gradient after `steps` updates of the feedback; its batch is independent of theirs."""
    per_sample = samples(net, x, y, site=site, loss=loss)
    step = designed_steps if "directions" in options else feedback_steps
    held, chance = feedback(step(per_sample, batch_size, **options), feedback_lr, steps)
    outputs = len(per_sample[0].error)
    blocks = held.split([j.numel() for j in per_sample[0].jacobians], 1)
    contributions = []
    for s in per_sample:
        signals = [s.error @ b.unflatten(1, (outputs, -1)) for b in blocks]  # (n, units)
        readout = (s.error @ s.local[-1]).expand(len(held), -1)
        contributions.append(torch.cat([*(w @ a for w, a in zip(signals, s.local, strict=False)), readout], 1))
    batches = [sum(batch) / batch_size for batch in itertools.product(contributions, repeat=batch_size)]
    return moments(torch.cat(batches), chance.repeat(len(batches)) / len(batches))
