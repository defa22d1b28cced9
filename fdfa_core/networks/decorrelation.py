"""A layer that learns to decorrelate its input, for the place before an affine map."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput, Unsupported


class Decorrelation(nn.Module):
    r"""x* = R x, with a matrix R that learns to make the entries of x* uncorrelated.

    Node perturbation, which is FG-A with difference quotients, trains faster on such inputs of every affine map (Dalm, van
    Gerven & Ahmad, arXiv 2310.00965). R begins as the identity. A training step moves it *after its use*, by the rule of Ahmad,
    Schrader & van Gerven (2023), from which that work takes it:

        R ← R − η (C − diag C) R,   C the mean of x* x*ᵀ over samples (and tokens).

    No gradient trains R. It is a buffer, and moves as running statistics do: once in `backward`, and never where something is
    measured. Values of samples stay apart, for R is given. The moments C are not centred.

    What it does to the variance of FG-A is in docs/theory.md, section 4, and in `analysis.theory.decorrelation`. Cost: a
    product with R (n, n) in each pass; in a training step also n² numbers of memory and about 2 n³ operations.

    Args:
        features: n, the size of the last axis of inputs (N, n) or (N, T, n).
        rate: η, at least 0, where R stays as it is. Too large a rate lets R diverge: η times the largest eigenvalue of C must
            stay well below 1.

    Raises:
        InvalidInput: an impossible size or rate; in a call, inputs of another shape.

    Examples:
        >>> import torch
        >>> from fdfa_core.networks.decorrelation import Decorrelation
        >>> layer, generator = Decorrelation(2, rate=0.05), torch.Generator().manual_seed(0)
        >>> x = torch.randn(64, 2, generator=generator) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
        >>> f"{torch.corrcoef(layer.eval()(x).T)[0, 1]:.2f}"
        '0.80'
        >>> for step in range(200):
        ...     output = layer.train()(x)
        >>> f"{layer.eval()(x).T.matmul(layer(x))[0, 1].abs() / 64:.2f}"
        '0.00'
    """

    matrix: Tensor

    def __init__(self, features: int, rate: float = 1e-3):
        super().__init__()
        if not isinstance(features, int) or isinstance(features, bool) or features < 1:
            raise InvalidInput("features", features, "a positive integer, the size of the input's last axis")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not (math.isfinite(rate) and rate >= 0):
            raise InvalidInput("rate", rate, "a finite number of at least 0")
        self.features, self.rate = features, float(rate)
        self.register_buffer("matrix", torch.eye(features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n) or (N, T, n) to decorrelated values of the same shape; in training mode, R moves after its use."""
        self.check(x)
        # a copy where R moves: reverse mode must find the R that was used
        output = x @ (self.matrix.clone() if self.training else self.matrix).mT
        if self.training:
            self.move(output)
        return output

    def check(self, x: Tensor) -> None:
        """Raise `InvalidInput` unless an input is of vectors (N, n), or of sequences (N, T, n)."""
        if x.dim() not in (2, 3) or x.shape[-1] != self.features:
            accepted = f"(N, {self.features}) or (N, T, {self.features}); put nn.Flatten() before it for images"
            raise InvalidInput("the input of Decorrelation: shape", tuple(x.shape), accepted)

    @torch.no_grad()
    def move(self, output: Tensor) -> None:
        """Take one step of R for the values (N, …, n) that it gave."""
        rows = output.detach().flatten(0, -2)
        moments = rows.mT @ rows / len(rows)
        self.matrix.sub_(self.rate * (moments - moments.diagonal().diag()) @ self.matrix)

    def extra_repr(self) -> str:
        """Return the arguments, for `repr`."""
        return f"{self.features}, rate={self.rate:g}"


def decorrelated(net: nn.Sequential, rate: float = 1e-3, matrices: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """Return a copy of a network with a decorrelating layer before every linear layer, and the same outputs.

    Linear layers are those that stand in an `nn.Sequential` or a `Block`. Others, such as those inside attention, and
    convolutions stay as they are. The name of a weight gains a part: "0.affine.weight" becomes "0.affine.1.weight".

    Args:
        net: the network, a `BlockNetwork`.
        rate: η of the new layers.
        matrices: R (n, n) by the name of the weight behind it. That weight W becomes W R⁻¹, so that the outputs stay what they
            are. A layer that is not named begins with the identity.

    Raises:
        InvalidInput: no linear layer, a matrix for a weight that there is not, of another shape, or that has no inverse.
        Unsupported: a linear layer in several places, whose inputs have several R.

    Examples:
        >>> from fdfa_core import fully_connected
        >>> from fdfa_core.networks.decorrelation import decorrelated
        >>> net = decorrelated(fully_connected([4, 6, 3], seed=0), rate=1e-3)
        >>> [name for name, _ in net.named_parameters()]
        ['0.affine.1.weight', '0.affine.1.bias', '1.1.weight', '1.1.bias']
    """
    net, matrices = copy.deepcopy(net), dict(matrices or {})
    places = [
        (f"{path}.{name}".lstrip("."), parent, name, child)
        for path, parent in net.named_modules(remove_duplicate=False)
        if isinstance(parent, nn.Sequential) or {name for name, _ in parent.named_children()} == {"affine", "activation"}
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    if not places:
        raise InvalidInput("net", type(net).__name__, "a network with a linear layer in an nn.Sequential or a Block")
    uses = [p for _, p in net.named_parameters(remove_duplicate=False)]
    for path, *_, child in places:
        if sum(p is child.weight for p in uses) > 1:
            raise Unsupported(f"{path}.weight stands in several places, and its inputs there would need an R each: untie it")
    for path, parent, name, child in places:
        layer = Decorrelation(child.in_features, rate).to(child.weight)
        given = matrices.pop(f"{path}.weight", None)
        if given is not None:
            layer.matrix.copy_(_invertible(f"{path}.weight", given, child.in_features))
            with torch.no_grad():  # W R⁻¹ = (R⁻ᵀ Wᵀ)ᵀ
                child.weight.copy_(torch.linalg.solve(layer.matrix.double().mT, child.weight.double().mT).mT)
        setattr(parent, name, nn.Sequential(layer, child))
    if matrices:
        known = ", ".join(f"{path}.weight" for path, *_ in places)
        raise InvalidInput("matrices", ", ".join(matrices), f"names of weights: {known}")
    return net.train(net.training)


def _invertible(name: str, matrix: Tensor, features: int) -> Tensor:
    """Return a matrix (n, n) that has an inverse, or raise `InvalidInput`."""
    if tuple(matrix.shape) != (features, features):
        raise InvalidInput(f"matrices: shape for {name}", tuple(matrix.shape), (features, features))
    if not matrix.isfinite().all() or torch.linalg.matrix_rank(matrix.double()) < features:
        raise InvalidInput(f"matrices: {name}", "a matrix without an inverse", "one of full rank, so that outputs can stay")
    return matrix
