"""What follows from the closed forms: averages over dimensions, scaling, angles, the best feedback rate, FDFA against FG-A."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import gammaln
from torch import Tensor

from analysis.theory.feedback import FeedbackLaw, lag_bias
from analysis.theory.prediction import Prediction
from analysis.theory.predictions import predict
from fdfa_core.errors import InvalidInput
from fdfa_core.networks.blocks import BlockNetwork

# Averages over the components of a layer -----------------------------------------------------------------------------


def average_moments(bp: Prediction, parameters: Sequence[str] | None = None) -> tuple[float, float]:
    """Return V̄ and S̄: means over components of Var_p G_i and of (E_p G_i)², from a `bp` prediction.

    Args:
        bp: `predict("bp", …)`.
        parameters: names to average over, all by default.
    """
    names = list(bp.mean) if parameters is None else list(parameters)
    size = sum(bp.mean[n].numel() for n in names)
    variance = sum(float(bp.data[n].sum()) for n in names) * bp.batch_size / size
    return variance, sum(float(bp.mean[n].square().sum()) for n in names) / size


def average_variance(
    mean_variance: float,
    mean_square: float,
    *,
    units: int,
    fan_in: int,
    batch_size: int,
    kurtosis: float = 3,
    tangents: int = 1,
) -> dict[str, float]:
    r"""Return the mean variance of a component of one layer's q × p weights when only this layer is perturbed.

    For kurtosis 3 and one tangent these are the four forms of Table 1 of Ren et al. (2022). In the last one a direction u over
    the units is shared by the batch, so that the estimate of ĝ is u uᵀĝ; no estimator here does that.

    - `fg-w shared`       (pq + 2)/N V̄ + (pq + 1) S̄
    - `fg-w per sample`   (pq + 2)/N V̄ + (pq + 1)/N S̄
    - `fg-a`              (q + 2)/N V̄ + (q + 1)/N S̄
    - `fg-a shared`       (q + 2)/N V̄ + (q + 1) S̄

    Args:
        mean_variance, mean_square: V̄ and S̄ of the layer's weights, see `average_moments`.
        units, fan_in: q and p.
        batch_size: N.
        kurtosis: of the perturbations' independent entries.
        tangents: directions averaged.

    Examples:
        >>> from analysis.theory.laws import average_variance
        >>> average_variance(1.0, 0.0, units=8, fan_in=4, batch_size=2)
        {'fg-w shared': 17.0, 'fg-w per sample': 17.0, 'fg-a': 5.0, 'fg-a shared': 5.0}
    """
    v, s = mean_variance, mean_square

    def sample(directions: int) -> float:
        return (v + (directions + kurtosis - 2) * (v + s) / tangents) / batch_size

    def shared(directions: int) -> float:
        return v / batch_size + (directions + kurtosis - 2) * (s + v / batch_size) / tangents

    weights = units * fan_in
    return {
        "fg-w shared": shared(weights),
        "fg-w per sample": sample(weights),
        "fg-a": sample(units),
        "fg-a shared": shared(units),
    }


# Scaling -------------------------------------------------------------------------------------------------------------


def sweep(
    name: str, cases: Iterable[tuple[float, BlockNetwork, Tensor, Tensor, int]], loss="cross_entropy", **options
) -> pd.DataFrame:
    """Return `Prediction.frame` of one estimator on a family of networks or batch sizes, with a column `value`.

    Args:
        cases: (value, net, x, y, batch_size), the value being what is varied: width, depth or batch size.
    """
    frames = [
        predict(name, net, x, y, batch_size, loss, **options).frame().assign(value=value)
        for value, net, x, y, batch_size in cases
    ]
    return pd.concat(frames, ignore_index=True)


def slopes(frame: pd.DataFrame, column: str = "variance") -> pd.DataFrame:
    """Return least-squares slopes of ln(column) on ln(value), one row per estimator, level, block and parameter.

    Columns besides these: `slope`, and `curvature`, the quadratic coefficient of the same fit (0 for a pure power law; NaN for
    fewer than three values).

    Args:
        frame: from `sweep`.
        column: a positive column of it.
    """
    rows = []
    keys = ["estimator", "level", "block", "parameter"]
    for key, group in frame.groupby(keys, sort=False):
        u, v = np.log(group["value"].astype(float)), np.log(group[column].astype(float))
        curvature = np.polyfit(u, v, 2)[0] if len(group) > 2 else float("nan")
        rows.append(dict(zip(keys, key, strict=True)) | {"slope": np.polyfit(u, v, 1)[0], "curvature": curvature})
    return pd.DataFrame(rows)


# Angles --------------------------------------------------------------------------------------------------------------


def expected_cosine(dimension: int, tangents: int = 1, combine: str = "mean") -> float:
    r"""Return E cos(g, ĝ) of a Gaussian forward gradient from K tangents in P dimensions, given the batch. Exact.

    cos² is Beta(K/2, (P−1)/2) for the mean of K one-tangent estimates and Beta(K/2, (P−K)/2) for the projection on their span.

    Args:
        dimension: P, the parameters (FG-W) or the units of the one perturbed block (FG-A, a batch of one).
        tangents: K.
        combine: "mean" or "projection".

    Examples:
        >>> from analysis.theory.laws import expected_cosine
        >>> f"{expected_cosine(1000):.4f}"
        '0.0252'
        >>> f"{expected_cosine(1000, tangents=10, combine='projection'):.4f}"
        '0.0976'
    """
    a, b = _beta(dimension, tangents, combine)
    if b == 0:
        return 1.0
    return float(np.exp(gammaln(a + 0.5) + gammaln(a + b) - gammaln(a) - gammaln(a + b + 0.5)))


def expected_squared_cosine(dimension: int, tangents: int = 1, combine: str = "mean") -> float:
    """Return E cos²: K/(K + P − 1) for the mean of K tangents, K/P for the projection (arguments as `expected_cosine`).

    Examples:
        >>> from analysis.theory.laws import expected_squared_cosine
        >>> expected_squared_cosine(1000, tangents=10, combine='projection')
        0.01
    """
    a, b = _beta(dimension, tangents, combine)
    return a / (a + b)


def noise_cosine(prediction: Prediction, block: int | None = None) -> float:
    """Return the approximation cos(E g, ∇)/√(1 + NSR) of E cos(g, ∇), NSR = Var g/‖E g‖².

    Good where many independent perturbations are averaged; 25 % too large for a single Gaussian tangent.
    """
    mine = [n for n in prediction.mean if block is None or n.split(".", 1)[0] == str(block)]
    inner = sum(float((prediction.mean[n] * prediction.target[n]).sum()) for n in mine)
    mean, target = prediction.total("mean", block), prediction.total("target", block)
    return inner / ((mean + prediction.total("variance", block)) * target) ** 0.5


def rank_one_squared_cosine(units: int) -> float:
    r"""Return E cos²(J, (J p) pᵀ) = 1/n of a rank-one piece of any Jacobian J ≠ 0, the Frobenius cosine. Exact.

    With p = r s and s uniform on the unit sphere, ⟨J, J p pᵀ⟩ = r² ‖J s‖² and ‖J p pᵀ‖ = r² ‖J s‖, so that cos = ‖J s‖/‖J‖_F,
    and E s sᵀ = I/n. It holds for isotropic laws (Gaussian, sphere) and where one block is perturbed at a time.

    Args:
        units: n, the columns of J.
    """
    if units < 1:
        raise InvalidInput("units", units, "at least 1")
    return 1 / units


def rank_one_cosine_bound(jacobian: Tensor) -> float:
    """Return √(2/(π n)) ‖J‖₂/‖J‖_F, the lower bound on E cos of a rank-one piece (Caillon et al. 2026).

    ‖J s‖ is at least its part ‖J‖₂ |s·v| along the first right singular vector v, and E|s·v| ≥ √(2/(π n)). The exact value lies
    between this and 1/√n, the root of the mean square.

    Args:
        jacobian: J (O, n), not all zero.
    """
    return (2 / (np.pi * jacobian.shape[1])) ** 0.5 * float(torch.linalg.matrix_norm(jacobian, 2) / jacobian.norm())


def rank_one_column_cosine(jacobian: Tensor) -> float:
    r"""Return the mean over columns of E cos between the columns of J and of (J p) pᵀ, for a single output: exact.

    The column k of the piece is p_k (J·p), so that the cosine is the sign of J_k p_k (J·p). Its mean is that of the product of
    the signs of two normal variables with correlation |J_k|/‖J‖: (2/π) arcsin(|J_k|/‖J‖).

    Args:
        jacobian: J (1, n) without zeros among its entries.
    """
    if jacobian.shape[0] != 1:
        raise InvalidInput("jacobian: outputs", jacobian.shape[0], "1; for several outputs no closed form is known here")
    return float((2 / np.pi) * (jacobian.abs() / jacobian.norm()).clamp(max=1).asin().mean())


def _beta(dimension: int, tangents: int, combine: str) -> tuple[float, float]:
    if combine not in ("mean", "projection"):
        raise InvalidInput("combine", combine, '"mean" or "projection"')
    limit = dimension if combine == "projection" else float("inf")
    if dimension < 1 or not 1 <= tangents <= limit:
        raise InvalidInput("tangents, dimension", (tangents, dimension), "1 ≤ tangents, and ≤ dimension for a projection")
    return tangents / 2, (dimension - (1 if combine == "mean" else tangents)) / 2


# The feedback rate ---------------------------------------------------------------------------------------------------


def momentum_factor(rate: float) -> float:
    """Return α/(2−α): variance of the moving average m ← (1−α)m + αX of independent X, over that of X.

    Examples:
        >>> from analysis.theory.laws import momentum_factor
        >>> f"{momentum_factor(0.1):.4f}"
        '0.0526'
    """
    return rate / (2 - rate)


def tracking_feedback_lr(step_variance: float, drift2: float) -> float:
    """Return the α that minimises the feedback's own squared error under drift, for small α.

    The error is α/2 σ² + ‖V‖²/α² with σ² = tr Cov D and V the drift of J̄ per step; its minimum is (4‖V‖²/σ²)^{1/3}.

    Examples:
        >>> from analysis.theory.laws import tracking_feedback_lr
        >>> f"{tracking_feedback_lr(step_variance=4.0, drift2=1e-6):.3f}"
        '0.010'
    """
    return min(1.0, (4 * drift2 / step_variance) ** (1 / 3))


@dataclass(frozen=True)
class DriftError:
    """FDFA's mean squared gradient error against α while J̄ moves at a constant speed (see `lag_bias`).

    Attributes:
        data, feedback, cross: total variance parts of the hidden blocks at α = 1.
        bias: bias of a stationary feedback, flat; lag: bias at α = 1 that the drift causes, flat. Both (hidden parameters,).
    """

    data: float
    feedback: float
    cross: float
    bias: np.ndarray
    lag: np.ndarray

    @classmethod
    def of(cls, net, x, y, batch_size: int, drift: Sequence[Tensor], loss="cross_entropy", **options) -> DriftError:
        """Predict it from a network, a population and a drift per step (`feedback_drift`); options are those of `fdfa`."""
        whole = predict("fdfa", net, x, y, batch_size, loss, feedback_lr=1.0, **options)
        lag = lag_bias(net, x, y, drift, 1.0, loss=loss, site=options.get("site", "post"))
        hidden = [n for n in whole.mean if int(n.split(".", 1)[0]) < len(net) - 1]
        parts = [sum(float(getattr(whole, part)[n].sum()) for n in hidden) for part in ("data", "feedback", "cross")]
        bias, lag = (np.concatenate([v[n].flatten().cpu().numpy() for n in hidden]) for v in (whole.bias, lag))
        return cls(*parts, bias, lag)

    def mse(self, rate: float) -> float:
        """Return the mean squared error of the hidden blocks' gradient at α = rate."""
        variance = self.data + momentum_factor(rate) * (self.feedback + self.cross)
        return variance + float(np.square(self.bias + self.lag / rate).sum())

    def best_feedback_lr(self) -> float:
        """Return the α that minimises `mse`, between 1e-6 (what it is without any drift) and 1."""
        optimum = minimize_scalar(lambda u: self.mse(np.exp(u)), bounds=(np.log(1e-6), 0.0), options={"xatol": 1e-8})
        return float(min(np.exp(optimum.x), 1.0, key=self.mse))


