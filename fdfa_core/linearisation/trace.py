"""Local linearisations: one block at one input, its tangent map and its local vector–Jacobian product.

A `Trace` is one forward pass, block by block. Each block's output is detached before the next block sees it, so no
reverse-mode graph crosses a block boundary. What a method may do inside a block is offered by `BlockMap`:

- `push` carries a tangent (a direction at the block's input, at its parameters, or injected at a site) to the block's output;
- `pull` turns a signal at a site into gradients of the block's own parameters.

Tangents and signals have the shape (N, …) of the primal value, or (R, N, …) for R directions at once.

Layer types are distinguished in one place: a rule (`fdfa_core/linearisation/rules/`) holds a layer's hand-derived products on
the saved primal value. Any other module goes through torch's forward-mode and, inside the block, reverse-mode AD
(`fdfa_core/linearisation/general.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fdfa_core.errors import Unsupported
from fdfa_core.linearisation import general, rules  # noqa: F401 (they register themselves)
from fdfa_core.linearisation.functional import Members
from fdfa_core.linearisation.maps import Context, Gradients, Map, added, hooked, lead_of, linearize, merge
from fdfa_core.networks.blocks import Block, BlockNetwork, require_site


class BlockMap:
    """One block linearised at one input, with its sites.

    Attributes:
        output: value at the post site (N, …).
        shapes: of the values at both sites; where a block has no pre site it is the output's.
    """

    def __init__(self, block: nn.Module, x: Tensor, context: Context, site: str = "post"):
        self.block, self.partial = block, context.partial
        self.above: Map | None = None
        if isinstance(block, Block) and type(block).forward is Block.forward and not hooked(block):
            self.below = linearize(block.affine, x, context)
            with context.above(self.below.parametric):
                self.above = linearize(block.activation, self.below.output, context)
        elif site == "pre":
            raise Unsupported(f'{context.where} has no "pre" site: a hook or a forward of its own joins its two parts')
        else:
            self.below = linearize(block, x, context)
        self.output = (self.above or self.below).output
        self.shapes = {"pre": self.below.output.shape, "post": self.output.shape}
        self._values = {"post": self.output} | ({"pre": self.below.output} if site == "pre" else {})
        self.parts = [part for part in (self.below, self.above) if part is not None]
        for part in self.parts:
            del part.output  # lives on only where a product or a site needs it

    @property
    def frozen(self) -> bool:
        """Whether the block has parameters, none of which trains: no signal at its site is of any use."""
        return self.partial and frozen(self.block)

    @property
    def mixes(self) -> bool:
        """Whether a sample's value may depend on other samples."""
        return any(part.mixes for part in self.parts)

    def site(self, site: str) -> Tensor:
        """Value at a site (N, …): "post", or the one that the trace was made for."""
        return self._values[site]

    def push(
        self,
        tangent: Tensor | None,
        inject: Tensor | None = None,
        site: str = "post",
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Tensor | None:
        """Return the tangent at the output, for a tangent at the input, at a site, and at the parameters.

        Args:
            tangent: (N, …) or (R, N, …) at the input, or None for zero.
            inject: a direction of the site's shape, added there.
            site: "pre" or "post".
            parameters: a direction for each parameter name, (*shape) or (R, *shape).
        """
        tangent = self.below.push(tangent, parameters)
        if site == "pre":
            tangent = added(tangent, inject)
        if self.above is not None:
            tangent = self.above.push(tangent, parameters)
        return added(tangent, inject) if site == "post" else tangent

    def pull(self, signal: Tensor, site: str = "post") -> Gradients:
        """Return the gradients of the block's parameters for a signal (N, …) or (R, N, …) at a site."""
        gradients: Gradients = {}
        if self.above is not None and site == "post":
            own, signal = self.above.pull(signal, self.below.parametric)
            merge(gradients, own)
        if self.below.parametric:
            merge(gradients, self.below.pull(signal, False)[0])
        return gradients

    def back(self, signal: Tensor, site: str = "post", to: str = "input") -> Tensor:
        """Carry a signal from a site down to another site or to the block's input, within the block."""
        if site == to:
            return signal
        if site == "post" and self.above is not None:
            signal = self.above.back(signal)
        return signal if to == "pre" else self.below.back(signal)

    def active(self) -> Tensor:
        """Return which units at the pre site move the block's output, (N, …): 1 there, and 0 where every slope is zero.

        A unit without influence hears nothing of any signal from above; one with influence hears of all but a set of measure
        zero. The signal is fixed and takes nothing from any stream of random numbers.
        """
        value = self._values["pre"]
        fixed = torch.Generator(value.device).manual_seed(0)
        signal = torch.randn(self.shapes["post"], generator=fixed, dtype=value.dtype, device=value.device)
        return self.back(signal, to="pre").ne(0).to(value.dtype)


class FlatReadout(BlockMap):
    """A readout whose output is no vector: outside the block it is flattened to (N, O).

    Attributes:
        shape: of one sample's output.
    """

    def __init__(self, mapped: BlockMap):
        vars(self).update(vars(mapped))
        self.shape = tuple(self.output.shape[1:])
        self.output = self.output.reshape(len(self.output), -1)
        self.shapes["post"] = self.output.shape

    def push(self, tangent, inject=None, site="post", parameters=None):
        """Return the tangent of the flattened output, see `BlockMap.push`."""
        tangent = super().push(tangent, None, site, parameters)
        if tangent is not None:
            tangent = tangent.reshape(*tangent.shape[: tangent.dim() - len(self.shape)], -1)
        return added(tangent, inject)

    def pull(self, signal, site="post"):
        """Return the gradients for a signal at the flattened output, see `BlockMap.pull`."""
        return super().pull(signal.reshape(*signal.shape[:-1], *self.shape), site)

    def back(self, signal, site="post", to="input"):
        """Carry a signal at the flattened output to the block's input, see `BlockMap.back`."""
        return super().back(signal.reshape(*signal.shape[:-1], *self.shape), site, to)


class Trace:
    """One forward pass through a network, block by block, with every block linearised where it stands.

    Args:
        net: the network.
        x: the batch (N, …).
        site: the site that will be used; raises `Unsupported` where a hidden block lacks it.
        update_buffers: move running statistics, as a training step does.
        need_pull: keep what the local vector–Jacobian products need.
        shortcuts: see below; they need what `pull` needs.
        held: what the network holds now, from whoever knows it already: finding it out takes longer than a small layer.

    Attributes:
        blocks: a `BlockMap` per block, readout last.
        output: (N, O), detached; outputs of another shape are flattened to it.
        shape: of one sample's output where that is no vector, else None. A loss sees the outputs in this shape.
        shortcuts: let many directions share backward passes through the blocks where that gives the same numbers for less.
            For whoever measures a method: the method itself, which trains without such passes, must not.

    Raises:
        Unsupported: a block that lacks the site, changes the number of samples, returns no tensor, or (here, in `push` or in
            `pull`) does what automatic differentiation cannot follow; the message names block and operation.
    """

    def __init__(
        self,
        net: BlockNetwork,
        x: Tensor,
        *,
        site: str = "post",
        update_buffers: bool = False,
        need_pull: bool = True,
        shortcuts: bool = False,
        held: Members | None = None,
    ):
        context = Context(net, update_buffers, need_pull or shortcuts, held)
        self.input, self._context = x, context
        self.blocks: list[BlockMap] = []
        self.shortcuts = shortcuts
        self._jacobians: dict[str, list[Tensor]] = {}
        last = len(net) - 1
        with torch.no_grad():
            for i, block in enumerate(net):
                context.where = f"block {i} ({type(block).__name__})"
                context.need_input = shortcuts and i > 0  # else no signal leaves a block
                if i < last:
                    require_site(net, i, site)
                try:
                    mapped = BlockMap(block, x, context, site if i < last else "post")
                except Exception as error:
                    error.add_note(f"in {context.where}, on an input of shape {tuple(x.shape)} and type {x.dtype}")
                    raise
                if mapped.output.shape[:1] != x.shape[:1]:
                    raise Unsupported(
                        f"{context.where} changes the batch dimension from {len(x)} to {tuple(mapped.output.shape)[:1]}; "
                        "a block maps N samples to N samples"
                    )
                if i == last and mapped.output.dim() != 2:
                    mapped = FlatReadout(mapped)
                self.blocks.append(mapped)
                x = mapped.output
        self.output, self.shape = x, getattr(mapped, "shape", None)

    @property
    def hidden(self) -> list[BlockMap]:
        """The hidden blocks' maps."""
        return self.blocks[:-1]

    @property
    def readout(self) -> BlockMap:
        """The readout's map."""
        return self.blocks[-1]

    def push(self, perturbations: Sequence[Tensor | None], site: str) -> Tensor | None:
        """Return the tangent of the network's output when hidden blocks are perturbed together at a site.

        With `shortcuts`, more directions than outputs take their tangents from the samples' Jacobians where samples keep apart:
        these are then no larger than the directions, and together cheaper than a pass for each direction.

        Args:
            perturbations: one per hidden block, (N, …) or (R, N, …), or None for a block that is not perturbed.
            site: where they enter.
        """
        if self.output.dim() == 2 and self._directions(perturbations, site) > self.output.shape[1]:
            if site not in self._jacobians:
                samples, outputs = self.output.shape
                each = torch.eye(outputs, dtype=self.output.dtype, device=self.output.device)
                self._jacobians[site] = self.back(each.unsqueeze(1).expand(outputs, samples, outputs), site)
            return _along(perturbations, self._jacobians[site]).movedim(1, 2)
        tangent = None
        for block, u in zip(self.hidden, perturbations, strict=True):
            tangent = block.push(tangent, u, site)
        return self.readout.push(tangent)

    def slopes(self, perturbations: Sequence[Tensor | None], site: str, error: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Return the slope of each sample's part of the loss, its error times its tangent: (N,) or (R, N).

        With `shortcuts`, several directions share one backward pass in place of a tangent pass each, where samples keep apart.

        Args:
            perturbations, site: as for `push`.
            error: gradient of the loss with respect to the output (N, O).
            outputs: a perturbation of the output itself, (N, O) or (R, N, O), or None.
        """
        if self._directions(perturbations, site) > 1:
            slopes = _along(perturbations, self.back(error.unsqueeze(0), site)).squeeze(1)
            return slopes if outputs is None else slopes + (outputs * error).sum(-1)
        tangent = added(self.push(perturbations, site), outputs)
        return (tangent * error).sum(-1)

    def release(self) -> None:
        """Let each block go of what its products need once `pull` has been called: nothing is asked of it afterwards."""
        self._context.release = True

    def gradient(self, error: Tensor) -> Gradients:
        """Return the gradient of the loss for every parameter that it reaches, by a backward pass through all blocks.

        Only for shortcuts: slopes along many directions of the parameters are inner products with it.

        Args:
            error: gradient of the loss with respect to the output (N, O).
        """
        total: Gradients = {}
        parts = [part for block in self.blocks for part in block.parts]
        if self.shape is not None:
            error = error.reshape(len(error), *self.shape)
        for i, part in reversed(list(enumerate(parts))):
            gradients, error = part.pull(error, i > 0)
            merge(total, gradients)
        return total

    def back(self, signal: Tensor, site: str) -> list[Tensor]:
        """Carry R signals (R, N, O) from the output down to a site of every hidden block: (R, N, …) each."""
        signal, signals = self.readout.back(signal), []
        for block in reversed(self.hidden):
            signal = block.back(signal, to=site)
            signals.insert(0, signal)
            if len(signals) < len(self.hidden):
                signal = block.back(signal, site)
        return signals

    def _directions(self, perturbations: Sequence[Tensor | None], site: str) -> int:
        """How many directions stand side by side in all perturbations and may take a shortcut, if any."""
        leads = [lead_of(u, block.shapes[site]) for block, u in zip(self.hidden, perturbations, strict=True) if u is not None]
        if not self.shortcuts or not leads or not all(leads) or any(block.mixes for block in self.blocks):
            return 0
        return leads[0][0]


def frozen(block: nn.Module) -> bool:
    """Whether a block has parameters, none of which trains."""
    parameters = list(block.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _along(directions: Sequence[Tensor | None], signals: Sequence[Tensor]) -> Tensor:
    """Return the inner products (R, K, N) of R directions with K signals, sample by sample, over all blocks.

    One product of matrices per sample, signals first: with the tall factor on the left it is ten times slower.
    """
    products = sum(
        s.flatten(2).transpose(0, 1) @ u.flatten(2).permute(1, 2, 0)
        for u, s in zip(directions, signals, strict=True)
        if u is not None
    )
    return products.permute(2, 1, 0).contiguous()
