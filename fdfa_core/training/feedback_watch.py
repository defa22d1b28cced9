r"""How far feedback is from the mean Jacobian that it estimates, and which part of the gradient's bias comes from where.

At step t the feedback is B_t = Σ_s w_s D_s, a moving average of Jacobian estimates at the weights of the steps s < t (an
estimator says so by `Estimator.jacobian_average`; FDFA's is). Its mean over perturbations is J̃ = Σ_s w_s J̄_s(batch s), and
a hidden block's gradient is linear in it, G(B) = E_p[A_pᵀ Bᵀ e_p] over the reference set. So the bias G(J̃) − ∇ is a sum of
vectors with different causes:

| part | vector | there because |
| --- | --- | --- |
| averaging | G(J̄_t) − ∇ | one J̄ serves all samples |
| lag | G(Σ_s w_s (J̄_s − J̄_t)) | the weights have moved since |
| start | −(1 − Σ_s w_s) G(J̄_t) | the average began at zero (never with `warmup`) |
| sampling | G(Σ_s w_s (J̄_s(batch s) − J̄_s)) | a batch is a few samples |

with J̄_s the mean Jacobian of the reference set at step s. All four are computed, not estimated: the watch follows the average
with exact Jacobians beside the shadows' noisy ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fdfa_core.errors import Unsupported
from fdfa_core.estimators import Estimator
from fdfa_core.estimators.averages import JacobianAverage
from fdfa_core.gradients import true_gradient
from fdfa_core.linearisation import factored as draws
from fdfa_core.linearisation.trace import Trace
from fdfa_core.losses import make_loss
from fdfa_core.measuring.scalars import scalars_of
from fdfa_core.measuring.summary import summarise
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.runs.partial import Rows

PARTS = ("averaging", "lag", "start", "sampling")


def mean_jacobian(net: BlockNetwork, x: Tensor, site: str = "post") -> list[Tensor]:
    """Return E_p[∂y_p/∂site] over samples x (M, …) for every hidden block, (O, units) each, by reverse mode.

    Each sample's output must be a function of that sample alone.
    """
    values: list[Tensor] = []

    def tape(value: Tensor) -> Tensor:
        values.append(value if value.requires_grad else value.requires_grad_())
        return values[-1]

    with torch.enable_grad():
        for block in list(net)[:-1]:  # each module gets a copy: it may work in place, and what is taped must stay
            x = block.activation(tape(block.affine(x.clone())).clone()) if site == "pre" else tape(block(x.clone()))
        outputs = net[-1](x.clone())
    means = outputs.mean(0)
    rows = [torch.autograd.grad(mean, values, retain_graph=True) for mean in means]
    return [torch.stack([g.sum(0).flatten() for g in block]) for block in zip(*rows, strict=True)]


class FeedbackWatch:
    """Compares shadows' feedback with the exact mean Jacobian of the reference set.

    Args:
        net: the network in training.
        shadows: by label; those whose gradient is no product of the error with a moving average of output Jacobians
            (`Estimator.jacobian_average`) are left aside.
        options: given options per label.
        reference: samples (x, y) of the reference set.
        loss: as in `make_estimator`.
        frozen: the weights never move, so that one look at the Jacobian serves for good.

    Attributes:
        rows: rows of `feedback.parquet` so far (docs/architecture.md).

    Raises:
        Unsupported: a sample's output depends on other samples or on chance, or a shadow's feedback is no moving average.
    """

    def __init__(
        self,
        net: BlockNetwork,
        shadows: Mapping[str, Estimator],
        options: Mapping[str, Mapping[str, Any]],
        reference: tuple[Tensor, Tensor],
        loss,
        frozen: bool,
    ):
        self.net, self.options, self.frozen = net, options, frozen
        self.x, self.y = reference
        self.loss = make_loss(loss)
        for module in net.modules():
            if isinstance(module, _BatchNorm | _DropoutNd):
                raise Unsupported(
                    f"feedback = true needs a network whose samples stand alone; it has a {type(module).__name__}"
                )
        self.kinds: dict[str, JacobianAverage] = {}
        for label, shadow in shadows.items():
            try:
                kind = shadow.jacobian_average()
            except Unsupported as error:
                raise Unsupported(f"feedback = true cannot follow {label}: {error}") from error
            if kind is not None:
                self.kinds[label] = kind
        if not self.kinds:
            raise Unsupported("feedback = true needs a probed estimator whose feedback averages output Jacobians, such as fdfa")
        self.shadows = {label: shadows[label] for label in self.kinds}
        # Averages of exact Jacobians, of the reference set and of the batches, per shadow: {label: [per block (2, O, units)]}.
        self.averages: dict[str, list[Tensor]] = {}
        self.weights = dict.fromkeys(self.shadows, 0.0)  # Σ_s w_s
        self.steps = 0
        self.rows = Rows()
        self._seen: dict[str, tuple[int, list[Tensor]]] = {}  # the reference set's mean Jacobian: {site: (step, it)}

    def follow(self, x: Tensor) -> None:
        """Move the exact averages on, at the weights as they are before this step's update."""
        now = {}
        for site in {kind.site for kind in self.kinds.values()}:
            pairs = zip(self._jacobian(site), mean_jacobian(self.net, x, site), strict=True)
            now[site] = [torch.stack(pair) for pair in pairs]
        self.steps += 1
        for label, kind in self.kinds.items():
            rate, new = kind.weight(self.steps), now[kind.site]
            old = self.averages.get(label) or [torch.zeros_like(pair) for pair in new]
            self.averages[label] = [torch.lerp(*pair, rate) for pair in zip(old, new, strict=True)]
            self.weights[label] += rate * (1 - self.weights[label])

    def observe(self, step: int, epoch: float) -> None:
        """Add a row for each shadow and hidden block, at the weights as they are."""
        gradient = true_gradient(self.net, self.x, self.y, self.loss)
        for label, shadow in self.shadows.items():
            site = self.kinds[label].site
            jacobians = self._jacobian(site)
            exact = self.averages.get(label) or [torch.zeros_like(j).expand(2, *j.shape) for j in jacobians]
            trace = Trace(self.net, self.x, site=site)
            with torch.no_grad():
                _, error = self.loss.error(trace.output, self.y)
            for block, (jacobian, averages, feedback) in enumerate(zip(jacobians, exact, shadow.feedback, strict=True)):
                held = feedback.flatten(2)  # (R, O, units)
                row = {
                    "step": step,
                    "epoch": epoch,
                    "estimator": label,
                    "method": shadow.name,
                    "options": json.dumps(dict(self.options.get(label, {})), sort_keys=True, default=str),
                    "block": block,
                    "replicates": len(held),
                }
                row |= _feedback_columns(held, jacobian)
                of = _Pull(trace.hidden[block], error, site, gradient)
                row |= _gradient_columns(of, held, jacobian, averages, 1 - self.weights[label])
                self.rows.add([row])

    def state_dict(self) -> dict[str, Any]:
        """Return averages and rows."""
        return {
            "averages": dict(self.averages),
            "weights": dict(self.weights),
            "steps": self.steps,
            "rows": self.rows.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.averages, self.weights = dict(state["averages"]), dict(state["weights"])
        self.steps = state["steps"]
        self.rows.load_state_dict(state["rows"])

    def _jacobian(self, site: str) -> list[Tensor]:
        """Return the reference set's mean Jacobian, computed once a step, or once where the weights are frozen."""
        step, jacobian = self._seen.get(site, (-1, []))
        if step != self.steps and not (self.frozen and jacobian):
            jacobian = mean_jacobian(self.net, self.x, site)
        self._seen[site] = (self.steps, jacobian)
        return jacobian


class _Pull:
    """G: feedback (R, O, units) → gradients of one block's parameters on the reference set, as draws by name."""

    def __init__(self, block, error: Tensor, site: str, gradient: Mapping[str, Tensor]):
        self.block, self.error, self.site, self.shape = block, error, site, block.site(site).shape
        self.gradient = gradient

    def __call__(self, feedback: Tensor) -> dict[str, draws.Gradient]:
        with torch.no_grad():
            signal = (self.error @ feedback).view(len(feedback), *self.shape)
            return self.block.pull(signal, self.site)


def _feedback_columns(held: Tensor, jacobian: Tensor) -> dict[str, float]:
    moments = summarise(scalars_of(held, held.mean(0, keepdim=True), jacobian, jacobian))
    return {
        "jacobian_norm": moments["target_norm"],
        "error2": moments["error_mean"],
        "error2_se": math.sqrt(moments["error_m2"] / (len(held) - 1)),
        **{name: moments[name] for name in ("variance", "variance_se", "bias2", "bias2_se")},
    }


def _gradient_columns(of: _Pull, held: Tensor, jacobian: Tensor, averages: Tensor, forgotten: float) -> dict[str, float]:
    """Return the block's measured gradient bias and the exact squared norms of its parts (see the module)."""
    exact = {name: draws.dense(g) for name, g in of(torch.cat([jacobian[None], averages])).items()}
    parts: dict[str, list[Tensor]] = {name: [] for name in (*PARTS, "expected_bias")}
    measured = None
    for name, g in of(held).items():
        true, (now, followed, sampled) = of.gradient[name], exact[name]
        vectors = (now - true, followed - (1 - forgotten) * now, -forgotten * now, sampled - followed, sampled - true)
        for part, vector in zip(parts, vectors, strict=True):
            parts[part].append(vector)
        scalars = scalars_of(g, draws.mean(g), true, true)
        measured = scalars if measured is None else measured + scalars
    moments = summarise(measured)
    return {
        "gradient_norm": moments["target_norm"],
        "gradient_bias2": moments["bias2"],
        "gradient_bias2_se": moments["bias2_se"],
        **{f"{part}2": sum(float(v.double().square().sum()) for v in vectors) for part, vectors in parts.items()},
    }
