"""How the variance of an estimate grows with the network: measured, drawn, and beside its theory.

Run it from the root of the project: python examples/variance_of_fg.py [picture.png]
"""

import sys

import pandas as pd
import torch
from matplotlib.figure import Figure

from fdfa_core import fully_connected, measure

ESTIMATORS = ["fg-w", "fg-a", ("fdfa", {"feedback_lr": 0.2})]
WIDTHS = [8, 16, 32, 64]


def main(picture="variance_of_fg.png"):
    """Measure networks of several widths, print a table, draw a picture."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 16), torch.randint(4, (32,))

    frames = []
    for width in WIDTHS:
        net = fully_connected([16, width, width, 4], activation="tanh", seed=0)
        frame = measure(net, x, y, ESTIMATORS, replicates=64).query("level == 'network'")
        frames.append(frame.assign(width=width, parameters=sum(p.numel() for p in net.parameters())))
    variances = pd.concat(frames)

    # One line of pandas for a table, three of matplotlib for a picture: `measure` returns an ordinary tidy frame.
    table = variances.pivot(index=["width", "parameters"], columns="estimator", values="relative_variance")
    print("variance ÷ ‖∇‖²; theory has (P + 1) for fg-w, P the number of parameters\n")
    print(pd.DataFrame(table).map("{:.3g}".format).to_string())

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="width of the hidden blocks", ylabel="variance ÷ ‖∇‖²")
    for estimator, rows in variances.groupby("estimator", sort=False):
        error = rows["variance_se"] / rows["target_norm"] ** 2
        axes.errorbar(rows["width"], rows["relative_variance"], error, marker="o", label=estimator)
    axes.plot(rows["width"], rows["parameters"] + 1, "k--", label="P + 1")
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(picture, dpi=150)
    print(f"\ndrawn: {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
