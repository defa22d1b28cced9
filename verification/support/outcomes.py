"""What happens in a cell of the support matrix: an estimator trains a network, and is held against the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from fdfa_core import make_estimator, true_gradient
from fdfa_core.errors import FdfaError
from verification.support.networks import ROWS, Row, restarted
from verification.support.table import COLUMNS, expected

# Whose readout does not get the gradient of this batch.
OWN_READOUT = ("fg-w", "zo", "pepita", "fg-a-averaged", "fdfa-averaged")
BIASED = 5.0  # standard errors at which a mean is not the gradient
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # relative


def outcome(row: Row, column: str, draws: int) -> tuple[str, str]:
    """Return the verdict on a cell, and what it rests on.

    | verdict | what was seen |
    | --- | --- |
    | exact | the estimate is the gradient of reverse mode |
    | unbiased | fg-w: the slope it measures is the slope along its direction. fg-a: the mean of the draws is the gradient |
    | biased | fg-a: the mean of the draws is not the gradient |
    | as defined | the method trains, its draws are finite, and its readout gets the gradient of reverse mode |
    | refused | an error of this project, whose text is returned |
    | wrong | none of these |

    Args:
        row: whose network is used.
        column: of `COLUMNS`.
        draws: of fg-a; 0 leaves its mean aside.
    """
    method, options = COLUMNS[column]
    net, x, y = row.made()
    try:
        with row.around():
            restarted(net)
            estimator = make_estimator(method, net, loss=row.loss, seed=0, **options)
            estimator.backward(x, y)
            restarted(net)
            estimate = estimator.estimate(x, y)
            restarted(net)
            true = _trained(net, true_gradient(net, x, y, row.loss))
            estimate = _trained(net, estimate)
            if not all(bool(g.isfinite().all()) for g in estimate.values()):
                return "wrong", "an estimate is not finite"
            tolerance = row.tolerance or TOLERANCE[row.dtype]
            if method == "bp":
                error = _distance(estimate, true)
                return ("exact" if error < tolerance else "wrong"), f"relative error {error:.1g}"
            if method == "fg-w":
                return _slope(net, x, y, row, tolerance)
            last = f"{len(net) - 1}."
            readout = {name: g for name, g in true.items() if name.startswith(last)}
            error = _distance({name: estimate[name] for name in readout}, readout)
            if method not in OWN_READOUT and not error < tolerance:
                return "wrong", f"relative error of the readout's gradient {error:.1g}"
            if method == "fg-a":
                return _mean(net, x, y, row, options, draws) if draws else ("unbiased", "not drawn")
            return "as defined", f"relative error of the readout's gradient {error:.1g}"
    except FdfaError as error:
        return "refused", str(error)


def fault(row: str, column: str, draws: int) -> str:
    """Say how a cell differs from its declaration, or return an empty text.

    Args:
        row: of `networks.ROWS`.
        column: of `table.COLUMNS`.
        draws: as in `outcome`; with 0 a declared bias is not looked for.
    """
    declared, (verdict, seen) = expected(row, column), outcome(ROWS[row], column, draws)
    wanted = "unbiased" if declared.verdict == "biased" and not draws else declared.verdict
    if verdict != wanted or declared.message not in seen:
        return f"{row} × {column}: declared {wanted} {declared.message!r}, seen {verdict}: {seen}"
    return ""


def _slope(net, x, y, row: Row, tolerance: float) -> tuple[str, str]:
    """Compare the slope that fg-w measures with the true one along its direction: random signs, so that g = s v tells both."""
    estimator = make_estimator("fg-w", net, loss=row.loss, perturbation="rademacher", seed=0)
    restarted(net)
    g = _flat(_trained(net, estimator.estimate(x, y)))
    restarted(net)
    true = _flat(_trained(net, true_gradient(net, x, y, row.loss)))
    size = g.abs().max()
    measured, wanted = float(size), float((g / size) @ true)
    error = abs(measured - wanted) / float(true.norm())
    return ("unbiased" if error < tolerance else "wrong"), f"slope {measured:.6g}, true {wanted:.6g}"


def _mean(net, x, y, row: Row, options: dict[str, object], draws: int) -> tuple[str, str]:
    """Compare the mean of draws with the gradient, by Hotelling's statistic along the direction of the deviation's halves."""
    estimator = make_estimator("fg-a", net, loss=row.loss, seed=1, **options)
    restarted(net)
    sample = torch.cat([g.reshape(draws, -1) for g in _trained(net, estimator.sample(x, y, draws)).values()], 1).double()
    restarted(net)
    true = _flat(_trained(net, true_gradient(net, x, y, row.loss))).double()
    first, second = (sample - true).chunk(2)
    direction = first.mean(0)  # found on one half, tested on the other
    along = second @ (direction / direction.norm().clamp_min(1e-30))
    z = float(along.mean() / (along.std() / len(along) ** 0.5).clamp_min(1e-30))
    share = float(along.mean() / true.norm())
    return ("biased" if z > BIASED and share > 1e-6 else "unbiased"), f"{z:.1f} standard errors, {share:.1%} of the gradient"


def _trained(net, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what does not train, whose gradient is no business of an estimator's."""
    return {name: gradients[name] for name, p in net.named_parameters() if p.requires_grad}


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    x, y = _flat(a).double(), _flat(b).double()
    return float((x - y).norm() / y.norm().clamp_min(1e-30))


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])
