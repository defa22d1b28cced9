"""Slow twins of the estimators: each written from its definition with full Jacobians of the plainly called network.

They share nothing with the estimators but the perturbations, which a `Recorder` notes down. The loss is cross-entropy.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev

from fdfa_core.linearisation.functional import functional_call
from fdfa_core.networks.blocks import Block, BlockNetwork

Gradients = dict[str, Tensor]


class Recorder:
    """A perturbation law that keeps every draw."""

    def __init__(self, law):
        self.law, self.name, self.kurtosis = law, law.name, law.kurtosis
        self.drawn: list[Tensor] = []

    def sample(self, shape, *, generator, dtype):
        self.drawn.append(self.law.sample(shape, generator=generator, dtype=dtype))
        return self.drawn[-1].clone()

    def take(self) -> list[Tensor]:
        """The draws since the last call."""
        drawn, self.drawn = self.drawn, []
        return drawn


class Slow:
    """A network at a batch, with every Jacobian written out."""

    def __init__(self, net: BlockNetwork, x: Tensor, y: Tensor):
        self.net, self.x, self.y = without_running_statistics(net), x, y
        self.names = [name for name, _ in net.named_parameters()]
        self.parameters = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.values = []  # per block: input, and value at each site
        with torch.no_grad():
            for block in self.net:
                sites = {"pre": block.affine(x)} if isinstance(block, Block) else {}
                sites["input"], sites["post"] = x, block(x)
                self.values.append(sites)
                x = sites["post"]
        self.output = x
        self.hidden = range(len(self.net) - 1)

    def losses(self, outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, self.y, reduction="none")

    @property
    def error(self) -> Tensor:
        """∂(mean loss)/∂outputs, (N, O)."""
        return jacrev(lambda outputs: self.losses(outputs).mean())(self.output)

    def run(self, parameters: Gradients) -> Tensor:
        return functional_call(self.net, parameters, (self.x,))

    def gradient(self) -> Gradients:
        """∇ of the mean loss."""
        return jacrev(lambda p: self.losses(self.run(p)).mean())(self.parameters)

    def per_sample_gradients(self) -> Tensor:
        """∇ℓ_p, (N, P)."""
        found = jacrev(lambda p: self.losses(self.run(p)))(self.parameters)
        return torch.cat([found[name].flatten(1) for name in self.names], 1)

    def tail(self, block: int, site: str, value: Tensor) -> Tensor:
        """Outputs as a function of a site's value (N, n)."""
        value = value.reshape(self.values[block][site].shape)
        if site == "pre":
            value = self.net[block].activation(value)
        for module in list(self.net)[block + 1 :]:
            value = module(value)
        return value

    def site(self, block: int, site: str) -> Tensor:
        """Value (N, n)."""
        return self.values[block][site].flatten(1)

    def jacobian(self, block: int, site: str) -> Tensor:
        """∂y_p/∂(site of sample q), (N, O, N, n)."""
        return jacrev(lambda value: self.tail(block, site, value))(self.site(block, site))

    def loss_jacobian(self, block: int, site: str) -> Tensor:
        """∂ℓ_p/∂(site of sample q), (N, N, n)."""
        return jacrev(lambda value: self.losses(self.tail(block, site, value)))(self.site(block, site))

    def own(self, block: int, site: str = "post") -> Gradients:
        """The parameters of what leads from a block's input to its site, by name within the network."""
        prefix = f"{block}.affine." if site == "pre" else f"{block}."
        return {name: p for name, p in self.parameters.items() if name.startswith(prefix)}

    def block_value(self, block: int, site: str, parameters: Gradients) -> Tensor:
        """A site's value (N, n) as a function of the block's parameters, at a fixed input."""
        module, depth = (self.net[block].affine, 2) if site == "pre" else (self.net[block], 1)
        local = {name.split(".", depth)[depth]: p for name, p in parameters.items()}
        return functional_call(module, local, (self.values[block]["input"],)).flatten(1)

    def pull(self, block: int, site: str, signal: Tensor) -> Gradients:
        """Gradients of a block's parameters: its local Jacobian, contracted with a signal (N, n) at the site."""
        parameters = self.own(block, site)
        jacobians = jacrev(lambda p: self.block_value(block, site, p))(parameters) if parameters else {}
        zeros = {name: torch.zeros_like(p) for name, p in self.own(block).items()}
        return zeros | {name: torch.tensordot(signal, jacobian, dims=2) for name, jacobian in jacobians.items()}

    def readout(self) -> Gradients:
        """The readout's gradient."""
        return self.pull(len(self.net) - 1, "post", self.error)

    def split(self, vector: Tensor, names: list[str] | None = None) -> Gradients:
        """Cut a vector over parameters into the parameters."""
        shapes = [self.parameters[name].shape for name in names or self.names]
        parts = vector.split([math.prod(shape) for shape in shapes])
        return {name: part.view(shape) for name, shape, part in zip(names or self.names, shapes, parts, strict=True)}


