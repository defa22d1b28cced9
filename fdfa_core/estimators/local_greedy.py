"""Local greedy forward gradients: every hidden block minimises a loss of its own, read off its output."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fdfa_core.estimators.activity_perturbation import exact_readout, require_maskable
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.options import (
    Combination,
    Count,
    Mask,
    Optimizer,
    Perturbation,
    Positive,
    Site,
    make_optimizer,
    require_range,
)
from fdfa_core.estimators.registry import register
from fdfa_core.estimators.tangents import Tangents
from fdfa_core.linearisation.trace import BlockMap, Gradients, Trace, merge
from fdfa_core.networks.blocks import require_site
from fdfa_core.networks.served import coupled
from fdfa_core.random_state import preserve_random_stream


class LocalGreedy(Estimator):
    """Base of the methods in which block l follows the loss of a linear readout of its own output (Ren et al. 2022).

    Hidden block l minimises L_l = loss(r_l(h_l)), with r_l a linear layer on the flattened output; no signal passes between
    blocks, and a tangent sees only its block and that block's readout. The readout of the last hidden block is the network's
    own. The others are a state of the estimator: each follows the true gradient of its own local loss, eᵀ h_l (which needs no
    tangent and crosses no block), by an optimiser of its own, after use. They start as `nn.Linear` does. The source's readouts
    pool or group channels first; these do not.

    Expectation: the gradient of the sum of local losses with each block's input held fixed, which is *not* that of the
    network's loss, save in the last hidden block and the readout.

    Args:
        perturbation: law of the directions.
        tangents: K.
        combine: "mean" or "projection" (see `Tangents`).
        readout_optimizer: "adam" or "sgd", of the local readouts.
        readout_lr: its learning rate.
    """

    stateful = True

    def __init__(
        self,
        net,
        *,
        perturbation: Perturbation = "gaussian",
        tangents: Count = 1,
        combine: Combination = "mean",
        readout_optimizer: Optimizer = "adam",
        readout_lr: Positive = 1e-3,
        **common,
    ):
        super().__init__(net, **common)
        self.tangents = Tangents(perturbation, tangents, combine)
        self.readout_optimizer, self.readout_lr = readout_optimizer, float(readout_lr)
        if readout_optimizer == "adam":
            require_range(self.name, self.dtype)
        self._readouts: list[tuple[Tensor, Tensor]] | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def readouts(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (O, n_l) and bias (O,) of every hidden block's readout but the last; with replicas a leading R."""
        if self._readouts is None:
            self._make_readouts(self.net.site_shapes()[:-1], math.prod(self.net.output_shape()))
        return self._readouts

    def _make_readouts(self, shapes: list[tuple[int, ...]], outputs: int) -> None:
        lead = () if self.replicas is None else (self.replicas,)
        self._readouts = []
        for shape in shapes:
            units = math.prod(shape)
            both = torch.empty(*lead, outputs, units + 1, dtype=self.dtype, device=self.device)
            both.uniform_(-(units**-0.5), units**-0.5, generator=self.generator)
            self._readouts.append((both[..., :-1].clone(), both[..., -1].clone()))

    def trace(self, x: Tensor, **options: bool) -> Trace:
        """Run the network forward; the first batch gives the readouts their shapes if they are unknown."""
        trace = super().trace(x, **options)
        if self._readouts is None:
            shapes = [tuple(block.output.shape[1:]) for block in trace.hidden[:-1]]
            self._make_readouts(shapes, trace.output.shape[-1])
        return trace

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return every hidden block's forward gradient of its own loss, and the readout's true gradient."""
        gradients: Gradients = {}
        for i, block in enumerate(trace.hidden):
            if not block.frozen:
                merge(gradients, self.block_gradients(trace, i, block, error, targets, lead))
        merge(gradients, exact_readout(trace, error, lead))
        return gradients

    @abstractmethod
    def block_gradients(
        self, trace: Trace, i: int, block: BlockMap, error: Tensor, targets: Tensor, lead: tuple[int, ...]
    ) -> Gradients:
        """Return the gradients of hidden block i."""

    def slopes(self, trace: Trace, i: int, tangent: Tensor, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Tensor:
        """Return each sample's slope of block i's loss (*lead, K, N) along tangents of its output (folded, N, …)."""
        if i == len(trace.hidden) - 1:
            return (trace.readout.push(tangent) * error).sum(-1).view(*lead, self.tangents.count, -1)
        weight = self.held(self.readouts[i][0])
        local = self.local_error(trace, i, targets)
        if self.replicated:
            weight, local = weight.unsqueeze(1), local.unsqueeze(1)  # (R, 1, O, n), (R, 1, N, O)
        tangent = tangent.reshape(*lead, self.tangents.count, len(error), -1)
        return ((tangent @ weight.mT) * local).sum(-1)

    def local_error(self, trace: Trace, i: int, targets: Tensor) -> Tensor:
        """Return ∂L_i/∂(outputs of block i's own readout), (N, O), or (R, N, O) in all replicas."""
        weight, bias = (self.held(tensor) for tensor in self.readouts[i])
        outputs = trace.hidden[i].output.flatten(1) @ weight.mT + bias.unsqueeze(-2)
        if outputs.dim() == 2:
            return self.loss.error(outputs, targets)[1]
        replicas = len(outputs)
        error = self.loss.error(outputs.flatten(0, 1), targets.repeat(replicas, *[1] * (targets.dim() - 1)))[1]
        return error.view_as(outputs) * replicas  # a mean over the batch of each replica, not of all

    def own_gradients(self, x: Tensor, y: Tensor, *, replica: int | None = None) -> Gradients:
        """Return the gradient of the sum of local losses, each block's input held fixed, in the readouts of one replica.

        Where there are replicas and none is named, what depends on the readouts comes for all of them, and may be factored.
        """
        x, y, _ = self.admit(x, y)
        with torch.no_grad(), preserve_random_stream(self.device, self.net), self._using(replica):
            trace = Trace(self.net, x, shortcuts=True)  # which keep what the readout hands back
            self.loss.shape = trace.shape
            error = self.loss.error(trace.output, y)[1]
            if self._readouts is None:
                self._make_readouts([tuple(block.output.shape[1:]) for block in trace.hidden[:-1]], trace.output.shape[-1])
            gradients = dict(exact_readout(trace, error, ()))
            for i, block in enumerate(trace.hidden):
                if block.frozen:
                    continue
                if i == len(trace.hidden) - 1:
                    signal, lead = trace.readout.back(error), ()
                else:
                    local = self.local_error(trace, i, y)
                    signal, lead = local @ self.held(self.readouts[i][0]), local.shape[:-2]
                merge(gradients, block.pull(signal.reshape(*lead, *block.output.shape), "post"))
            return self._ordered(gradients)

    @property
    def expectation(self) -> str | Callable[[Tensor, Tensor], dict[str, Tensor]]:
        """The gradient of the local losses, where directions are not projected on."""
        return self.own_gradients if self.tangents.how == "mean" else "biased"

    def update(self, trace: Trace, error: Tensor, targets: Tensor, gradients: Gradients | None = None) -> None:
        """Let every local readout take a step down its own loss."""
        if not self.readouts:
            return
        self._optimizer = self._optimizer or self._make_optimizer()
        for i, (weight, bias) in enumerate(self.readouts):
            local = self.local_error(trace, i, targets)
            weight.grad, bias.grad = local.mT @ trace.hidden[i].output.flatten(1), local.sum(-2)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.readout_optimizer, [t for pair in self.readouts for t in pair], self.readout_lr)

    def own_state(self):
        """Return the local readouts and their optimiser's state."""
        readouts = None if self._readouts is None else [[t.clone() for t in pair] for pair in self._readouts]
        optimizer = None if self._optimizer is None else copy.deepcopy(self._optimizer.state_dict())
        return {"readouts": readouts, "optimizer": optimizer}

    def load_own_state(self, state: Mapping[str, object]):
        """Restore the local readouts and their optimiser's state."""
        readouts, self._optimizer = state["readouts"], None
        self._readouts = None if readouts is None else [(weight.clone(), bias.clone()) for weight, bias in readouts]
        if state["optimizer"] is not None:
            self._optimizer = self._make_optimizer()
            self._optimizer.load_state_dict(state["optimizer"])


