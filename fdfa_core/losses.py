"""Losses: the mean over a batch of a per-sample loss, and its gradient with respect to the outputs.

An estimator uses only two things of the loss: its value and the output error e = ∂(mean loss)/∂outputs, which is
local to the output. e is (N, O) and already divided by N. If one sample's outputs are not a vector, an estimator keeps them
flattened to (N, O), and the loss sees them in their own shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fdfa_core.errors import InvalidInput, UnknownName

aten = torch.ops.aten
# what torch says where a loss asks for the gradient of the outputs for something that is not there
_NO_GRAPH = ("appears to not have been used in the graph", "One of the differentiated Tensors does not require grad")


class Loss:
    """A mean loss built from per-sample losses.

    Args:
        per_sample: maps (outputs (N, O), targets) to losses (N,).
        name: what it is called in messages.

    Attributes:
        shape: the shape of one sample's outputs where `error` gets them flattened; None where they come as they are.
    """

    shape: tuple[int, ...] | None = None

    def __init__(self, per_sample: Callable[[Tensor, Tensor], Tensor], name: str):
        self.per_sample, self.name = per_sample, name

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a 0-d tensor that autograd can follow.

        Raises:
            InvalidInput: the callable did not return one loss per sample.
        """
        targets = self.prepare(outputs, targets)
        try:
            losses = self.per_sample(outputs, targets)
        except RuntimeError as error:
            if not any(text in str(error) for text in _NO_GRAPH):
                raise
            raise InvalidInput(
                f"loss {self.name}",
                "a function that differentiates the outputs with respect to something below them",
                "a function of outputs and targets only",
                "A loss sees the outputs without the graph that made them. For the derivatives of a network, as in an equation "
                "that it is to solve, let its blocks carry them along: docs/own-network.md has an example (Jet).",
            ) from error
        if not isinstance(losses, Tensor):
            given = f"a {type(losses).__name__}"
            raise InvalidInput(f"loss {self.name}: its result", given, f"a tensor with one loss per sample: {(len(outputs),)}")
        if losses.shape != outputs.shape[:1]:
            raise InvalidInput(
                f"loss {self.name}: shape of its result", tuple(losses.shape), f"one loss per sample: {(len(outputs),)}"
            )
        if not losses.is_floating_point():
            raise InvalidInput(f"loss {self.name}: dtype of its result", losses.dtype, "a floating-point type")
        if outputs.requires_grad and not losses.requires_grad:
            raise InvalidInput(
                f"loss {self.name}: its result",
                "a tensor without a gradient",
                "a differentiable function of the outputs",
                "Argmax, comparisons, .detach(), .item() and NumPy have no gradient.",
            )
        return losses.mean()

    def error(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss (0-d) and the output error e (N, O), both detached."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            loss = self(leaf if self.shape is None else leaf.view(len(leaf), *self.shape), targets)
            (error,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), error

    def prepare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return targets in the form that `per_sample` takes; raises `InvalidInput` where they do not fit."""
        return targets


class CrossEntropy(Loss):
    """Softmax cross-entropy. Targets: class indices (N,) in [0, O), or class probabilities (N, O)."""

    def __init__(self):
        super().__init__(_cross_entropy, "cross_entropy")

    def prepare(self, outputs, targets):
        """Check the labels, and take integers and probabilities of any width."""
        require_vectors(outputs, self.shape)
        if targets.is_floating_point() and targets.shape != outputs.shape:
            accepted = f"integer class indices (N,), or probabilities {tuple(outputs.shape)}, one per output"
            raise InvalidInput("y", f"{targets.dtype}, shape {tuple(targets.shape)}", accepted)
        check_labels(targets, outputs.shape[-1])
        return targets.to(outputs.dtype) if targets.is_floating_point() else targets.long()

    def error(self, outputs, targets):
        """Return the mean loss and (softmax − target)/N."""
        targets = self.prepare(outputs, targets)
        log_p = F.log_softmax(outputs, dim=-1)
        if targets.is_floating_point():
            n = len(outputs)
            loss = -(targets * log_p).sum() / n
            return loss, (log_p.exp() * targets.sum(-1, keepdim=True) - targets) / n
        # the operations of torch's own backward pass, without a graph around them
        options = (targets, None, 1, -100)  # no class weights, the mean, and the label to ignore, which was refused
        loss, total = aten.nll_loss_forward(log_p, *options)
        error = aten.nll_loss_backward(torch.ones_like(loss), log_p, *options, total)
        return loss, aten._log_softmax_backward_data(error, log_p, -1, log_p.dtype)


class MeanSquaredError(Loss):
    """Mean over outputs and samples of (output − target)², as `torch.nn.MSELoss`. Class indices stand for one-hot targets."""

    def __init__(self):
        super().__init__(_squared_error, "mse")

    def prepare(self, outputs, targets):
        """Turn labels into one-hot targets and check shapes."""
        if not targets.is_floating_point() and targets.dim() == 1 and self.shape is None and outputs.dim() == 2:
            check_labels(targets, outputs.shape[-1])
            return F.one_hot(targets.long(), outputs.shape[-1]).to(outputs.dtype)
        expected = tuple(outputs.shape) if self.shape is None else (len(outputs), *self.shape)
        if tuple(targets.shape) != expected:
            raise InvalidInput("y: shape", tuple(targets.shape), f"{expected}, the shape of the outputs")
        return targets.to(outputs.dtype).view(outputs.shape) if self.shape is not None else targets.to(outputs.dtype)

    def error(self, outputs, targets):
        """Return the mean loss and 2 (output − target)/(N O)."""
        difference = outputs - self.prepare(outputs, targets)
        return difference.square().mean(), difference * (2 / difference.numel())


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().reshape(len(outputs), -1).mean(1)


LOSSES: dict[str, type[Loss]] = {"cross_entropy": CrossEntropy, "mse": MeanSquaredError}


def make_loss(loss: str | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Return a loss by name, or from a callable (outputs, targets) → per-sample losses (N,).

    Raises:
        UnknownName: no loss of that name.
        InvalidInput: neither a name nor a callable.

    Examples:
        >>> import torch
        >>> from fdfa_core.losses import make_loss
        >>> loss = make_loss("mse")
        >>> loss.error(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))  # the mean loss and e
        (tensor(2.5000), tensor([[1., 2.]]))
    """
    if isinstance(loss, Loss):
        return copy.copy(loss)  # each estimator's loss knows the shape of its own network's outputs
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise UnknownName("loss", loss, LOSSES, "A callable (outputs, targets) -> per-sample losses is accepted too.")
        return LOSSES[loss]()
    if not callable(loss):
        raise InvalidInput("loss", loss, f"a name ({', '.join(LOSSES)}) or a callable returning per-sample losses")
    return Loss(loss, getattr(loss, "__name__", type(loss).__name__))


def require_vectors(outputs: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raise `InvalidInput` unless one sample's outputs are a vector, as cross-entropy by name takes them."""
    if shape is not None or outputs.dim() != 2:
        given = (len(outputs), *shape) if shape is not None else tuple(outputs.shape)
        raise InvalidInput(
            "outputs: shape",
            given,
            '(N, O) with loss="cross_entropy"',
            "For tokens, images or single numbers give the loss as a callable (outputs, targets) -> losses (N,), for example "
            "lambda o, t: F.cross_entropy(o.transpose(1, 2), t, reduction='none').mean(1) for outputs (N, T, O).",
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise `InvalidInput` unless integer labels lie in [0, classes); floating targets pass."""
    if labels.is_floating_point():
        return
    if labels.dtype == torch.bool or labels.dim() != 1:
        raise InvalidInput("y", f"{labels.dtype}, shape {tuple(labels.shape)}", "integer class indices of shape (N,)")
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise InvalidInput("y: label", bad, f"integers from 0 to {classes - 1}, one per output")
