"""Recompute reference moments with nothing but NumPy: an example of how an implementation in any language tests itself.

`python read.py` compares the cases that this example knows (dense networks; bp, fg-w, zo, fg-a, guess, dfa, drtp), and
`python read.py NAME …` only some.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

FILES = {name: json.loads((Path(__file__).parent / f"{name}.json").read_text()) for name in ("problems", "cases")}
assert all(file["schema"] == 1 for file in FILES.values()), "made for schema 1"
PROBLEMS, CASES = (FILES[name][name] for name in FILES)
VALUE = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "linear": lambda a: a}
SLOPE = {"tanh": lambda a: 1 - np.tanh(a) ** 2, "relu": lambda a: (a > 0) * 1.0, "linear": lambda a: 0 * a + 1}
USUAL = {"combine": "mean", "joint": True, "readout": "exact", "slope": "sample", "mask": "none"}
FOURTH = {"gaussian": lambda d: (1, 0), "rademacher": lambda d: (1, -2), "sphere": lambda d: (d / (d + 2), 0)}  # c, k


def known(case):
    """Whether the formulas below are those of a case."""
    usual = all(case["options"].get(key, value) == value for key, value in USUAL.items())
    dense = all(layer["kind"] == "dense" for layer in PROBLEMS[case["problem"]]["layers"])
    law = case["options"].get("perturbation", "gaussian") in FOURTH
    return usual and dense and law and case["estimator"] in ("bp", "fg-w", "zo", "fg-a", "guess", "dfa", "drtp")


def forward(problem, x):
    """One sample, layer by layer: input (and 1 for a bias), affine output; and the outputs."""
    inputs, affine, h = [], [], np.array(x)
    for layer in problem["layers"]:
        inputs.append(h if layer["bias"] is None else np.append(h, 1))
        affine.append(np.array(layer["weight"]) @ h + (0 if layer["bias"] is None else layer["bias"]))
        h = VALUE[layer["activation"]](affine[-1])
    return inputs, affine, h


def passes(problem, x, y, site):
    """One sample, layer by layer: input (and 1 for a bias), loss gradient z at the site, slope from affine output to site."""
    layers, (inputs, affine, h) = problem["layers"], forward(problem, x)
    z = np.exp(h) / np.exp(h).sum() - np.eye(len(h))[y] if problem["loss"] == "cross_entropy" else 2 * (h - y) / len(h)
    found = [(inputs[-1], z, np.ones(len(z)))]
    for i in reversed(range(len(layers) - 1)):
        after, slope = np.array(layers[i + 1]["weight"]).T @ z, SLOPE[layers[i]["activation"]](affine[i])
        z = after * slope
        found.insert(0, (inputs[i], after, slope) if site == "post" else (inputs[i], z, np.ones(len(z))))
    return found


def flat(layers):
    """Matrices (units, inputs + 1) in the order of the files: each layer's weights, then its biases."""
    return np.concatenate([np.r_[m[:, :n].ravel(), m[:, n:].ravel()] for m, n in layers])


