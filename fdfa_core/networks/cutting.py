"""Cutting an existing module into the blocks of a `BlockNetwork`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fdfa_core.errors import FdfaError, InvalidInput, Unsupported
from fdfa_core.networks.blocks import ACTIVATION_TYPES, Block, BlockNetwork, looking
from fdfa_core.networks.families import FAMILIES, known_parts
from fdfa_core.networks.inputs import Inputs, require_tensor
from fdfa_core.random_state import Streams, preserve_random_stream


def cut(
    module: nn.Module,
    *,
    at: Sequence[int] | None = None,
    parts: Sequence[str | nn.Module] | None = None,
    example: Tensor | Mapping[str, Tensor] | None = None,
) -> BlockNetwork:
    """Return a network of blocks made from an existing module.

    The network shares its layers with the module, so training the network trains the module. Layers are grouped in the order in
    which they are called. A block ends with its activation and the layers without parameters that follow it (pooling, dropout,
    flattening). A module with an inner structure, such as a residual block, is a block by itself. A group that ends with an
    activation becomes a `Block`, which has both sites.

    Args:
        module: an `nn.Sequential`; a module of a class that `fdfa_core.networks.families` knows, such as torchvision's ResNet;
            or any other whose `parts` are named.
        at: positions in the sequence at which a new block begins, in place of the rule above.
        parts: names of submodules, or modules, in order of call, e.g. ``["stem", "blocks", "head"]``. What the module's
            forward does between its children must be there too: ``["features", nn.Flatten(), "classifier"]``.
        example: a batch of inputs, on which the cut is compared to the module in its own mode (at least two samples, where
            a batch is normalised), and which gives `input_shape`. Needed for all but an `nn.Sequential`: only a comparison
            shows that the forward does nothing else. A dict is for a module that takes its inputs by name: they have one
            shape, the first part takes them as the module does, and the network takes such dicts.

    Sequences, and lists among the parts, are opened: to every depth by the rule, once with `at`. A part that returns several
    tensors, such as `nn.LSTM`, makes one part with the next. From an output with ``logits`` these are taken.

    Raises:
        InvalidInput: nothing to cut, positions or names that do not exist, parts that leave out parameters or that compute
            something else than the module.
        Unsupported: the module itself has hooks, which its blocks would not call.

    Examples:
        >>> from torch import nn
        >>> from fdfa_core import cut
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        >>> net = cut(model)
        >>> net.site_shapes("pre")
        [(6,), (5,)]
        >>> len(cut(model, at=[2]))
        2
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unsupported(f"{type(module).__name__} has forward hooks, which its cut into blocks would not call: remove them")
    packing = module.inputs if isinstance(module, BlockNetwork) else None
    if packing is not None and isinstance(example, Mapping):
        example = packing.pack(example, "example")
    inputs = Inputs.of(example) if isinstance(example, Mapping) else None
    if parts is None and not _is_sequence(module):
        return _known(module, at, example)
    if parts is not None and example is None:
        raise InvalidInput("example", None, "a batch of inputs: with parts=[…] the cut has to be compared to the module")

    if example is not None:
        example = example if inputs is None else inputs.pack(example)
        require_tensor("example", example)
        parameter = next(module.parameters(), None)
        example = example if parameter is None else example.to(parameter.device)
    sources = [module] if parts is None else [_part(module, part) for part in parts]
    layers = [layer for source in sources for layer in (_open(source) if at is None else _open_once(source))]
    if inputs is not None and layers:
        layers[0] = Named(layers[0], inputs)
    reshaping, several = (set(), set()) if example is None else _compare(module, layers, example, inputs)
    several |= {layer for layer in layers[:-1] if isinstance(layer, nn.RNNBase)}
    layers = _joined(layers, several) if at is None else layers
    activations = {layer for layer in layers if _is_activation(layer) and layer not in reshaping}
    groups = _group(layers, activations) if at is None else [_joined(group, several) for group in _split(layers, at)]
    if len(groups) < 2:
        raise InvalidInput("module", type(module).__name__, "activations between layers, or at=[…], where new blocks begin")
    net = BlockNetwork(
        *(_block(group, activations) for group in groups), input_shape=None if example is None else example.shape[1:]
    )
    net.inputs = packing if inputs is None else inputs
    held = set(net.parameters())
    missing = [name for name, parameter in module.named_parameters() if parameter not in held]
    if missing:
        raise InvalidInput("parts", parts, f"what holds {', '.join(missing)} too")
    net.training = module.training
    return net


