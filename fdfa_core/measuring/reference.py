"""The gradient of a large fixed set of samples, which estimates are measured against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.gradients import true_gradient
from fdfa_core.networks.blocks import BlockNetwork


@dataclass(frozen=True)
class Reference:
    """The gradient that a large fixed set of samples gives, and how well a batch of the training size estimates it.

    Attributes:
        x: inputs of the set, without those that fill no batch.
        y: its targets.
        gradient: ∇ per parameter, the mean of the batch gradients over disjoint batches. With batch normalisation in
            training mode this is the mean of what training sees; without, it is the gradient on the whole set.
        variance: per parameter, the unbiased total variance of the batch gradient over those batches.
        gram: per parameter, inner products of the batch gradients (batches, batches), float64.
        batches: their number.
    """

    x: Tensor
    y: Tensor
    gradient: dict[str, Tensor]
    variance: dict[str, float]
    gram: dict[str, Tensor]
    batches: int

    @classmethod
    def compute(cls, net: BlockNetwork, x: Tensor, y: Tensor, batch_size: int, loss="cross_entropy") -> Reference:
        """Measure the reference on samples (x, y) cut into disjoint batches; a last smaller batch is left out.

        Raises:
            InvalidInput: fewer samples than two batches.
        """
        batches = len(x) // batch_size
        if batches < 2:
            raise InvalidInput("reference set: size", len(x), f"at least two batches of {batch_size} samples")
        x, y = x[: batches * batch_size], y[: batches * batch_size]  # what is drawn from the set is what its gradient is of
        each = [true_gradient(net, *batch, loss) for batch in zip(x.split(batch_size), y.split(batch_size), strict=True)]
        gradient, variance, gram = {}, {}, {}
        for name, first in list(each[0].items()):
            stacked = torch.stack([g.pop(name).flatten() for g in each])  # which need not be held twice
            mean = stacked.mean(0)
            gradient[name] = mean.view_as(first)
            # differences to the mean first: E[g²] − E[g]² would cancel where the mean dominates
            variance[name] = float((stacked - mean).double().square().sum() / (batches - 1))
            wide = stacked.double()
            gram[name] = (wide @ wide.T).cpu()
        return cls(x, y, gradient, variance, gram, batches)

    @classmethod
    def on_batch(cls, net: BlockNetwork, x: Tensor, y: Tensor, loss="cross_entropy") -> Reference:
        """Take the gradient on (x, y) as the reference; variance and stability, which need several batches, are NaN."""
        gradient = true_gradient(net, x, y, loss)
        unknown = {name: torch.full((1, 1), torch.nan, dtype=torch.float64) for name in gradient}
        return cls(x, y, gradient, dict.fromkeys(gradient, float("nan")), unknown, 1)

    def disjoint_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the batches over whose gradients ∇ is the mean."""
        size = len(self.x) // self.batches
        return list(zip(self.x.split(size), self.y.split(size), strict=True))

    def stability(self, names: Iterable[str]) -> float:
        """Return the mean cosine between gradients of two disjoint batches, over these parameters taken together.

        NaN where a batch's gradient is zero, or with one batch.
        """
        if self.batches < 2:
            return float("nan")
        gram = torch.stack([self.gram[name] for name in names]).sum(0)
        norms = gram.diagonal().sqrt()
        cosines = gram / (norms[:, None] * norms)
        return float((cosines.sum() - cosines.trace()) / (self.batches * (self.batches - 1)))