def of_rank(matrix, rank):
    """The best approximation of a matrix of that rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left * values)[:, :rank] @ right[:rank]


def losses(problem, shift):
    """The loss of every sample, where the parameters, in the order of the files, are moved by a vector."""
    layers, found = [dict(layer) for layer in problem["layers"]], []
    for layer, what in itertools.product(layers, ("weight", "bias")):
        if layer[what] is not None:
            size, shape = np.size(layer[what]), np.shape(layer[what])
            layer[what], shift = layer[what] + shift[:size].reshape(shape), shift[size:]
    for x, y in zip(problem["x"], problem["y"]):
        h = forward({"layers": layers}, x)[2]
        found.append(np.log(np.exp(h).sum()) - h[y] if problem["loss"] == "cross_entropy" else np.mean((h - y) ** 2))
    return np.array(found)


def differences(problem, options, size, parameters):
    """Mean and variance of zo with random signs: every sign and every batch."""
    epsilon, cut = options["epsilon"], options["clip"] or np.inf
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=parameters)))
    slopes = np.array([losses(problem, epsilon * v) - losses(problem, -epsilon * v) for v in signs]) / (2 * epsilon)
    batches = itertools.product(slopes.T, repeat=size)
    draws = [np.clip(np.mean(batch, 0), -cut, cut)[:, None] * signs for batch in batches]
    means = np.array([g.mean(0) for g in draws])
    return means.mean(0), means.var(0) + np.mean([g.var(0) for g in draws], 0) / options["tangents"]


def compute(case):
    """Return mean, bias, variance and data noise over all parameters (docs/theory.md, sections 2 to 4)."""
    problem, options, size, kind = PROBLEMS[case["problem"]], case["options"], case["batch_size"], case["estimator"]
    site = options.get("site", "post" if kind == "guess" else "pre")
    samples = [passes(problem, x, y, site) for x, y in zip(problem["x"], problem["y"])]
    columns = [len(layer["weight"][0]) for layer in problem["layers"]]
    gradients = np.array([flat((np.outer(z * slope, h), n) for (h, z, slope), n in zip(s, columns)) for s in samples])
    data, noise, draws = gradients.var(0) / size, 0, size * options.get("tangents", 1)
    mean, variance = gradients.mean(0), data
    if kind == "zo":
        mean, variance = differences(problem, options, size, gradients.shape[1])
    if kind in ("dfa", "drtp"):  # feedback takes the error, or the target, to every hidden layer
        feedback, taught = [of_rank(b, options.get("rank")) for b in case["state"]["feedback"]], []
        for s, y in zip(samples, problem["y"]):
            signal = s[-1][1] if kind == "dfa" else np.eye(len(s[-1][1]))[y]
            layers = [(h, signal @ b, slope) for (h, _, slope), b in zip(s, feedback)] + s[-1:]
            taught.append(flat((np.outer(z * slope, h), n) for (h, z, slope), n in zip(layers, columns)))
        mean, variance = np.mean(taught, 0), np.var(taught, 0) / size
    if kind == "guess":  # directions lie in the row space of the next layer's weights, or in its largest part
        bases = [np.linalg.svd(layer["weight"], full_matrices=False)[2][: options["rank"]] for layer in problem["layers"][1:]]
        inside = [v.T @ v for v in bases]
        seen = [[(h, p @ z, slope) for (h, z, slope), p in zip(s, inside)] + s[-1:] for s in samples]
        kept = np.array([flat((np.outer(z * slope, h), n) for (h, z, slope), n in zip(s, columns)) for s in seen])
        for s, g in zip(seen, kept):
            zeta = sum(z @ z for _, z, _ in s[:-1])
            each = [(np.outer(slope**2 * np.diag(p), h**2) * zeta, n) for (h, _, slope), p, n in zip(s, inside, columns)]
            white = flat([*each, (np.zeros((len(s[-1][1]), len(s[-1][0]))), columns[-1])])
            noise = noise + (white + g**2 * (white > 0)) / len(samples)
        mean, variance = kept.mean(0), kept.var(0) / size
    if kind == "fg-w":  # one direction for the batch meets the batch's gradient, one per sample the sample's
        per_batch = [np.mean(batch, 0) for batch in itertools.product(gradients, repeat=size)]
        met = gradients if options["per_sample"] else np.array(per_batch)
        c, k = FOURTH[options["perturbation"]](met.shape[1])
        noise = np.mean([c * g @ g + (2 * c + k - 1) * g**2 for g in met], 0)
        draws = draws if options["per_sample"] else options["tangents"]
    if kind == "fg-a":  # noise of all hidden units reaches every hidden layer; the readout is exact
        c, k = FOURTH[options["perturbation"]](sum(len(z) for _, z, _ in samples[0][:-1]))
        for s, g in zip(samples, gradients):
            zeta = [sum(z @ z for _, z, _ in s[:-1])] * (len(s) - 1) + [0]
            white = flat((c * e * np.outer(slope, h) ** 2, n) for (h, _, slope), n, e in zip(s, columns, zeta))
            noise = noise + (white + (2 * c + k - 1) * g**2 * (white > 0)) / len(samples)
    return {"mean": mean, "bias": mean - gradients.mean(0), "variance": variance + noise / draws, "data_noise": data}


if __name__ == "__main__":
    chosen = {case["name"]: case for case in CASES if known(case)}
    if others := set(sys.argv[1:]) - chosen.keys():
        sys.exit(f"this example knows no case {', '.join(sorted(others))}")
    failed = False
    for case in (chosen[name] for name in sys.argv[1:] or chosen):
        held = case["moments"].values()
        stored = {what: np.concatenate([np.ravel(m[what]) for m in held]) for what in case["moments"]["0.weight"]}
        scale = {"variance": stored["variance"].max(), "mean": abs(stored["mean"] - stored["bias"]).max()}
        scale |= {"data_noise": scale["variance"], "bias": scale["mean"]}
        off = max((abs(v - stored[what]) / (abs(stored[what]) + scale[what])).max() for what, v in compute(case).items())
        failed |= not off <= 1e-10
        print(f"{'agrees' if off <= 1e-10 else 'DIFFERS'}  {off:.1e}  {case['name']}")
    sys.exit(failed)
