"""Estimates by weight perturbation: forward gradients, and difference quotients in their place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from fdfa_core.errors import Unsupported
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.options import Combination, Count, Perturbation, Positive
from fdfa_core.estimators.registry import register
from fdfa_core.estimators.tangents import Tangents
from fdfa_core.gradients import true_gradient
from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.factored import inner
from fdfa_core.linearisation.functional import functional_call
from fdfa_core.linearisation.trace import Gradients, Trace
from fdfa_core.random_state import preserve_random_stream


class WeightDirections(Estimator):
    """Base of the methods that measure slopes along random directions over all parameters that train.

    Args:
        perturbation: law of v, a name or an object (`fdfa_core.perturbations`).
        tangents: K, directions per estimate.
    """

    need_pull = False

    def __init__(self, net, *, perturbation: Perturbation = "gaussian", tangents: Count = 1, **common):
        super().__init__(net, **common)
        self.tangents = Tangents(perturbation, tangents, "mean")

    @property
    def expectation(self) -> str:
        """The gradient, unless directions are projected on."""
        return "gradient" if self.tangents.how == "mean" else "biased"

    def variance(self, x: Tensor, y: Tensor) -> float | None:
        """Return (d + κ − 2)‖∇ℓ‖²/K with independent entries, (d − 1)‖∇ℓ‖²/K on the sphere, d the parameters that train."""
        noise, truth = self.tangents.noise(self.size), true_gradient(self.net, x, y, self.loss)
        return None if noise is None else noise * sum(float(truth[name].square().sum()) for name in self.trained)

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that train, by name."""
        return {name: p for name, p in self._known if p.requires_grad}

    @property
    def size(self) -> int:
        """P, the number of directions' components."""
        return sum(p.numel() for p in self.trained.values())

    def look(self, findings):
        """Raise `Unsupported` where gradients stop before parameters that train: perturbing these is noise for nothing."""
        for block in findings:
            if block.stops and block.unreached:
                raise Unsupported(
                    f"{block.where} switches gradients off (torch.no_grad), so that none reaches {', '.join(block.unreached)}. "
                    f"{self.name} would perturb these parameters for nothing: set requires_grad_(False) on them"
                )

    def chunked(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients | None:
        """Return draws made a few at a time if their directions would fill the memory, zeros if nothing trains; else None."""
        if not self.size:
            return {name: torch.zeros(*lead, *p.shape, dtype=p.dtype, device=p.device) for name, p in self._known}
        if self.tangents.count > 1 and lead and lead[0] > (chunk := self.tangents.chunk(self.size)):
            return self.in_chunks(trace, error, targets, lead[0], chunk)
        return None

    def _sample(self, lead: tuple[int, ...]) -> Tensor:
        return self.tangents.sample_parameters(lead, [p.shape for p in self.trained.values()], self.generator, self.dtype)

    def _split(self, v: Tensor) -> dict[str, Tensor]:
        """Cut vectors (…, P) over all parameters that train into these."""
        trained = self.trained
        parts = v.split([p.numel() for p in trained.values()], dim=-1)
        return {name: part.reshape(part.shape[:-1] + p.shape) for (name, p), part in zip(trained.items(), parts, strict=True)}


@register("fg-w")
class WeightPerturbation(WeightDirections):
    r"""FG-W: g = (∇ℓ · v) v with one random direction v over all parameters (Baydin et al. 2022; Silver et al. 2022).

    ∇ℓ · v is the directional derivative of the mean loss, from one forward pass with tangents. Unbiased for any law with
    identity covariance. Given the batch, its total variance is (P + κ − 2)‖∇ℓ‖²/K for P parameters, K directions averaged and
    independent entries of kurtosis κ ((P − 1)‖∇ℓ‖²/K on the sphere). Cost: one forward pass, K tangent passes, K P random
    numbers.

    With `per_sample`, every sample p has a direction of its own and g is the mean of (∇ℓ_p · v_p) v_p: unbiased too, and its
    noise falls with the batch size N, where one shared direction leaves a floor. Cost: N K P random numbers (held in chunks of
    samples). It cannot serve a network in which a sample's loss depends on the other samples (batch normalisation in training
    mode); dropout draws a mask of its own for it.

    Parameters that do not train (`requires_grad=False`) are not perturbed, and get zero: P counts the others.

    Args:
        perturbation: law of v, a name or an object (`fdfa_core.perturbations`).
        tangents: K, directions per estimate.
        combine: "mean" averages (∇ℓ · v) v; "projection" projects ∇ℓ on their span (see `Tangents`; E g = (K/P) ∇ℓ).
        per_sample: a direction for each sample.
    """

    def __init__(
        self,
        net,
        *,
        perturbation: Perturbation = "gaussian",
        tangents: Count = 1,
        combine: Combination = "mean",
        per_sample: bool = False,
        **common,
    ):
        super().__init__(net, perturbation=perturbation, tangents=tangents, **common)
        self.tangents = Tangents(perturbation, tangents, combine)
        self.per_sample = per_sample
        self.tangents.check(self.size)

    def variance(self, x: Tensor, y: Tensor) -> float | None:
        """Return the closed form; with a direction for each sample it is the mean of the samples' own, divided by N."""
        if not self.per_sample:
            return super().variance(x, y)
        each = [super(WeightPerturbation, self).variance(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        return None if None in each else sum(each) / len(x) ** 2

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]):
        """Return the combination of slopes (e · J_θ v) and directions v."""
        if self.per_sample and self.size:
            return self._split(self._per_sample(trace, targets, math.prod(lead)).view(*lead, -1))
        if (done := self.chunked(trace, error, targets, lead)) is not None:
            return done
        v = self._sample(lead)
        axes = self.tangents.axes(lead)
        directions = self._split(v.flatten(0, -2) if axes else v.squeeze(0))
        still = {name: torch.zeros_like(p) for name, p in self._known if name not in directions}
        if trace.shortcuts and axes:  # slopes along many directions for one backward pass
            reached = trace.gradient(error)
            slopes = sum(inner(v, reached[name])[:, 0] for name, v in directions.items() if name in reached).to(v.dtype)
        else:
            tangent = None
            for block in trace.blocks:
                tangent = block.push(tangent, parameters=directions | repeat(still, axes) if still else directions)
            slopes = v.new_zeros(axes) if tangent is None else (tangent * error).sum((-2, -1))
        return self._split(self.tangents.combine(slopes.view(*lead, -1), v))

    def _per_sample(self, trace: Trace, targets: Tensor, draws: int) -> Tensor:
        """Return draws of the mean over samples of each one's own estimate, (R, P)."""
        for name, module in self.net.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                raise Unsupported(
                    f"fg-w with per_sample=True cannot serve batch normalisation in training mode (module {name}): there the "
                    "loss of a sample depends on the whole batch. Use per_sample=False, or the network in evaluation mode"
                )
        for i, block in enumerate(trace.blocks):
            if any(part.stops for part in block.parts):
                raise Unsupported(
                    f"fg-w with per_sample=True cannot serve block {i} ({type(block.block).__name__}), which switches "
                    "gradients off by itself (torch.no_grad): use per_sample=False"
                )
        x = trace.input
        values = {name: p.detach() for name, p in self.trained.items()}
        others = {name: p.detach() for name, p in self._known if name not in values} | dict(self.net.named_buffers())

        def push(sample: Tensor, v: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            def call(parameters):
                return functional_call(self.net, {**parameters, **others}, (sample.unsqueeze(0),)).flatten()

            return jvp(call, (values,), (v,))

        along_each = vmap(push, in_dims=(None, 0), randomness="same")  # K directions meet one dropout mask
        for_each = vmap(along_each, randomness="different")
        total = torch.zeros(draws, self.size, dtype=self.dtype, device=self.device)
        for rows in torch.arange(draws * len(x), device=self.device).split(self.tangents.chunk(self.size)):
            xs, ys = x[rows % len(x)], targets[rows % len(x)]
            v = self._sample((len(rows),))
            try:
                with as_written():
                    outputs, tangents = for_each(xs, self._split(v))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise Unsupported(
                    "fg-w with per_sample=True runs the samples side by side (torch.vmap), which cannot follow this network: "
                    f"{reason} Use per_sample=False"
                ) from error
            error = self.loss.error(outputs[:, 0], ys)[1] * (len(rows) / len(x))  # of the mean over one batch
            slopes = (tangents * error.unsqueeze(1)).sum(-1)
            total.index_add_(0, rows // len(x), self.tangents.combine(slopes, v))
        return total


@register("zo")
class ZerothOrder(WeightDirections):
    r"""ZO: g = s v with the difference quotient s = (ℓ(θ + εv) − ℓ(θ − εv))/2ε of the mean loss (Spall 1992, SPSA; Malladi et
    al. 2023, MeZO).

    FG-W without any differentiation. s = ∇ℓ·v + (ε²/6) D³ℓ[v, v, v] + O(ε⁴), so that the bias is of order ε² and comes from
    third derivatives (`analysis.theory.difference.difference_bias`), where the loss is smooth. Kinks of ReLU add an error of
    the slopes that goes with √ε. With Gaussian v the mean is exactly the gradient of E ℓ(θ + εv). The variance is that of FG-W
    to order ε². The rounding error δ of a loss adds about P δ²/2ε²: a small ε is not a good one (figure `zeroth_order`).

    With `clip`, slopes beyond ±c are cut to ±c. For Gaussian v and small ε, the mean is then ∇ℓ erf(c/(√2‖∇ℓ‖)), given the
    batch (`analysis.theory.difference.clipped_slope`).

    Both losses of a direction see the same batch, the same dropout masks, and running statistics that do not move. Cost: two
    forward passes for each direction, K P random numbers. Parameters that do not train are not perturbed, and get zero.

    Args:
        perturbation: law of v, a name or an object (`fdfa_core.perturbations`).
        tangents: K, directions per estimate; their estimates are averaged.
        epsilon: ε, half the distance between the two points in units of v.
        clip: c, or None.
    """

    need_push = False

    def __init__(self, net, *, epsilon: Positive = 1e-3, clip: Positive | None = None, **common):
        super().__init__(net, **common)
        self.epsilon, self.clip = float(epsilon), clip

    @property
    def expectation(self) -> str:
        """The gradient as far as ε² is nothing: up to ε = 0.01, and with slopes that are not cut."""
        return "gradient" if self.clip is None and self.epsilon <= 1e-2 else "biased"

    def variance(self, x: Tensor, y: Tensor) -> float | None:
        """Return that of FG-W, to order ε²."""
        return super().variance(x, y) if self.expectation == "gradient" else None

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return the mean over directions v of difference quotient times v."""
        if (done := self.chunked(trace, error, targets, lead)) is not None:
            return done
        v = self._sample(lead)
        x, directions, step = trace.input, v.reshape(-1, self.size), self.epsilon
        slopes = (self.losses(x, targets, directions, step) - self.losses(x, targets, directions, -step)) / (2 * step)
        if self.clip is not None:
            slopes = slopes.clamp(-self.clip, self.clip)
        return self._split(self.tangents.combine(slopes.view(*lead, -1), v))

    def losses(self, x: Tensor, targets: Tensor, directions: Tensor, step: float) -> Tensor:
        """Return the mean losses (R,) at θ + step · v for directions v (R, P); nothing of the network moves."""
        trained = {name: p.detach() for name, p in self.trained.items()}
        others = {name: p.detach() for name, p in self._known if name not in trained}

        def at(v: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
            moved = {name: trained[name] + step * part for name, part in self._split(v).items()}
            return self.loss(functional_call(self.net, {**moved, **others, **buffers}, (x,)), targets)

        def side_by_side(v: Tensor) -> Tensor:
            buffers = {name: b.repeat(len(v), *[1] * b.dim()) for name, b in self.net.named_buffers()}
            return vmap(at, randomness="same")(v, buffers)

        def one_by_one(v: Tensor) -> Tensor:
            return at(v, {name: b.clone() for name, b in self.net.named_buffers()})

        def same_masks(call: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
            with preserve_random_stream(self.device, self.net), as_written():
                return call(v)

        if len(directions) > 1:
            with contextlib.suppress(RuntimeError):  # what torch.vmap cannot follow is called once for each direction
                return torch.cat([same_masks(side_by_side, v) for v in directions.split(self.tangents.chunk(self.size))])
        return torch.stack([same_masks(one_by_one, v) for v in directions])
