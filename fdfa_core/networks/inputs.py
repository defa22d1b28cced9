"""What a network of blocks takes: one tensor of samples, in which inputs that are given by name stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput

_PACK = "Pack others into one tensor yourself, or hold them in a module."


@dataclass(frozen=True)
class Inputs:
    """How the inputs of a dict stand in the one tensor that a network of blocks takes: side by side, in a last dimension.

    Attributes:
        types: of each input, by name, in their order.
    """

    types: dict[str, torch.dtype]

    @classmethod
    def of(cls, example: Mapping[str, Tensor]) -> Inputs:
        """Return that of an example; raises as `pack` does.

        Examples:
            >>> import torch
            >>> from fdfa_core.networks.inputs import Inputs
            >>> x = {"input_ids": torch.tensor([[5, 2, 0]]), "attention_mask": torch.tensor([[True, True, False]])}
            >>> inputs = Inputs.of(x)
            >>> inputs.pack(x)
            tensor([[[5, 1],
                     [2, 1],
                     [0, 0]]])
            >>> inputs.unpack(inputs.pack(x))["attention_mask"]
            tensor([[ True,  True, False]])
        """
        if not example:
            raise InvalidInput("example", {}, "at least one input")
        inputs = cls({name: value.dtype if isinstance(value, Tensor) else torch.bool for name, value in example.items()})
        inputs.pack(example, "example")
        return inputs

    def pack(self, values: Mapping[str, Tensor], argument: str = "x") -> Tensor:
        """Return inputs (N, …) of one shape as a tensor (N, …, number of inputs).

        Args:
            values: the inputs by name.
            argument: what errors call them.

        Raises:
            InvalidInput: other names, another shape, or indices beside real numbers.
        """
        if set(values) != set(self.types):
            raise InvalidInput(f"{argument}: keys", sorted(values), f"those of the example: {', '.join(self.types)}")
        ordered = [values[name] for name in self.types]
        for name, value in zip(self.types, ordered, strict=True):
            where = f"{argument}[{name!r}]"
            require_tensor(where, value)
            if value.shape != ordered[0].shape:
                accepted = f"{tuple(ordered[0].shape)}, the shape of {next(iter(self.types))}"
                raise InvalidInput(f"{where}: shape", tuple(value.shape), accepted, _PACK)
            if value.is_floating_point() != self.real:
                raise InvalidInput(f"{where}: dtype", value.dtype, "integers alone, or real numbers alone", _PACK)
        return torch.stack(ordered if self.real else [value.long() for value in ordered], -1)

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """Return the inputs by name; integers and truth values in their types, real numbers in that of the tensor."""
        each = zip(self.types.items(), packed.unbind(-1), strict=True)
        return {name: value if self.real else value.to(dtype) for (name, dtype), value in each}

    @property
    def real(self) -> bool:
        """Whether the inputs are real numbers."""
        return next(iter(self.types.values())).is_floating_point


def require_tensor(name: str, value: object) -> None:
    """Raise `InvalidInput` unless a part of a batch is a dense tensor of samples whose values can be read here."""
    accepted = "a tensor whose first dimension counts samples"
    if not isinstance(value, Tensor):
        several = isinstance(value, Mapping | tuple | list)
        hint = (
            "A network that takes several tensors: fdfa_core.cut(model, example={…}) gives one that takes a dict of them; "
            "or hold the others in a module, or pack them into one tensor."
        )
        raise InvalidInput(name, f"a {type(value).__name__}" if several else value, accepted, hint if several else "")
    if value.dim() == 0:
        raise InvalidInput(name, value, accepted)
    if value.layout is not torch.strided:
        raise InvalidInput(f"{name}: layout", value.layout, f"a dense tensor, e.g. {name}.to_dense()")
    if value.is_complex():
        raise InvalidInput(f"{name}: dtype", value.dtype, "real numbers, e.g. torch.view_as_real(…)")
    if value.is_meta:
        raise InvalidInput(f"{name}: device", "meta", "a tensor that holds values")
    if torch.is_inference_mode_enabled():
        raise InvalidInput("torch.inference_mode()", "on", "a call outside it, e.g. under torch.no_grad()")
