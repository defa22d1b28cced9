"""Networks as sequences of blocks.

A backpropagation-free method trains every block from signals that reach it without passing backwards through the blocks
above it. The unit of locality is therefore the block, and a network is a plain sequence of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput, Unsupported

SITES = ("pre", "post")


class Block(nn.Module):
    """A hidden block h = activation(affine(h_below)) with two sites where a signal may enter.

    Args:
        affine: the parametrised part; its output is the *pre* site. It may hold a normalisation layer.
        activation: what follows; its output is the *post* site and the block's output. It may hold pooling.
    """

    def __init__(self, affine: nn.Module, activation: nn.Module):
        super().__init__()
        self.affine = affine
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map a block input (N, …) to the block output (N, …)."""
        return self.activation(self.affine(x))


class BlockNetwork(nn.Sequential):
    """A sequence of hidden blocks and a readout, called as any `nn.Sequential`.

    Args:
        *blocks: at least two modules; the last is the readout, whose output (N, O) is the network's. A hidden block may be
            any module that keeps the batch dimension first; only a `Block` has a *pre* site.
        input_shape: shape of one sample, e.g. ``(784,)``. Where it is not given it is read off a first layer that is
            `nn.Linear`, or off the first batch.

    Raises:
        InvalidInput: fewer than two blocks, or something that is not a module.
    """

    def __init__(self, *blocks: nn.Module, input_shape: Sequence[int] | None = None):
        if len(blocks) < 2:
            raise InvalidInput("blocks", len(blocks), "at least two: one hidden block and a readout")
        for i, block in enumerate(blocks):
            if not isinstance(block, nn.Module):
                raise InvalidInput(f"blocks[{i}]", type(block).__name__, "a torch.nn.Module")
        super().__init__(*blocks)
        if input_shape is None:
            first = next(m for m in blocks[0].modules() if not list(m.children()))
            input_shape = (first.in_features,) if isinstance(first, nn.Linear) else None
        self.input_shape = None if input_shape is None else tuple(input_shape)

    def __getitem__(self, index):
        """Return one block, or for a slice a plain `nn.Sequential` (a slice need not be a network)."""
        if isinstance(index, slice):
            return nn.Sequential(*list(self)[index])
        return super().__getitem__(index)

    @property
    def hidden(self) -> list[nn.Module]:
        """The hidden blocks, in order."""
        return list(self)[:-1]

    @property
    def readout(self) -> nn.Module:
        """The last block."""
        return self[-1]

    def block_of(self, parameter: str) -> int:
        """Index of the block that owns a name of `named_parameters()`."""
        return int(parameter.split(".", 1)[0])

    def site_shapes(self, site: str = "post") -> list[tuple[int, ...]]:
        """Return the shape of one sample at a site of every hidden block, e.g. ``[(800,), (800,)]``.

        Raises:
            InvalidInput: `input_shape` is not known.
            Unsupported: a hidden block has no such site.
        """
        for i in range(len(self) - 1):
            require_site(self, i, site)
        return [shapes[site] for shapes in self._dry_run()[:-1]]

    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample's output; raises `InvalidInput` if `input_shape` is not known."""
        return self._dry_run()[-1]["post"]

    def _dry_run(self) -> list[dict[str, tuple[int, ...]]]:
        """Shapes of one sample at the sites of every block, from two zero samples."""
        if self.input_shape is None:
            raise InvalidInput(
                "input_shape", None, "the shape of one sample, e.g. BlockNetwork(..., input_shape=(3, 32, 32))"
            )
        parameter = next(self.parameters(), torch.empty(0))
        x = torch.zeros(2, *self.input_shape, dtype=parameter.dtype, device=parameter.device)
        modes = {module: module.training for module in self.modules()}
        self.eval()  # a look at the shapes must not move running statistics or draw dropout masks
        try:
            shapes = []
            with torch.no_grad():
                for block in self:
                    pre = block.affine(x) if isinstance(block, Block) else None
                    x = block(x) if pre is None else block.activation(pre)
                    shapes.append({"pre": None if pre is None else tuple(pre.shape[1:]), "post": tuple(x.shape[1:])})
            return shapes
        finally:
            for module, training in modes.items():
                module.training = training


def require_site(net: BlockNetwork, block: int, site: str) -> None:
    """Raise unless the hidden block with this index has the site."""
    if site not in SITES:
        raise InvalidInput("site", site, '"pre" or "post"')
    module = net[block]
    if site == "pre" and not isinstance(module, Block):
        raise Unsupported(
            f'block {block} ({type(module).__name__}) has no "pre" site: wrap it as fdfa_core.Block(affine, activation) '
            'or use site="post"'
        )

