"""The moments from the project itself: by `analysis.theory`, by running estimators on every outcome, and from their draws."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from analysis.theory import Prediction, predict
from analysis.theory.fourth_moment import noise
from analysis.theory.predictions import FORMULAS
from fdfa_core import Block, BlockNetwork, make_estimator
from fdfa_core.estimators import Estimator
from fdfa_core.perturbations import Rademacher
from verification.checks import CHUNK, Comparison, GradientStrata, Row, Strata, after_batches, batches, draw_all, flat
from verification.reference.cases import Layer, ReferenceCase, problem
from verification.reference.enumeration import Moments
from verification.reference.files import SOURCES

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "linear": nn.Identity}


def tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor: numbers in float64, classes as integers."""
    return torch.as_tensor(np.array(array))


@cache
def network(name: str) -> tuple[BlockNetwork, Tensor, Tensor]:
    """Return the network of a problem, in float64, and its population (x, y)."""
    p, blocks = problem(name), []
    for layer in p.layers[:-1]:
        activation = ACTIVATIONS[layer.activation]()
        blocks.append(Block(_module(layer), activation if layer.kind == "dense" else nn.Sequential(activation, nn.Flatten())))
    blocks.append(_module(p.layers[-1]))
    return BlockNetwork(*blocks, input_shape=p.x.shape[1:]).double(), tensor(p.x), tensor(p.y)


def _module(layer: Layer) -> nn.Module:
    shape, bias = layer.weight.shape, layer.bias is not None
    made = nn.Linear(shape[1], shape[0], bias) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:], bias=bias)
    made = made.double()
    with torch.no_grad():
        made.weight.copy_(tensor(layer.weight))
        if bias:
            made.bias.copy_(tensor(layer.bias))
    return made


@cache
def closed(case: ReferenceCase) -> dict[str, np.ndarray | list[Moments]]:
    """Return what `enumeration.enumerate_case` returns, by the closed forms of `analysis.theory`.

    `fa`, `grape` and `zo` (at an ε that is not small) have none there: the estimators are run on every outcome.
    """
    whole = _backpropagation(case.problem, case.batch_size)
    noise_of, gradient = flat(whole.data).numpy(), flat(whole.mean).numpy()
    feedback: list[Moments] = []
    if case.estimator in SOURCES:
        mean, variance = _every_outcome(case)
    elif case.estimator.startswith("lg-"):
        mean, variance = _local(case, whole)
    else:
        found = prediction(case)
        mean, variance = flat(found.mean).numpy(), flat(found.variance).numpy()
        if law := found.feedback_law:
            spreads = [c.diagonal(dim1=1, dim2=2).T for c in law.covariance(case.steps)]
            feedback = [(m.numpy(), v.numpy()) for m, v in zip(law.mean(case.steps), spreads, strict=True)]
    return {"mean": mean, "variance": variance, "gradient": gradient, "data_noise": noise_of, "feedback": feedback}


@cache
def _backpropagation(name: str, batch_size: int) -> Prediction:
    return predict("bp", *network(name), batch_size, problem(name).loss)


def prediction(case: ReferenceCase) -> Prediction:
    """Return the prediction of `analysis.theory` for a case whose estimator it knows."""
    net, x, y = network(case.problem)
    options = {key: value for key, value in case.options.items() if key in FORMULAS[case.estimator][1]}
    if case.estimator == "fdfa":
        options["steps"] = case.steps
    if "feedback" in case.state:
        options["feedback"] = feedback_tensors(case)
    return predict(case.estimator, net, x, y, case.batch_size, problem(case.problem).loss, **options)


def feedback_tensors(case: ReferenceCase) -> list[Tensor]:
    """Return the feedback that a case is given, (O, *site shape) per hidden layer."""
    net, *_ = network(case.problem)
    shapes = net.site_shapes(case.options["site"])
    return [tensor(b).view(-1, *shape) for b, shape in zip(case.state["feedback"], shapes, strict=True)]


class Outcomes(Rademacher):
    """A law that draws every sign vector once, in place of random ones."""

    def sample(self, shape, *, generator, dtype):
        """Return all signs of the axes behind the first, which holds the outcomes."""
        signs = itertools.product((-1.0, 1.0), repeat=math.prod(shape[1:]))
        return torch.tensor(list(signs), dtype=dtype).view(tuple(shape))


def _every_outcome(case: ReferenceCase) -> Moments:
    """Return mean and variance of an estimator over every batch and every sign of its perturbations."""
    random = "perturbation" in case.options
    estimator, x, y = make(case, 0, **({"perturbation": Outcomes()} if random else {}))
    directions = case.batch_size * sum(problem(case.problem).units)
    if case.estimator == "zo":
        directions = case.options["tangents"] * sum(v.size for v in problem(case.problem).parameters.values())
    outcomes = 2**directions if random else 1
    visited = list(batches(len(x), case.batch_size))
    atoms = torch.cat([flat(estimator.sample(x[i], y[i], outcomes), outcomes) for i, _ in visited])
    weights = atoms.new_tensor([w / outcomes for _, w in visited]).repeat_interleave(outcomes)
    mean = weights @ atoms
    return mean.numpy(), (weights @ (atoms - mean).square()).numpy()


