r"""What averaging over steps buys: of FG-A's gradient, of FDFA's feedback, of both.

At frozen weights a step's noise is a sum over the independent directions of all steps so far, so its variance follows from the
weights that an average gives each of them. With A, F, X the parts of the variance for batches of one sample and α = 1
(`analysis.theory.laws.Contest`), v_k the weight of step k's gradient and w_{ks} that of step s's Jacobian estimate in the
feedback that step k uses, the perturbation noise of batches of N is

    FG-A   A/N Σ_k v_k²
    FDFA   F/N Σ_s (Σ_k v_k w_{ks})² + X/N² Σ_s Σ_k v_k² w_{ks}²

One step (v = 1 at the last) gives the familiar factor α/(2−α) of both. The plain mean of T steps gives A/(N T) and, for
T ≫ 1/α, about (F/N + α/(2−α) X/N²)/T: the noise of a slow feedback is small, and repeats itself. What is left of the gain is
F + … against A: FDFA averages the errors before they meet the noise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis import logs, options, select, statistics
from analysis.rebuilt import closed_forms
from fdfa_core.estimators import averages


def weights(rate: float, steps: int) -> np.ndarray:
    """Return the weights that a moving average gives its items, (steps + 1, steps): row t after t items.

    Args:
        rate: a; the t-th item counts max(a, 1/t) (`fdfa_core.estimators.averages.weight`): the average begins as a plain mean.
        steps: number of items.
    """
    table = np.zeros((steps + 1, steps))
    for t in range(1, steps + 1):
        now = averages.weight(rate, t)
        table[t] = (1 - now) * table[t - 1]
        table[t, t - 1] = now
    return table


def factor(rate: float, steps: int, warmup: bool = True) -> float:
    """Return the variance of a moving average of independent items after `steps` of them, over that of one item.

    α/(2−α) in the long run; with `warmup` the first 1/α items are averaged plainly, without it the average starts at zero.
    """
    if warmup:
        return float(np.square(weights(rate, steps)[-1]).sum())
    return rate / (2 - rate) * (1 - (1 - rate) ** (2 * steps))


def variance_law(frame: pd.DataFrame, steps: int, warmup: bool) -> pd.DataFrame:
    """Return what the measured variance at the largest α says of the others, if α scales it as at frozen weights.

    Args:
        frame: rows with `block`, `alpha`, `quantity` and `estimate`, as of `bias.split_over_seeds`.
        steps: age of the feedback.
        warmup: the option of FDFA.

    Returns:
        The rows of the variance with the law as `estimate` and `quantity` "law".
    """
    rows = frame[frame["quantity"] == "variance"].sort_values("alpha")
    scale = rows["alpha"].map({alpha: factor(alpha, steps, warmup) for alpha in rows["alpha"].unique()})
    anchor = (rows["estimate"] / scale).groupby(rows["block"]).transform("last")
    law = anchor * scale
    return rows.assign(quantity="law", estimate=law, low=law, high=law, interval="none")


def noise(coefficients: pd.Series, batch_size: int, steps: int, feedback_lr: float | None, gradient_lr: float = 1.0) -> float:
    """Return the perturbation noise (total variance given the batches) of the gradient after `steps` earlier steps.

    Args:
        coefficients: `perturbation`, `feedback`, `cross` of a `Contest`.
        batch_size: N.
        steps: steps before this one, at the same weights.
        feedback_lr: α of FDFA, with warm-up; None for FG-A.
        gradient_lr: rate of the gradient's average; 1 is no average, 0 a plain mean.
    """
    v = weights(gradient_lr, steps + 1)[-1]
    if feedback_lr is None:
        return float(coefficients["perturbation"] / batch_size * np.square(v).sum())
    used = v[:, None] * weights(feedback_lr, steps)  # gradient k uses the feedback after k − 1 updates
    together, apart = np.square(used.sum(0)).sum(), np.square(used).sum()
    return float(coefficients["feedback"] / batch_size * together + coefficients["cross"] / batch_size**2 * apart)


def frozen(log: logs.Logs, rates: Iterable[float]) -> pd.DataFrame:
    """Return perturbation noise ÷ ‖∇‖² at frozen weights, all hidden blocks together, measured and by closed form.

    Args:
        log: an experiment of frozen weights and given batches.
        rates: where the closed form is evaluated.

    Returns:
        Rows of `kind` "measured" (columns of `statistics.over_seeds`) and "theory" (geometric mean over seeds) per `panel`
        ("step": one step; "mean": T times the variance of the mean over all T steps), `method` ("fg-a", "fg-a-averaged",
        "fdfa") and `rate` (of what the method averages; 1 for plain FG-A).
    """
    probes = _hidden(log.probes)
    plain_mean = probes["gradient_lr"] < 1e-6
    step = probes[~plain_mean].assign(panel="step", factor=1.0)
    mean = select.last_step(probes[plain_mean])
    mean = mean.assign(panel="mean", factor=mean["step"] + 1.0, rate=mean["feedback_lr"].fillna(1.0))
    mean["method"] = mean["method"].str.removesuffix("-averaged")
    rows = pd.concat([step, mean], ignore_index=True)
    norm2 = rows["reference_norm"] ** 2
    rows = rows.assign(value=rows["factor"] * rows["variance"] / norm2, se=rows["factor"] * rows["variance_se"] / norm2)
    by = ["panel", "method", "rate"]
    measured = statistics.over_seeds(rows, "value", by, se="se", log=True).assign(kind="measured")

    n, steps = int(rows["batch_size"].iloc[0]), int(rows["step"].max())
    per_seed = closed_forms.contests(log).merge(rows.groupby("seed")["reference_norm"].first().reset_index(), on="seed")
    # a measured rate is evaluated too, so that theory stands at every point
    curves = [("step", "fg-a", 1.0, {"feedback_lr": None}), ("mean", "fg-a", 1.0, {"feedback_lr": None, "gradient_lr": 0.0})]
    for rate in sorted({*rates, *rows["rate"]}):
        curves.append(("step", "fg-a-averaged", rate, {"feedback_lr": None, "gradient_lr": rate}))
        curves.append(("step", "fdfa", rate, {"feedback_lr": rate}))
        curves.append(("mean", "fdfa", rate, {"feedback_lr": rate, "gradient_lr": 0.0}))
    theory = []
    for panel, method, rate, rates in curves:
        factor = steps + 1 if panel == "mean" else 1
        values = [factor * noise(row, n, steps, **rates) / row["reference_norm"] ** 2 for _, row in per_seed.iterrows()]
        estimate = float(np.exp(np.log(values).mean()))
        theory.append({"panel": panel, "method": method, "rate": rate, "estimate": estimate, "low": estimate, "high": estimate})
    theory = pd.DataFrame(theory).assign(seeds=len(per_seed), interval="none", kind="theory")
    return pd.concat([measured, theory], ignore_index=True)


def moving(log: logs.Logs) -> pd.DataFrame:
    """Return squared error, variance and squared bias ÷ ‖∇‖² against the rate of the gradient's average, weights in training.

    At the last probe, all hidden blocks together, of FG-A and of FDFA with one α, each plain (rate 1) and averaged; against the
    reference set's gradient with fresh batches, so that the data's noise counts too, and is averaged too.

    Returns:
        Columns of `statistics.over_seeds`, `method` ("fg-a" or "fdfa"), `feedback_lr` (0 for FG-A), `rate`, `quantity`.
    """
    from analysis import bias

    probes = select.last_step(_hidden(log.probes))
    alpha = probes.loc[probes["method"] == "fdfa-averaged", "feedback_lr"].iloc[0]
    kept = probes[probes["feedback_lr"].isna() | ((probes["feedback_lr"] == alpha) & options.column(probes, "warmup").eq(True))]
    kept = kept.assign(
        rate=kept["gradient_lr"].fillna(1.0), method=kept["method"].str.removesuffix("-averaged"), feedback_lr=alpha
    )
    kept = kept.assign(feedback_lr=kept["feedback_lr"].where(kept["method"] == "fdfa", 0.0))
    return bias.split_over_seeds(kept, ["method", "feedback_lr", "rate"])


def _hidden(probes: pd.DataFrame) -> pd.DataFrame:
    """Return rows of all hidden blocks together, with the rates as columns; `rate` is of what the method averages."""
    rows = probes[(probes["level"] == "hidden") & (probes["source"] == "shadow")]
    rates = {"feedback_lr": options.alpha(rows), "gradient_lr": options.numbers(rows, "gradient_lr")}
    return rows.assign(**rates, rate=rates["gradient_lr"].fillna(rates["feedback_lr"]).fillna(1.0))