def without_running_statistics(net: BlockNetwork) -> BlockNetwork:
    """A copy whose batch normalisation in training mode, which does not read running statistics, does not write them either."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return net


def flat(gradients: Gradients) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def combined(gradient: Tensor, directions: Tensor, how: str) -> Tensor:
    """What K directions (K, d) tell of a gradient (d,)."""
    if how == "mean":
        return sum((gradient @ v) * v for v in directions) / len(directions)
    return torch.linalg.pinv(directions) @ (directions @ gradient)


# Forward gradients ----------------------------------------------------------------------------------------------------


def fg_w(slow: Slow, v: Tensor, how: str = "mean") -> Gradients:
    """v (K, P)."""
    return slow.split(combined(flat(slow.gradient()), v, how))


def zo(slow: Slow, v: Tensor, epsilon: float, clip: float = math.inf) -> Gradients:
    """v (K, P)."""
    found = 0.0
    for direction in v:
        moved = [{n: p + step * d for (n, p), d in zip(slow.parameters.items(), slow.split(direction).values(), strict=True)}
                 for step in (epsilon, -epsilon)]  # fmt: skip
        above, below = (slow.losses(slow.run(parameters)).mean() for parameters in moved)
        found = found + ((above - below) / (2 * epsilon)).clamp(-clip, clip) * direction / len(v)
    return slow.split(found)


def fg_w_per_sample(slow: Slow, v: Tensor, how: str = "mean") -> Gradients:
    """v (N, K, P)."""
    each = [combined(g, along, how) for g, along in zip(slow.per_sample_gradients(), v, strict=True)]
    return slow.split(sum(each) / len(each))


def fg_a(slow: Slow, us: list[Tensor], *, site="pre", readout="exact", joint=True, combine="mean", slope="sample") -> Gradients:
    """us: a tensor (K, N, n of all sites) if joint, or one per site."""
    blocks = [*slow.hidden] + ([len(slow.hidden)] if readout == "perturbed" else [])
    site_of = {block: site if block in slow.hidden else "post" for block in blocks}
    found: Gradients = {}
    for group, u in zip([blocks] if joint else [[block] for block in blocks], us, strict=True):
        jacobians = [slow.loss_jacobian(block, site_of[block]) for block in group]
        error = estimated_error(torch.cat(jacobians, -1), u, combine, slope)
        sizes = [jacobian.shape[-1] for jacobian in jacobians]
        for block, signal in zip(group, error.split(sizes, dim=-1), strict=True):
            found |= slow.pull(block, site_of[block], signal)
    return found | ({} if readout == "perturbed" else slow.readout())


def active(slow: Slow, block: int) -> Tensor:
    """Which units at a pre site move any output of their block, in any sample: (N, n) of 1 and 0."""
    jacobian = jacrev(slow.net[block].activation)(slow.values[block]["pre"])
    value = slow.values[block]["pre"]
    return jacobian.reshape(-1, *value.shape).ne(0).any(0).to(value.dtype).flatten(1)


def estimated_error(loss_jacobian: Tensor, u: Tensor, combine: str, slope: str) -> Tensor:
    """The errors (N, n) that perturbations u (K, N, n) tell, given ∂ℓ_p/∂(site of q) (N, N, n)."""
    tangents, samples, units = u.shape
    slopes = torch.einsum("pqn,kqn->kp", loss_jacobian, u) / samples
    if slope == "batch":
        whole = u.reshape(tangents, samples * units)
        if combine == "mean":
            return ((slopes.sum(1)[:, None] * whole).sum(0) / tangents).view(samples, units)
        return (torch.linalg.pinv(whole) @ slopes.sum(1)).view(samples, units)
    if combine == "mean":
        return torch.stack([(slopes[:, p, None] * u[:, p]).mean(0) for p in range(samples)])
    return torch.stack([torch.linalg.pinv(u[:, p]) @ slopes[:, p] for p in range(samples)])


# Feedback -------------------------------------------------------------------------------------------------------------


def direct(slow: Slow, feedback: list[Tensor], teaching: Tensor | None = None, site: str = "post") -> Gradients:
    """The error of block l is teaching (N, O) times feedback[l]."""
    teaching = slow.error if teaching is None else teaching
    found: Gradients = {}
    for block in slow.hidden:
        found |= slow.pull(block, site, teaching @ feedback[block].flatten(1))
    return found | slow.readout()


def one_hot(slow: Slow) -> Tensor:
    """DRTP's teaching signal."""
    return torch.stack([torch.eye(slow.output.shape[1], dtype=slow.output.dtype)[label] for label in slow.y]) / len(slow.y)