def _local(case: ReferenceCase, whole: Prediction) -> Moments:
    """Return the moments of local greedy methods: each hidden layer and its readout are a network of their own."""
    net, h, y = network(case.problem)
    loss, options = problem(case.problem).loss, case.options
    pairs = zip(case.state["readout_weights"], case.state["readout_biases"], strict=True)
    readouts = [*(_module(Layer("dense", "linear", *pair)) for pair in pairs), net.readout]
    parts = []
    for i, block in enumerate(net.hidden):
        small = BlockNetwork(block, readouts[i], input_shape=h.shape[1:])
        if case.estimator == "lg-fg-a":
            given = {key: value for key, value in options.items() if key in FORMULAS["fg-a"][1]}
            found = predict("fg-a", small, h, y, case.batch_size, loss, **given)
            mean, variance = found.mean, found.variance
        else:  # as `fg-w`, but over the parameters of the hidden layer only
            found = predict("bp", small, h, y, case.batch_size, loss)
            mean, own = found.mean, [n for n in found.mean if n.startswith("0.")]
            met = {n: found.mean[n].square() + found.data[n] for n in own}
            law = noise(options["perturbation"], sum(v.numel() for v in met.values()), options["tangents"])
            norm2 = sum(v.sum() for v in met.values())
            variance = {n: found.data[n] + law.norm * norm2 + (law.own + law.fourth) * v for n, v in met.items()}
        own = [n for n in mean if n.startswith("0.")]
        parts.append(tuple(torch.cat([values[n].flatten() for n in own]) for values in (mean, variance)))
        with torch.no_grad():
            h = block(h)
    last = [n for n in whole.mean if n.startswith(f"{len(net) - 1}.")]
    parts.append(tuple(torch.cat([values[n].flatten() for n in last]) for values in (whole.mean, whole.data)))
    return tuple(torch.cat([part[k] for part in parts]).numpy() for k in (0, 1))


# --- the estimators --------------------------------------------------------------------------------------------------


def make(case: ReferenceCase, seed: int, replicas: int | None = None, **other) -> tuple[Estimator, Tensor, Tensor]:
    """Return the estimator of a case in the state that the case gives, with `other` options if given, and the population."""
    net, x, y = network(case.problem)
    loss = problem(case.problem).loss
    estimator = make_estimator(case.estimator, net, loss=loss, seed=seed, replicas=replicas, **{**case.given, **other})
    estimator.shortcuts = False  # verify the passes that training takes
    state = case.state
    if "feedback" in state:
        estimator.feedback = feedback_tensors(case)
    elif "weights" in state:
        names = [name for name, p in net.named_parameters() if p.dim() > 1][1:]
        estimator.load_own_state({"feedback": dict(zip(names, map(tensor, state["weights"]), strict=True))})
    elif state:
        pairs = zip(state["readout_weights"], state["readout_biases"], strict=True)
        estimator.load_own_state({"readouts": [[tensor(w), tensor(b)] for w, b in pairs], "optimizer": None})
    return estimator, x, y


def measure(case: ReferenceCase, expected: Prediction, feedback: list[Moments], seed: int) -> list[Row]:
    """Compare draws of the estimator with moments, and return rows as `verification.checks` does.

    Every batch (for FDFA, every sequence of batches) is visited with its probability as weight: what scatters is the
    perturbations, given a batch.
    """
    comparison = Comparison(expected)
    if case.estimator != "fdfa":
        visited = batches(len(network(case.problem)[1]), case.batch_size)
        draw_all(comparison, *make(case, seed), visited, case.draws)
        return comparison.rows
    _chains(case, comparison, feedback, seed)
    return comparison.rows


def _chains(case: ReferenceCase, comparison: Comparison, feedback: list[Moments], seed: int) -> None:
    """Measure the gradient and the feedback of chains that start at zero; the last batch is averaged over exactly."""
    x = network(case.problem)[1]
    last = list(batches(len(x), case.batch_size))
    kept = GradientStrata(comparison)
    moments = [tuple(tensor(v).flatten() for v in pair) for pair in feedback]
    slopes, totals = ([Strata() for _ in moments] for _ in range(2))
    for number, sequence in enumerate(itertools.product(last, repeat=case.steps)):
        weight = math.prod(w for _, w in sequence)
        for strata in (kept, *slopes, *totals):
            strata.open(weight)
        count = max(64, math.ceil(case.draws * weight))
        for call in range(math.ceil(count / CHUNK)):
            chains = math.ceil(count / math.ceil(count / CHUNK))
            estimator, x, y = make(case, seed + 7919 * number + 104_729 * call, chains)
            kept.add(*after_batches(estimator, x, y, sequence, last, comparison.mean))
            for block, (held, (centre, _)) in enumerate(zip(estimator.feedback, moments, strict=True)):
                held = held.flatten(1)
                slopes[block].add(held @ centre / centre.square().sum())
                totals[block].add((held - centre).square().sum(1))
    kept.rows()
    for block, (_, variance) in enumerate(moments):
        n = sum(slopes[block].counts)
        comparison.add("feedback mean", block, 1.0, *map(float, slopes[block].mean()), n=n)
        comparison.add("feedback variance", block, float(variance.sum()), *map(float, totals[block].mean()), log=True, n=n)