@register("lg-fg-a")
class LocalGreedyActivityPerturbation(LocalGreedy):
    r"""LG-FG-A: in each hidden block the error s u, s = the slope of a sample's local loss along u (Ren et al. 2022).

    Each block is perturbed by itself, per sample, and a tangent goes no further than its local readout: no cross-talk from
    other blocks and no depth in the variance, which grows with the block's units. `LocalGreedy` describes the local losses.
    Unbiased for the local losses (not so under batch normalisation in training mode at `site="pre"`, as FG-A). Cost: one
    forward pass, K short tangents per block, local gradients, readouts of O n_l weights.

    Args:
        perturbation: law of u, a name or an object.
        site: "pre" perturbs the affine output, "post" the block output.
        tangents: K, directions per sample.
        combine: "mean", or "projection" of a sample's error on the span of its K directions.
        mask: "active" perturbs only units whose value moves their block's output (at site="pre"), see `fg-a`.
        readout_optimizer: "adam" or "sgd", of the local readouts.
        readout_lr: its learning rate.
    """

    def __init__(self, net, *, site: Site = "pre", mask: Mask = "none", **common):
        super().__init__(net, **common)
        require_maskable(mask, site, self.tangents.how)
        self.mask = mask
        for block in range(len(net) - 1):
            require_site(net, block, site)
        self.site = site

    @property
    def expectation(self):
        """The gradient of the local losses, where samples are not coupled."""
        return "biased" if self.site == "pre" and coupled(self.net) else super().expectation

    def block_gradients(self, trace, i, block, error, targets, lead):
        """Return local gradients of the estimated error at the site."""
        value = block.site(self.site)
        self.tangents.check(value[0].numel())
        u = self.tangents.sample(lead, (len(value), value[0].numel()), self.generator, self.dtype)
        if self.mask == "active":
            u *= block.active().flatten(1)
        axes = self.tangents.axes(lead)
        tangent = block.push(None, u.reshape(*axes, *value.shape), self.site)
        slopes = self.slopes(trace, i, tangent, error, targets, lead)
        signal = self.tangents.combine(slopes.mT, u.transpose(-3, -2))
        return block.pull(signal.reshape(*lead, *value.shape), self.site)