def jacobian_estimates(slow: Slow, us: list[Tensor], groups: list[list[int]], site: str) -> dict[int, Tensor]:
    """D_l (O, n_l) of every perturbed block, from perturbations (K N, n of the group) of each group."""
    found = {}
    samples = len(slow.output)
    for group, u in zip(groups, us, strict=True):
        tangents = u.view(-1, samples, u.shape[-1])
        jacobian = torch.cat([slow.jacobian(block, site) for block in group], -1)
        d = torch.einsum("poqn,kqn->kpo", jacobian, tangents)
        sizes = [slow.site(block, site).shape[1] for block in group]
        for block, part in zip(group, tangents.split(sizes, dim=-1), strict=True):
            outer = [torch.outer(d[k, p], part[k, p]) for k in range(len(d)) for p in range(samples)]
            found[block] = sum(outer) / len(outer)
    return found


def grape_refinement(feedback: Tensor, estimate: Tensor, rate: float, cosine: str, normalise: bool) -> Tensor:
    """B (O, n) after one step on 1 − c̄ towards an estimate of the Jacobian, by automatic differentiation, column by column."""
    moved = feedback.clone().requires_grad_()
    if cosine == "columns":
        cosines = [F.cosine_similarity(moved[:, k], estimate[:, k], dim=0) for k in range(moved.shape[1])]
    else:
        cosines = [F.cosine_similarity(moved.flatten(), estimate.flatten(), dim=0)]
    (gradient,) = torch.autograd.grad(1 - sum(cosines) / len(cosines), moved)
    moved = (moved - rate * gradient).detach()
    return torch.stack([column / column.norm() for column in moved.T], 1) if normalise else moved


def fa(slow: Slow, feedback: Gradients) -> Gradients:
    """Backpropagation through the whole network, with random layers on the way down (never below the first block)."""
    net = copy.deepcopy(slow.net)
    parameters = list(net.parameters())
    for i in range(1, len(net)):
        if f"{i}" in feedback:
            net[i] = RandomBlock(net[i], feedback[f"{i}"])
        elif f"{i}.weight" in feedback:
            net[i] = RandomLayer(net[i], feedback[f"{i}.weight"])
        else:
            for name, module in list(net[i].named_modules(remove_duplicate=False)):
                weight = feedback.get(f"{i}.{first_name(slow.net[i], name)}.weight")
                if weight is not None:
                    parent = net[i].get_submodule(name.rpartition(".")[0])
                    setattr(parent, name.rpartition(".")[2], RandomLayer(module, weight))
    loss = slow.losses(net(slow.x)).mean()
    return dict(zip(slow.names, torch.autograd.grad(loss, parameters), strict=True))


def first_name(module: nn.Module, name: str) -> str:
    """The first name of a submodule that may have several."""
    target = module.get_submodule(name)
    return next(n for n, m in module.named_modules() if m is target)


