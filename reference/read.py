"""Recompute reference moments with nothing but NumPy: an example of how an implementation in any language tests itself.

`python read.py` compares the cases that this example knows (dense networks; bp, fg-w, fg-a); `python read.py NAME …` only some.
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
    return usual and dense and law and case["estimator"] in ("bp", "fg-w", "fg-a")


def passes(problem, x, y, site):
    """One sample, layer by layer: input (and 1 for a bias), loss gradient z at the site, slope from affine output to site."""
    layers, inputs, affine, h = problem["layers"], [], [], np.array(x)
    for layer in layers:
        inputs.append(np.append(h, 1) if layer["bias"] else h)
        affine.append(np.array(layer["weight"]) @ h + (layer["bias"] or 0))
        h = VALUE[layer["activation"]](affine[-1])
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


def compute(case):
    """Return mean, bias, variance and data noise over all parameters (docs/theory.md, sections 3 and 4)."""
    problem, options, size = PROBLEMS[case["problem"]], case["options"], case["batch_size"]
    samples = [passes(problem, x, y, options.get("site", "pre")) for x, y in zip(problem["x"], problem["y"])]
    columns = [len(layer["weight"][0]) for layer in problem["layers"]]
    gradients = np.array([flat((np.outer(z * slope, h), n) for (h, z, slope), n in zip(s, columns)) for s in samples])
    data, noise, draws = gradients.var(0) / size, 0, size * options.get("tangents", 1)
    if case["estimator"] == "fg-w":  # one direction for the batch meets the batch's gradient, one per sample the sample's
        per_batch = [np.mean(batch, 0) for batch in itertools.product(gradients, repeat=size)]
        met = gradients if options["per_sample"] else np.array(per_batch)
        c, k = FOURTH[options["perturbation"]](met.shape[1])
        noise = np.mean([c * g @ g + (2 * c + k - 1) * g**2 for g in met], 0)
        draws = draws if options["per_sample"] else options["tangents"]
    if case["estimator"] == "fg-a":  # noise of all hidden units reaches every hidden layer; the readout is exact
        c, k = FOURTH[options["perturbation"]](sum(len(z) for _, z, _ in samples[0][:-1]))
        for s, g in zip(samples, gradients):
            zeta = [sum(z @ z for _, z, _ in s[:-1])] * (len(s) - 1) + [0]
            white = flat((c * e * np.outer(slope, h) ** 2, n) for (h, _, slope), n, e in zip(s, columns, zeta))
            noise = noise + (white + (2 * c + k - 1) * g**2 * (white > 0)) / len(samples)
    return {"mean": gradients.mean(0), "bias": 0 * data, "variance": data + noise / draws, "data_noise": data}


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
