"""Mean and variance of every component of an estimate, and their sums."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor

from analysis.theory.feedback import FeedbackLaw
from analysis.theory.population import Chunk, Population, gather

Values = dict[str, Tensor]
PARTS = ("data", "perturbation", "feedback", "cross")


@dataclass
class Prediction:
    """Mean and variance of an estimator's gradient, per component: {parameter: float64 tensor of its shape}.

    Attributes:
        name: the estimator.
        batch_size: N.
        mean: E[g].
        target: the population's gradient ∇.
        data, perturbation, feedback, cross: parts of the variance (zero where an estimator has no such part).
        feedback_law: for `fdfa`, the law of the feedback that the parts were made from.
    """

    name: str
    batch_size: int
    mean: Values
    target: Values
    data: Values
    perturbation: Values
    feedback: Values
    cross: Values
    feedback_law: FeedbackLaw | None = field(default=None, repr=False)

    @property
    def variance(self) -> Values:
        """Var[g], the sum of the parts."""
        parts = [getattr(self, part) for part in PARTS]
        return {name: sum(part[name] for part in parts) for name in self.mean}

    @property
    def bias(self) -> Values:
        """E[g] − ∇."""
        return {name: self.mean[name] - self.target[name] for name in self.mean}

    def total(self, what: str = "variance", block: int | None = None) -> float:
        """Return a sum over components: of the variance or one of its parts, or of the squared `bias`, `mean` or `target`.

        Args:
            what: "variance", a part, "bias", "mean", "target", or "mse" (variance plus squared bias).
            block: only this block's parameters.
        """
        if what == "mse":
            return self.total("variance", block) + self.total("bias", block)
        values = getattr(self, what)
        squared = what in ("bias", "mean", "target")
        mine = [v for name, v in values.items() if block is None or name.split(".", 1)[0] == str(block)]
        return float(sum((v.square() if squared else v).sum() for v in mine))

    def frame(self) -> pd.DataFrame:
        """Return totals per parameter, block and network, one row each.

        Columns: `estimator`, `batch_size`, `level`, `block`, `parameter`, `size`, `variance` and its parts, `bias2`, `mse`,
        `target_norm`, and `noise_to_signal` = variance / ‖∇‖².
        """
        variance, bias, rows = self.variance, self.bias, []
        sums = {what: {n: float(v.sum()) for n, v in getattr(self, what).items()} for what in PARTS}
        sums |= {"variance": {n: float(v.sum()) for n, v in variance.items()}}
        sums |= {"bias2": {n: float(v.square().sum()) for n, v in bias.items()}}
        sums |= {"target2": {n: float(v.square().sum()) for n, v in self.target.items()}}
        blocks: dict[int, list[str]] = {}
        for name in self.mean:
            blocks.setdefault(int(name.split(".", 1)[0]), []).append(name)
        groups = [("parameter", int(n.split(".", 1)[0]), n, [n]) for n in self.mean]
        groups += [("block", block, "", names) for block, names in blocks.items()] + [("network", -1, "", list(self.mean))]
        for level, block, parameter, names in groups:
            row = {what: sum(values[n] for n in names) for what, values in sums.items()}
            norm2 = row.pop("target2")
            rows.append(
                {"estimator": self.name, "batch_size": self.batch_size, "level": level, "block": block, "parameter": parameter}
                | {"size": sum(self.mean[n].numel() for n in names)}
                | row
                | {"mse": row["variance"] + row["bias2"], "target_norm": norm2**0.5}
                | {"noise_to_signal": row["variance"] / norm2 if norm2 else float("nan")}
            )
        return pd.DataFrame(rows)


def each(chunk: Chunk, what: str, signals: list[Tensor]) -> Values:
    """Call one of the maps' sums for every block's signal."""
    return gather(getattr(m, what)(w) for m, w in zip(chunk.maps, signals, strict=True))


def spread(second: Values, mean: Values, batch_size: int) -> Values:
    """Return Var_p/N from second moments; rounding below zero is cleared."""
    return {n: (v - mean[n].square()).clamp(min=0) / batch_size for n, v in second.items()}


def assemble(population: Population, batch_size: int, mean: Values, target: Values, **parts) -> Prediction:
    """Return a prediction whose missing parts are zero."""
    complete = {part: population.zeros() | parts.pop(part, {}) for part in PARTS}
    return Prediction("", batch_size, mean, target, **complete, **parts)