def _known(module: nn.Module, at: Sequence[int] | None, example: Tensor | Mapping[str, Tensor] | None) -> BlockNetwork:
    """Cut a module of a known class at its parts."""
    name = type(module).__name__
    parts = known_parts(module, example if isinstance(example, Mapping) else ())
    if parts is None:
        known = f"an nn.Sequential, or any module with parts=[…] {_children(module)}"
        raise InvalidInput("module", name, known, f"Known without parts: {', '.join(FAMILIES)}.")
    if example is None:
        raise InvalidInput("example", None, f"a batch of inputs: the cut of a {name} has to be compared to it")
    try:
        return cut(module, at=at, parts=parts, example=example)
    except InvalidInput as error:
        if error.name != "parts":
            raise
        accepted = f"one that computes what the parts known of a {name} compute, or any with parts=[…] {_children(module)}"
        raise InvalidInput("module", f"a {name} of another kind", accepted, f"With the known parts: {error}") from error


class Named(nn.Module):
    """The first part of a network that takes its inputs by name.

    Args:
        part: called with the inputs as keywords, or with a dict of them if it has no such arguments.
        inputs: how they stand in one tensor.
    """

    def __init__(self, part: nn.Module, inputs: Inputs):
        super().__init__()
        self.part, self.inputs = part, inputs

    def forward(self, x: Tensor) -> Tensor:
        """Call the part on inputs (N, …, number of inputs)."""
        return _called(self.part, self.inputs.unpack(x))


class Joined(nn.Module):
    """Layers called in turn, of which all but the last may return several tensors."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Call them."""
        for layer in self.layers:
            x = layer(x)
        return x


def _called(module: nn.Module, values: dict[str, Tensor]) -> object:
    try:
        inspect.signature(module.forward).bind(**values)
    except TypeError:
        return module(values)
    return module(**values)


def _joined(layers: list[nn.Module], several: set[nn.Module]) -> list[nn.Module]:
    """Return the layers with those that return several tensors and the next one as one."""
    joined: list[nn.Module] = []
    held: list[nn.Module] = []
    for layer in layers:
        held.append(layer)
        if layer not in several:
            joined.append(Joined(*held) if len(held) > 1 else layer)
            held = []
    if held:
        accepted = f"a cut elsewhere: {type(held[-1]).__name__} returns several tensors and belongs to what follows it"
        raise InvalidInput("at", "the position behind it", accepted)
    return joined


def _is_sequence(module: nn.Module) -> bool:
    """Whether calling a module is calling its children in order, and nothing else."""
    plain = type(module).forward in (nn.Sequential.forward, BlockNetwork.forward)
    return isinstance(module, nn.Sequential) and plain


def _open_once(module: nn.Module) -> list[nn.Module]:
    hooked = module._forward_hooks or module._forward_pre_hooks
    return list(module) if isinstance(module, nn.ModuleList) or (_is_sequence(module) and not hooked) else [module]


def _open(module: nn.Module) -> Iterator[nn.Module]:
    hooked = module._forward_hooks or module._forward_pre_hooks
    if type(module) is nn.TransformerEncoder and not hooked:
        yield from [*module.layers, *([] if module.norm is None else [module.norm])]
        return
    for child in _open_once(module):
        if child is module:
            yield module
        else:
            yield from _open(child)


def _part(module: nn.Module, part: str | nn.Module) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    try:
        return module.get_submodule(part)
    except AttributeError:
        raise InvalidInput("parts", part, f"modules, or names of submodules {_children(module)}") from None


def _children(module: nn.Module) -> str:
    return f"(children of {type(module).__name__}: {', '.join(name for name, _ in module.named_children()) or 'none'})"


def _compare(
    module: nn.Module, layers: list[nn.Module], example: Tensor, inputs: Inputs | None
) -> tuple[set[nn.Module], set[nn.Module]]:
    """Raise unless layers called in turn compute what a module does; return who reshapes, and who returns several tensors.

    They are compared in evaluation mode, and in training mode too where the module is in it, with the same random numbers: only
    there does a forgotten dropout show.
    """
    own = set(module.modules())
    for part in (part for layer in layers for part in layer.modules()):
        if part not in own:
            part.training = module.training  # a new module is in training mode, whatever the one that it takes part in
    with looking(nn.ModuleList([module, *layers])):
        expected, found, reshaping, several = _outputs(module, layers, example, inputs)
    _require_equal(expected, found, "")
    if module.training:
        buffers = [(b, b.clone()) for b in nn.ModuleList([module, *layers]).buffers()]
        try:
            with torch.no_grad(), preserve_random_stream(example.device, module, host=True):
                expected, found, *_ = _outputs(module, layers, example, inputs)
            _require_equal(expected, found, " in training mode, given the same random numbers")
        except (ValueError, RuntimeError) as error:  # an example of one sample has no batch statistics
            if isinstance(error, FdfaError):
                raise
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
    return reshaping, several


