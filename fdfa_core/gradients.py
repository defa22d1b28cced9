"""The true gradient, by reverse-mode automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fdfa_core.linearisation.calls import as_written
from fdfa_core.linearisation.functional import functional_call, plain_parameters
from fdfa_core.losses import make_loss
from fdfa_core.networks.batch import check_batch, explained
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.served import require_served
from fdfa_core.random_state import preserve_random_stream


def true_gradient(net: BlockNetwork, x: Tensor, y: Tensor, loss="cross_entropy") -> dict[str, Tensor]:
    """Return the gradient of the mean loss on a batch for every parameter.

    Normalisation uses the batch's statistics if the network is in training mode; running statistics, parameters,
    ``.grad`` and torch's global random stream stay as they are.

    Args:
        net: the network.
        x: inputs (N, …).
        y: targets.
        loss: a name or a callable, as in `make_estimator`.

    Raises:
        InvalidInput: x and y do not fit each other or the network, or x is not finite.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from fdfa_core import true_gradient
        >>> {name: tuple(g.shape) for name, g in true_gradient(net, x, y).items()}
        {'0.affine.weight': (6, 4), '0.affine.bias': (6,), '1.weight': (3, 6), '1.bias': (3,)}
    """
    loss = make_loss(loss)
    require_served(net)
    x, y = check_batch(net, x, y)
    parameters = {name: p.requires_grad_() for name, p in plain_parameters(net).items()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    with torch.enable_grad(), preserve_random_stream(x.device, net, host=True), as_written():
        with explained(net, x):
            outputs = functional_call(net, {**parameters, **buffers}, (x,))
        gradients = gradients_of(loss(outputs, y), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def gradients_of(loss: Tensor, tensors: Sequence[Tensor], sparse: bool = False) -> list[Tensor]:
    """Return the gradients of a loss for some tensors, zero for those that it does not reach, and dense unless `sparse`."""
    if not loss.requires_grad:  # nothing that trains reaches the loss
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(loss, tensors, materialize_grads=True, allow_unused=True)
    return [g if sparse or g.layout is torch.strided else g.to_dense() for g in found]
