"""Networks as sequences of blocks.

A backpropagation-free method trains every block from signals that reach it without passing backwards through the blocks
above it. The unit of locality is therefore the block, and a network is a plain sequence of them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.networks.decorrelation import Decorrelation
from fdfa_core.networks.inputs import Inputs

SITES = ("pre", "post")
ACTIVATION_TYPES = tuple(  # torch's own nonlinearities
    cls
    for cls in vars(nn.modules.activation).values()
    if inspect.isclass(cls) and cls.__module__ == nn.modules.activation.__name__ and cls is not nn.MultiheadAttention
)


class Block(nn.Module):
    """A hidden block h = activation(affine(h_below)) with two sites where a signal may enter.

    Args:
        affine: the parametrised part; its output is the *pre* site. It may hold a normalisation layer.
        activation: what follows; its output is the *post* site and the block's output. It may hold pooling.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from fdfa_core import Block
        >>> block = Block(nn.Linear(4, 6), nn.Tanh())
        >>> block(torch.zeros(2, 4)).shape
        torch.Size([2, 6])
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

    A module or a parameter may occur in several blocks. Its gradient is then the sum over these blocks, under the name of its
    first use.

    Args:
        *blocks: at least two modules; the last is the readout, whose output (N, O) is the network's. A hidden block may be
            any module that maps one tensor to one tensor and keeps the batch dimension first; only a `Block` has a *pre*
            site. A block without parameters works, but it costs a perturbation or a feedback tensor for nothing: make it
            the end of the block below instead.
        input_shape: shape of one sample, e.g. ``(784,)``. If it is not given and all layers act on vectors, it is that of the
            first layer. Otherwise it is unknown until the first batch.

    Attributes:
        inputs: how inputs that are given by name are packed, if `fdfa_core.cut` was given such an example.

    Raises:
        InvalidInput: fewer than two blocks, something that is not a module, or a lazy layer that has not seen its input.

    Examples:
        >>> from torch import nn
        >>> from fdfa_core import Block, BlockNetwork
        >>> net = BlockNetwork(Block(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3))
        >>> net.site_shapes("pre"), net.output_shape()
        ([(6,)], (3,))
    """

    inputs: Inputs | None = None

    def __init__(self, *blocks: nn.Module, input_shape: Sequence[int] | None = None):
        if len(blocks) < 2:
            raise InvalidInput("blocks", len(blocks), "at least two: one hidden block and a readout")
        for i, block in enumerate(blocks):
            if not isinstance(block, nn.Module):
                raise InvalidInput(f"blocks[{i}]", type(block).__name__, "a torch.nn.Module")
            if any(is_lazy(parameter) for parameter in block.parameters()):
                raise InvalidInput(f"blocks[{i}]", block, "layers of known size: run a batch through lazy ones first")
        super().__init__(*blocks)
        self.input_shape = _vector_shape(self) if input_shape is None else tuple(input_shape)

    def __getitem__(self, index):
        """Return one block, or for a slice a plain `nn.Sequential` (a slice need not be a network)."""
        if isinstance(index, slice):
            return nn.Sequential(*list(self)[index])
        return super().__getitem__(index)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch (N, *input_shape) to outputs (N, O).

        Raises:
            Unsupported: a block does not map N samples to N samples.
        """
        x = x if self.inputs is None or isinstance(x, Tensor) else self.inputs.pack(x)
        for i, block in enumerate(self):
            x = require_samples(block(x), len(x), i, block)
        return x

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
            InvalidInput: `input_shape` is not known, or is not what the blocks take.
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
            raise InvalidInput("input_shape", None, "the shape of one sample, e.g. BlockNetwork(..., input_shape=(3, 32, 32))")
        parameter = next(self.parameters(), torch.empty(0))
        looked_up = isinstance(next(_leaves(self)), nn.Embedding) if self.inputs is None else not self.inputs.real
        dtype = torch.long if looked_up else parameter.dtype
        x = torch.zeros(2, *self.input_shape, dtype=dtype, device=parameter.device)
        shapes = []
        with looking(self):
            for i, block in enumerate(self):
                try:
                    pre = block.affine(x) if has_pre_site(block) else None
                    x = require_samples(block(x) if pre is None else block.activation(pre), 2, i, block)
                except (RuntimeError, ValueError, IndexError) as error:
                    accepted = f"the shape of one sample that the blocks take; block {i} ({type(block).__name__}) fails"
                    raise InvalidInput("input_shape", self.input_shape, accepted, f"torch says: {error}") from error
                shapes.append({"pre": None if pre is None else tuple(pre.shape[1:]), "post": tuple(x.shape[1:])})
        return shapes


def has_pre_site(module: nn.Module) -> bool:
    """Whether a signal can enter a module between its affine part and its activation.

    Only a `Block` has such a place, and only if its call is nothing but its two parts: no hooks, no forward of a subclass.
    """
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    return isinstance(module, Block) and type(module).forward is Block.forward and not hooked


def require_site(net: BlockNetwork, block: int, site: str) -> None:
    """Raise unless the hidden block with this index has the site."""
    if site not in SITES:
        raise InvalidInput("site", site, '"pre" or "post"')
    module = net[block]
    if site == "pre" and not has_pre_site(module):
        raise Unsupported(
            f'block {block} ({type(module).__name__}) has no "pre" site: wrap it as fdfa_core.Block(affine, activation) '
            'or use site="post"'
        )
    if site == "pre" and any(True for _ in module.activation.parameters()):
        raise Unsupported(
            f"the activation of block {block} ({type(module.activation).__name__}) has parameters, which a signal at the "
            '"pre" site, below it, does not reach: use site="post"'
        )


def require_samples(output: object, samples: int, index: int, block: nn.Module) -> Tensor:
    """Return a block's output if it is one tensor with the given number of samples, and raise `Unsupported` otherwise."""
    if not isinstance(output, Tensor):
        raise Unsupported(
            f"block {index} ({type(block).__name__}) returns a {type(output).__name__}; a block maps one tensor to one tensor"
        )
    if output.shape[:1] != (samples,):
        raise Unsupported(
            f"block {index} ({type(block).__name__}) changes the batch dimension from {samples} to "
            f"{tuple(output.shape)[:1]}; a block maps N samples to N samples"
        )
    return output


@contextlib.contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Call a module inside a `with` and change nothing: no gradients, no moved statistics, no random number drawn."""
    modes = {each: each.training for each in module.modules()}
    module.eval()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for each, training in modes.items():
            each.training = training


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (each for each in module.modules() if not any(True for _ in each.children()))


def _vector_shape(net: BlockNetwork) -> tuple[int, ...] | None:
    """The shape of one sample in a network of layers that act only on vectors, None for any other.

    With other layers a first `nn.Linear` may well act on each token or position of a sample.
    """
    vectors = (nn.Linear, nn.BatchNorm1d, nn.Identity, nn.Dropout, Decorrelation, *ACTIVATION_TYPES)
    first, *others = leaves = list(_leaves(net))
    if isinstance(first, nn.Linear | Decorrelation) and others and all(isinstance(layer, vectors) for layer in leaves):
        return (first.in_features if isinstance(first, nn.Linear) else first.features,)
    return None