_ACCEPTED = "all that the module calls, in order"
_HINT = "What its forward does between its children can be given as a module, e.g. nn.Flatten() or nn.ReLU()."


def _outputs(
    module: nn.Module, layers: list[nn.Module], example: Tensor, inputs: Inputs | None
) -> tuple[Tensor, Tensor, set[nn.Module], set[nn.Module]]:
    """Return what a module and its layers in turn make of an example, from one point of all random streams."""
    start = Streams(example.device, module, host=True)
    given = example.clone()
    try:
        expected = module(given) if inputs is None else _called(module, inputs.unpack(given))
    except (TypeError, KeyError, AttributeError) as error:
        if inputs is None:
            raise
        accepted = f"a tensor, or what {type(module).__name__} takes by name; it fails: {error}"
        raise InvalidInput("inputs", "a dict", accepted) from error
    if not isinstance(expected, Tensor):
        expected = getattr(expected, "logits", expected)
    if not isinstance(expected, Tensor):
        raise Unsupported(
            f"{type(module).__name__} returns a {type(expected).__name__}; a network returns one tensor: wrap it in a module "
            "that takes it out, e.g. by .logits or [0]"
        )
    start.restore()
    reshaping, several, below = set(), set(), None
    x = example.clone()  # a layer may work in place
    for layer in layers:
        shape = x.shape if isinstance(x, Tensor) else None
        try:
            x = layer(x)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
            if shape is None:
                raise _several(module, below, given) from error
            failed = f"{type(layer).__name__}, which fails on an input of shape {tuple(shape)} ({error})"
            raise InvalidInput("parts", failed, _ACCEPTED, _HINT) from error
        if not isinstance(x, Tensor):
            several.add(layer)
            below, given = layer, x
        elif x.shape != shape:
            reshaping.add(layer)
    if not isinstance(x, Tensor):
        raise _several(module, below, given)
    return expected, x, reshaping, several


def _several(module: nn.Module, layer: nn.Module, output: object) -> Unsupported:
    return Unsupported(
        f"parts: {_name(module, layer)} returns a {type(output).__name__}; a part maps one tensor to one tensor: give behind "
        "it a module that takes the tensor out, or in its place one that calls it and takes it out, e.g. by [0]"
    )


def _name(module: nn.Module, layer: nn.Module) -> str:
    """The class of a part, and its name in the module if it has one."""
    path = next((path for path, child in module.named_modules() if child is layer), "")
    return f"{type(layer).__name__} {path}" if path else type(layer).__name__


def _require_equal(expected: Tensor, outputs: Tensor, when: str) -> None:
    if outputs.shape != expected.shape or not torch.allclose(outputs, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise InvalidInput("parts", f"layers that compute something else than the module{when}", _ACCEPTED, _HINT)


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _is_activation(layer: nn.Module) -> bool:
    """Whether a layer is a nonlinearity of torch, or may be one: somebody's own layer without parameters."""
    foreign = not type(layer).__module__.startswith("torch.nn.")
    return isinstance(layer, ACTIVATION_TYPES) or (foreign and not _has_parameters(layer))


def _group(layers: list[nn.Module], activations: set[nn.Module]) -> list[list[nn.Module]]:
    """Group layers into blocks by the rule of `cut`."""
    groups: list[list[nn.Module]] = [[]]
    parametrised = finished = False  # what the last group is so far
    for layer in layers:
        affine = _has_parameters(layer) and layer not in activations
        composite = affine and any(True for _ in layer.children())
        if affine and (finished or (parametrised and composite)):
            groups.append([])
            parametrised = finished = False
        groups[-1].append(layer)
        parametrised |= affine
        finished |= composite or (parametrised and layer in activations)
    return groups


def _split(layers: list[nn.Module], at: Sequence[int]) -> list[list[nn.Module]]:
    bounds = [0, *at, len(layers)]
    if any(not isinstance(b, int) for b in bounds) or any(b <= a for a, b in pairwise(bounds)):
        raise InvalidInput("at", list(at), f"increasing positions from 1 to {len(layers) - 1}, where new blocks begin")
    return [layers[a:b] for a, b in pairwise(bounds)]


def _block(layers: list[nn.Module], activations: set[nn.Module]) -> nn.Module:
    """Return one block of some layers: a `Block` where an activation follows the last layer with parameters."""
    affine = max((i for i, layer in enumerate(layers) if _has_parameters(layer) and layer not in activations), default=None)
    if affine is None or not activations.intersection(layers[affine:]):
        return _chain(layers)
    first = next(i for i in range(affine, len(layers)) if layers[i] in activations)
    return Block(_chain(layers[:first]), _chain(layers[first:]))


def _chain(layers: list[nn.Module]) -> nn.Module:
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