@register("lg-fg-w")
class LocalGreedyWeightPerturbation(LocalGreedy):
    r"""LG-FG-W: each hidden block gets (∇L_l · v_l) v_l, with a random direction v_l over its own parameters (Ren et al. 2022).

    Given the batch and the readouts, the total variance in block l is (P_l + κ − 2)‖∇L_l‖²/K for its P_l parameters. Unbiased
    for the local losses, see `LocalGreedy`. Cost: one forward pass, K short tangents per block, Σ K P_l random numbers,
    readouts of O n_l weights.

    Args:
        perturbation: law of v, a name or an object.
        tangents: K, directions per block.
        combine: "mean", or "projection" of ∇L_l on their span.
        readout_optimizer: "adam" or "sgd", of the local readouts.
        readout_lr: its learning rate.
    """

    def __init__(self, net, **common):
        super().__init__(net, **common)
        names = {p: name for name, p in net.named_parameters()}
        self._blocks = [{names[p]: p for p in block.parameters()} for block in net.hidden]
        for parameters in filter(None, self.blocks):
            self.tangents.check(sum(p.numel() for p in parameters.values()))

    def variance(self, x: Tensor, y: Tensor) -> float | None:
        """Return the sum over hidden blocks of (P_l + κ − 2)‖∇L_l‖²/K, of (P_l − 1)‖∇L_l‖²/K on the sphere."""
        own, total = self.own_gradients(x, y), 0.0
        for block in filter(None, self.blocks):
            noise = self.tangents.noise(sum(p.numel() for p in block.values()))
            if noise is None:
                return None
            total += noise * sum(float(own[name].square().sum()) for name in block)
        return total

    @property
    def blocks(self) -> list[dict[str, Tensor]]:
        """The parameters of every hidden block that train, by name."""
        return [{name: p for name, p in block.items() if p.requires_grad} for block in self._blocks]

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return every hidden block's forward gradient of its own loss, and the readout's true gradient."""
        chunk = self.tangents.chunk(max(p.numel() for p in self.net.parameters()))
        if self.tangents.count > 1 and lead and lead[0] > chunk:
            return self.in_chunks(trace, error, targets, lead[0], chunk)
        return super().gradients(trace, error, targets, lead)

    def block_gradients(self, trace, i, block, error, targets, lead):
        """Return the combination of slopes and directions."""
        trained = self.blocks[i]
        if not trained:
            return {}
        v = self.tangents.sample_parameters(lead, [p.shape for p in trained.values()], self.generator, self.dtype)
        axes = self.tangents.axes(lead)
        directions = self._split(trained, v.reshape(*axes, -1))
        still = {name: torch.zeros_like(p) for name, p in self._blocks[i].items() if name not in trained}
        tangent = block.push(None, parameters=directions | repeat(still, axes))
        slopes = self.slopes(trace, i, tangent, error, targets, lead).sum(-1)
        return self._split(trained, self.tangents.combine(slopes, v))

    def _split(self, trained: Mapping[str, Tensor], v: Tensor) -> dict[str, Tensor]:
        """Cut vectors (…, P_l) into the parameters of a block that train."""
        parts = v.split([p.numel() for p in trained.values()], dim=-1)
        return {name: part.reshape(part.shape[:-1] + p.shape) for (name, p), part in zip(trained.items(), parts, strict=True)}