def adam_feedback_variance(law: FeedbackLaw, learning_rate: float) -> list[Tensor]:
    r"""Return the approximate long-run variance of every feedback entry that Adam trains on B − D, (O, units) per block.

    Adam divides by the root mean square of B − D, about sd(D), so it acts as a moving average with α = lr/sd(D), and
    Var B ≈ lr sd(D)/2: it falls as N^{-1/2}, not N^{-1}. Good for lr well below sd(D).
    """
    return [learning_rate / 2 * c.diagonal(dim1=1, dim2=2).T.sqrt() for c in law.step_covariance]


# FDFA against FG-A ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """Total variance and bias of FDFA and of FG-A as functions of batch size and feedback rate.

    All coefficients are for N = 1 and α = 1; both methods perturb the same site, with the readout exact.

    Attributes:
        bp: V, variance of BP's gradient.
        perturbation: A, what FG-A's perturbations add.
        data: 𝒟, FDFA's data part.
        feedback, cross: F and X, its other parts.
        bias2: squared norm of its bias.
    """

    bp: float
    perturbation: float
    data: float
    feedback: float
    cross: float
    bias2: float

    def fg_a(self, batch_size):
        """Return FG-A's variance, which is its MSE: (V + A)/N."""
        return (self.bp + self.perturbation) / np.asarray(batch_size, float)

    def fdfa(self, batch_size, feedback_lr, criterion: str = "mse"):
        """Return FDFA's "variance" 𝒟/N + α/(2−α) (F/N + X/N²), or its "mse", with the squared bias added."""
        n = np.asarray(batch_size, float)
        variance = self.data / n + momentum_factor(np.asarray(feedback_lr, float)) * (self.feedback / n + self.cross / n**2)
        return variance + (self.bias2 if _criterion(criterion) == "mse" else 0.0)

    def feedback_lr_limit(self, batch_size, criterion: str = "mse"):
        """Return α*(N): FDFA beats FG-A for α < α*. 0: for no α; 1: for all."""
        n = np.asarray(batch_size, float)
        bias2 = self.bias2 if _criterion(criterion) == "mse" else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = (self.bp + self.perturbation - self.data - n * bias2) / (self.feedback + self.cross / n)
            return np.clip(np.where(rho > 0, np.where(np.isinf(rho), 1.0, 2 * rho / (1 + rho)), 0.0), 0.0, 1.0)

    @property
    def batch_limit(self) -> float:
        """N*: above this batch size FG-A has the lower MSE at every α, because FDFA's bias does not shrink with N."""
        gain = self.bp + self.perturbation - self.data
        return float("inf") if self.bias2 <= 1e-24 * max(self.bp, 1e-300) else max(gain / self.bias2, 0.0)

    def table(self, batch_sizes: Sequence[int], feedback_lrs: Sequence[float]) -> pd.DataFrame:
        """Return `batch_size`, `feedback_lr`, `criterion`, `fdfa`, `fg_a`, `ratio`, `fdfa_wins` on a grid (a phase diagram)."""
        rows = [
            {"batch_size": n, "feedback_lr": a, "criterion": c, "fdfa": float(self.fdfa(n, a, c)), "fg_a": float(self.fg_a(n))}
            for c in ("variance", "mse")
            for n in batch_sizes
            for a in feedback_lrs
        ]
        frame = pd.DataFrame(rows)
        return frame.assign(ratio=frame.fdfa / frame.fg_a, fdfa_wins=frame.fdfa < frame.fg_a)


def contest(net, x, y, loss="cross_entropy", *, block: int | None = None, site="post", **options) -> Contest:
    """Return FDFA against FG-A on a network and population (x, y), for one block or (None) all hidden blocks.

    Args:
        block: index of a hidden block.
        options: `perturbation`, `joint`, `tangents`, the same for both.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from analysis.theory.laws import contest
        >>> totals = contest(net, x, y)
        >>> f"{totals.fdfa(8, 0.1) / totals.fg_a(8):.3f}"
        '0.133'
    """
    fdfa = predict("fdfa", net, x, y, 1, loss, feedback_lr=1.0, site=site, **options)
    fg_a = predict("fg-a", net, x, y, 1, loss, site=site, readout="exact", **options)
    blocks = range(len(net) - 1) if block is None else [block]

    def total(prediction: Prediction, what: str) -> float:
        return sum(prediction.total(what, b) for b in blocks)

    return Contest(
        total(fg_a, "data"), total(fg_a, "perturbation"), *(total(fdfa, w) for w in ("data", "feedback", "cross", "bias"))
    )


def _criterion(criterion: str) -> str:
    if criterion not in ("variance", "mse"):
        raise InvalidInput("criterion", criterion, '"variance" or "mse"')
    return criterion
