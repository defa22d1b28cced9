"""A finite population of samples seen through one network, streamed in chunks of bounded memory.

The closed forms are averages over the samples of a population of quantities that belong to one sample each: its output error,
the Jacobians of its output, the gradients of its loss at the sites. `Population.chunks` yields these, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from analysis.theory.local_maps import local_map
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.losses import Loss, make_loss
from fdfa_core.networks.blocks import BlockNetwork, require_site
from fdfa_core.networks.decorrelation import Decorrelation

MEMORY = 128 * 2**20  # bytes that one chunk of samples may take


class Chunk:
    """Some samples of a population: one forward pass, taped at the sites.

    Attributes:
        size: number of samples n.
        error: gradient of each sample's own loss with respect to its outputs, (n, O); not divided by any batch size.
        maps: a `LocalMap` per block, readout last, from its site (the readout's is its output) to its parameters.
    """

    def __init__(self, net: BlockNetwork, x: Tensor, y: Tensor | None, loss, site: str, names: dict[nn.Parameter, str]):
        self.size, self.maps, self._sites = len(x), [], []
        self._outputs: list[Tensor] = []  # of the hidden blocks
        with torch.enable_grad():
            for block in net.hidden:  # each module gets a copy: it may work in place, and what is taped must stay
                below = x
                if site == "pre":
                    x = self._tape(block.affine(x.clone()))
                    self.maps.append(local_map(block, below.detach(), site, names))
                    x = block.activation(x.clone())
                    self._outputs.append(x)
                else:
                    x = self._tape(block(x.clone()))
                    self.maps.append(local_map(block, below.detach(), site, names))
            self.maps.append(local_map(net.readout, x.detach(), "post", names))
            self._output = net.readout(x.clone())
        self.output = self._output.detach()
        if self.output.dim() != 2:
            raise Unsupported(f"the readout returns shape {tuple(self.output.shape)}; the theory needs outputs (N, O)")
        self._targets = y
        if y is not None:
            self.error = _sample_errors(loss, self.output, y)
            if not self.error.isfinite().all():
                raise InvalidInput(
                    "x, y", "a non-finite loss gradient", "samples with finite outputs and losses", "Has the network diverged?"
                )

    @property
    def site_shapes(self) -> list[torch.Size]:
        """Shape of one sample at the site of every hidden block."""
        return [value.shape[1:] for value in self._sites]

    def _tape(self, value: Tensor) -> Tensor:
        value = value if value.requires_grad else value.detach().requires_grad_()
        self._sites.append(value)
        return value

    def pull(self, cotangent: Tensor) -> list[Tensor]:
        """Return what a cotangent (n, O) at the output becomes at the site of every hidden block, (n, units) each."""
        gradients = torch.autograd.grad(self._output, self._sites, cotangent, retain_graph=True)
        return [g.flatten(1) for g in gradients]

    def signals(self) -> list[Tensor]:
        """Return the gradient of each sample's loss at every hidden site, (n, units), and at the output, (n, O)."""
        return [*self.pull(self.error), self.error]

    def active(self) -> list[Tensor]:
        """Return which units at every hidden pre site move their own block's output, (n, units) of 1 and 0."""
        moving = []
        for value, output in zip(self._sites, self._outputs, strict=True):
            rows = [torch.autograd.grad(part.sum(), value, retain_graph=True)[0] for part in output.flatten(1).unbind(1)]
            moving.append(sum(row.abs() for row in rows).flatten(1).ne(0).to(value.dtype))
        return moving

    @property
    def one_hot(self) -> Tensor:
        """Targets (n, O), one-hot for classes."""
        y = self._targets
        return y if y.is_floating_point() else F.one_hot(y.long(), self.output.shape[1]).to(self.output.dtype)

    def jacobians(self) -> list[Tensor]:
        """Return ∂output/∂site of every hidden block, (n, O, units) each."""
        basis = torch.eye(self.output.shape[1], dtype=self.output.dtype, device=self.output.device)
        rows = [self.pull(unit.expand_as(self.output)) for unit in basis]
        return [torch.stack(block, 1) for block in zip(*rows, strict=True)]


class Population:
    """A network and the samples that batches are drawn from, with replacement.

    The network is copied to float64 and not changed.

    Args:
        net: the network, in evaluation mode if it holds batch normalisation or dropout.
        x: samples (M, …).
        y: targets (M, …), or None where the loss is not needed.
        loss: name or callable, as for `make_estimator`.
        site: where perturbations and feedback enter.

    Raises:
        Unsupported: samples are coupled (batch normalisation in training mode), outputs are random (dropout), a parameter
            is shared between blocks, or a hidden block lacks the site.
        InvalidInput: no samples, x and y of different length, or values that are not finite.
    """

    def __init__(self, net: BlockNetwork, x: Tensor, y: Tensor | None, loss: str | Callable = "cross_entropy", site="post"):
        if len(x) == 0 or (y is not None and len(x) != len(y)):
            raise InvalidInput("x, y", (len(x), None if y is None else len(y)), "equally many samples, at least one")
        if not x.isfinite().all():
            raise InvalidInput("x", "NaN or infinite values", "finite samples")
        for i in range(len(net) - 1):
            require_site(net, i, site)
        self.net = copy.deepcopy(net).double().requires_grad_(False)
        for module in self.net.modules():
            if isinstance(module, Decorrelation):
                module.eval()  # its matrix as it stands: it must not learn from what is asked here
        self.device = next((p.device for p in self.net.parameters()), x.device)
        self.x, self.y, self.loss, self.site = x, y, make_loss(loss), site
        self.shapes = {name: p.shape for name, p in self.net.named_parameters()}
        self.names = {p: name for name, p in self.net.named_parameters()}
        _refuse_shared(self.net)
        _refuse_coupled(self.net, self._double(x[:2]))
        first = self.probe()
        self.site_shapes, self.outputs = first.site_shapes, first.output.shape[1]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def hidden(self) -> int:
        """Number of hidden blocks."""
        return len(self.site_shapes)

    @property
    def units(self) -> list[int]:
        """Number of units at the site of every hidden block."""
        return [shape.numel() for shape in self.site_shapes]

    def chunks(self, jacobians: bool = False) -> Iterator[Chunk]:
        """Yield the population in chunks.

        Args:
            jacobians: leave room for numbers of every sample, unit and output.

        Raises:
            InvalidInput: a sample's loss gradient is not finite.
        """
        per_sample = 8 * (sum(self.units) * (4 + 3 * self.outputs * jacobians) + self.outputs**2) + 16 * self.x[0].numel()
        size = max(1, min(len(self), MEMORY // per_sample))
        for start in range(0, len(self), size):
            y = None if self.y is None else self._double(self.y[start : start + size])
            yield Chunk(self.net, self._double(self.x[start : start + size]), y, self.loss, self.site, self.names)

    def each(self) -> Iterator[Population]:
        """Yield the samples as populations of one."""
        for i in range(len(self)):
            yield Population(self.net, self.x[i : i + 1], self.y[i : i + 1], self.loss, self.site)

    def zeros(self) -> dict[str, Tensor]:
        """Return a zero for every parameter, float64."""
        return {name: torch.zeros_like(p) for name, p in self.net.named_parameters()}

    def probe(self) -> Chunk:
        """Return the first sample as a chunk without targets, to look at shapes and at the kind of every block's map."""
        return Chunk(self.net, self._double(self.x[:1]), None, self.loss, self.site, self.names)

    def mean(self, terms: Callable[[Chunk], list[dict[str, Tensor]]], jacobians: bool = False) -> list[dict[str, Tensor]]:
        """Return averages over the population of sums that `terms` forms over a chunk, each by parameter name.

        Args:
            terms: maps a chunk to a list of {parameter: sum over the chunk's samples}; a parameter left out counts as zero.
            jacobians: as in `chunks`.
        """
        totals: list[dict[str, Tensor]] = []
        for chunk in self.chunks(jacobians):
            sums = terms(chunk)
            totals = totals or [self.zeros() for _ in sums]
            for total, term in zip(totals, sums, strict=True):
                for name, value in term.items():
                    total[name] += value / len(self)
        return totals

    def _double(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        return x.double() if x.is_floating_point() else x


def _sample_errors(loss: Loss, output: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's loss by differentiating the loss itself: the estimators' formula for it is not trusted here."""
    with torch.enable_grad():
        leaf = output.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, y) * len(y), leaf)[0]


def gather(blocks: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Merge the blocks' {parameter: value} into one."""
    return {name: value for block in blocks for name, value in block.items()}


def _refuse_shared(net: BlockNetwork) -> None:
    owner: dict[nn.Parameter, int] = {}
    for i, block in enumerate(net):
        for name, p in block.named_parameters():
            if owner.setdefault(p, i) != i:
                raise Unsupported(f"parameter {i}.{name} is shared with block {owner[p]}; the theory treats blocks apart")


def _refuse_coupled(net: BlockNetwork, x: Tensor) -> None:
    """Raise unless each sample's output is a fixed function of only that sample."""
    advice = "predict with net.eval(), where every sample stands alone, or measure the training-mode network instead"
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise Unsupported(
                f"{name} ({type(module).__name__}) normalises with the batch's statistics, which couples samples; no exact "
                f"form exists there: {advice}"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise Unsupported(f"{name} ({type(module).__name__}) is random in training mode: {advice}")
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(x[i : i + 1]) for i in range(len(x))])
    if not torch.allclose(together, alone, rtol=1e-8, atol=1e-10, equal_nan=True):
        raise Unsupported(f"the network's output for a sample depends on the other samples or is random: {advice}")