class RandomLayer(nn.Module):
    """An affine layer whose input gradient is the dense matrix of another one's."""

    def __init__(self, layer: nn.Module, weight: Tensor):
        super().__init__()
        self.layer, self.random = layer, copy.deepcopy(layer)
        self.random.weight.data = weight
        self.random.bias = None

    def forward(self, x: Tensor) -> Tensor:
        matrix = jacrev(self.random)(torch.zeros_like(x)).flatten(x.dim()).flatten(0, x.dim() - 1)
        output = self.layer(x.detach())
        return output + Ghost.apply(x, matrix.detach(), output.shape)


class RandomBlock(nn.Module):
    """A block whose input gradient is a dense random matrix (n_out, n_in), the same for each sample."""

    def __init__(self, block: nn.Module, weight: Tensor):
        super().__init__()
        self.block, self.weight = block, weight

    def forward(self, x: Tensor) -> Tensor:
        output = self.block(x.detach())
        matrix = torch.kron(torch.eye(len(x), dtype=x.dtype), self.weight)
        return output + Ghost.apply(x, matrix, output.shape)


class Ghost(torch.autograd.Function):
    """Zero, with the Jacobian `matrix` (outputs × inputs, flattened)."""

    @staticmethod
    def forward(ctx, x, matrix, shape):
        ctx.matrix, ctx.shape = matrix, x.shape
        return torch.zeros(shape, dtype=x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return (gradient.flatten() @ ctx.matrix).view(ctx.shape), None, None


def pepita(slow: Slow, projection: Tensor) -> Gradients:
    """Two passes; projection (O, *input shape)."""
    samples = len(slow.x)
    moved = torch.stack([
        x + sum(samples * e_o * f for e_o, f in zip(e, projection, strict=True))
        for x, e in zip(slow.x, slow.error, strict=True)
    ])  # fmt: skip
    second = Slow(slow.net, moved, slow.y)
    found: Gradients = {}
    for block in slow.hidden:
        change = (slow.site(block, "post") - second.site(block, "post")) / samples
        values = second.values[block]
        site = "pre" if "pre" in values and values["pre"].shape == values["post"].shape else "post"
        found |= second.pull(block, site, change)
    return found | second.readout()


# Local greedy ---------------------------------------------------------------------------------------------------------


def local_losses(slow: Slow, block: int, output: Tensor, readouts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The local losses (N,) of a hidden block's output (N, n)."""
    if block == len(slow.hidden) - 1:
        return slow.losses(slow.tail(block, "post", output))
    weight, bias = readouts[block]
    return slow.losses(output @ weight.T + bias)


def lg_fg_w(slow: Slow, vs: list[Tensor], readouts, how: str = "mean") -> Gradients:
    """vs: (K, P_l) for each hidden block with parameters."""
    found: Gradients = {}
    vs = iter(vs)
    for block in slow.hidden:
        own = slow.own(block)
        if own:
            local = jacrev(lambda p, b=block: local_losses(slow, b, slow.block_value(b, "post", p), readouts).mean())(own)
            found |= slow.split(combined(flat(local), next(vs), how), list(own))
    return found | slow.readout()


def lg_fg_a(slow: Slow, us: list[Tensor], readouts, site: str = "pre", how: str = "mean") -> Gradients:
    """us: (K, N, n_l) for each hidden block."""
    found: Gradients = {}
    for block, u in zip(slow.hidden, us, strict=True):
        activation = slow.net[block].activation if site == "pre" else nn.Identity()
        shape = slow.values[block][site].shape

        def losses(value, b=block, act=activation, shape=shape):
            return local_losses(slow, b, act(value.view(shape)).flatten(1), readouts)

        error = estimated_error(jacrev(losses)(slow.site(block, site)), u, how, "sample")
        found |= slow.pull(block, site, error)
    return found | slow.readout()


def lg_readout_gradients(slow: Slow, readouts) -> list[tuple[Tensor, Tensor]]:
    """∂L_l/∂(weight, bias) of every local readout."""
    return [
        jacrev(lambda pair, b=block: local_losses(slow, b, slow.site(b, "post"), {b: pair}).mean())(pair)
        for block, pair in enumerate(readouts)
    ]
