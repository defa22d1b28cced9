"""Tests for anybody's gradient estimator: the whole contract at once, or one claim of it in a test suite of your own.

`check_estimator` runs every check, `estimator_checks` hands them to pytest one by one, and `assert_…` test one claim on a
network of yours. `fdfa check FILE.py` does the first for every estimator that a file registers. docs/checking.md says what each
check looks at, how often it is wrong, and how small a mistake it finds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fdfa_core.estimators.base import Estimator
from fdfa_core.gradients import true_gradient
from fdfa_core.testing import contract as contract  # its checks register themselves
from fdfa_core.testing.statistics import (
    MISTAKE,
    PILOT,
    call_size,
    differing,
    draw,
    mean_finding,
    mean_of,
    noisy,
    p_values,
    planned,
    rejected,
    variance_finding,
)
from fdfa_core.testing.subject import ALPHA, BUDGET, CHECKS, Finding, Problem, Projections, Subject, constant, examine, flat

__all__ = [
    "Report",
    "assert_matches",
    "assert_no_side_effects",
    "assert_unbiased",
    "assert_variance",
    "check_estimator",
    "estimator_checks",
]


@dataclass(frozen=True)
class Report:
    """What the checks of one estimator have found; printed, it is a table.

    Attributes:
        estimator: its name.
        findings: check → what it found, in the order in which they ran.
    """

    estimator: str
    findings: dict[str, Finding]

    @property
    def ok(self) -> bool:
        """Whether no check failed or was left undecided."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The checks that failed or were left undecided."""
        return [name for name, finding in self.findings.items() if not finding.ok]

    @property
    def summary(self) -> str:
        """How many checks have nothing against it."""
        return f"  {len(self.findings) - len(self.failed)} of {len(self.findings)} checks have nothing against it"

    def __str__(self) -> str:
        return "\n".join([self.estimator, *(row(*each) for each in self.findings.items()), self.summary])


def row(name: str, finding: Finding) -> str:
    """Return a check's row of the table."""
    wide = max(map(len, CHECKS))
    text = textwrap.wrap(finding.detail, 88) or [""]
    return "\n".join([f"  {name:{wide}}  {finding.outcome:14}  {text[0]}", *(" " * (wide + 20) + more for more in text[1:])])


def estimator_checks(
    estimator: str | type[Estimator],
    *,
    network: Callable[[], Problem] | None = None,
    loss="cross_entropy",
    seed: int = 0,
    false_alarms: float = ALPHA,
    budget: int = BUDGET,
    **options,
) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Yield the name of every check and a function that carries it out, so that pytest can tell them apart.

    The function returns its finding, and raises `AssertionError` where the check fails or is left undecided. The shares of
    `false_alarms` are fixed beforehand, so that it holds for all checks together however they are run.

    Args:
        estimator, network, loss, seed, false_alarms, budget: as for `check_estimator`.
        **options: the estimator's own.

    Examples:
        >>> from fdfa_core.testing import estimator_checks
        >>> checks = dict(estimator_checks("dfa", seed=0))
        >>> checks["state-round-trip"]()
        Finding(outcome='holds', detail='three steps to the same bits')
        >>> dict(estimator_checks("fg-w", tangents=2, budget=1000))["expectation"]()
        Traceback (most recent call last):
            ...
        AssertionError: fg-w: expectation: undecided: too noisy to decide: ...

        In a test suite:

        >>> import pytest
        >>> CHECKS = dict(estimator_checks("dfa"))
        >>> @pytest.mark.parametrize("name", CHECKS)
        ... def test_contract(name):
        ...     CHECKS[name]()
    """
    settings = {"network": network, "loss": loss, "seed": seed, "false_alarms": false_alarms, "budget": budget}
    subject = Subject(estimator, **settings, **options)

    def carried_out(name: str) -> Finding:
        found = examine(name, subject)
        require(found, f"{subject.name}: {name}")
        return found

    for name in CHECKS:
        yield name, lambda name=name: carried_out(name)


def report_on(subject: Subject, watch: Callable[[str, Finding], object] = lambda name, finding: None) -> Report:
    """Carry out every check on a subject, and hand each finding to `watch` as it comes; no finding is raised."""
    findings = {}
    for name in CHECKS:
        findings[name] = examine(name, subject)
        watch(name, findings[name])
    return Report(subject.name, findings)


def check_estimator(
    estimator: str | type[Estimator],
    *,
    network: Callable[[], Problem] | None = None,
    loss="cross_entropy",
    seed: int = 0,
    false_alarms: float = ALPHA,
    budget: int = BUDGET,
    **options,
) -> Report:
    """Carry out every check of the contract of an estimator.

    False alarms: an estimator that is right fails any of the statistical checks with a chance of at most `false_alarms`, for
    all of them together; the other checks are no matter of chance. Power: a mistake of 5 % in the scale of the mean, of the
    whole or of a block, and one of 5 % in the total variance, is found with a chance of at least 90 %, if expectation and
    variance are declared.

    Args:
        estimator: a registered name, or a subclass of `fdfa_core.Estimator`.
        network: a function that returns (network, x, y), a float64 network and at least four samples, new and equal in every
            call; None for a small one of three blocks.
        loss: as for `make_estimator`.
        seed: of all random numbers; the same seed gives the same report, but for the time.
        false_alarms: chance that an estimator that is right fails.
        budget: most draws of one test; where they do not suffice, the check is undecided.
        **options: the estimator's own.

    Returns:
        the findings, which print as a table.

    Raises:
        AssertionError: a check failed or was left undecided; the message names all that did.
        InvalidInput: no estimator, an option that it does not have, or a network that does not fit.

    Examples:
        >>> from fdfa_core.testing import check_estimator
        >>> report = check_estimator("frozen", seed=0)
        >>> report.findings["variance"]
        Finding(outcome='holds', detail='no noise, as declared')
    """
    settings = {"network": network, "loss": loss, "seed": seed, "false_alarms": false_alarms, "budget": budget}
    subject = Subject(estimator, **settings, **options)
    report = report_on(subject)
    if not report.ok:
        said = [f"{name}: {report.findings[name].outcome}: {report.findings[name].detail}" for name in report.failed]
        raise AssertionError(f"{report.estimator}: " + "; ".join(said))
    return report


def _match(a: Estimator, b: Estimator, x: Tensor, y: Tensor, alpha: float, mistake: float, budget: int) -> Finding:
    """Compare means and total variances of two estimators' draws; see `assert_matches`."""
    first = [flat(e.sample(x, y, 8), draws=True) for e in (a, b)]
    names = [set(e.estimate(x, y)) for e in (a, b)]
    if names[0] != names[1] or first[0].shape != first[1].shape:
        return Finding("fails", "they return other parameters, or other shapes")
    if constant(first[0]) or constant(first[1]):
        if not (constant(first[0]) and constant(first[1])):
            return Finding("fails", "one of them has noise, and the other has none")
        wrong = differing(first[0][0], b.estimate(x, y))
        return Finding("fails", f"without noise, and they differ in {wrong}") if wrong else Finding("holds", "exactly")
    many = min(PILOT, budget)
    means = [mean_of(e, x, y, many) for e in (a, b)]
    middles = [flat(mean) for mean in means]
    to = Projections({name: (means[0][name] + g) / 2 for name, g in means[1].items()})
    spread = float((flat(b.sample(x, y, call_size(b)), draws=True) - middles[1]).square().sum(1).mean())

    def look(draws: Tensor, middle: Tensor) -> np.ndarray:
        return np.column_stack([(draws - middle).square().sum(1).numpy() / spread, to.of(draws)])

    pilot = draw(b, x, y, many, lambda draws: look(draws, middles[1]))
    primary = 1 + to.primary  # the variance, the whole, the blocks
    needed = planned(pilot[:, :primary], alpha / 2 / primary, mistake, samples=2)
    n = min(max(needed, PILOT), budget)
    both = [draw(e, x, y, n, lambda draws, m=m: look(draws, m)) for e, m in zip((a, b), middles, strict=True)]
    p = p_values(both[0], np.zeros(1), both[1])
    lost = rejected(p, primary, alpha)
    labels = ["variance", *to.names]
    if lost.any():
        worst = int(np.flatnonzero(lost)[0])
        found = " and ".join(f"{values[:, worst].mean():.4g}" for values in both)
        return Finding("fails", f"{labels[worst]}: {found}, in units of a reference (n = {n:,} each, p = {p[worst]:.1g})")
    said = f"variances at a ratio of {both[0][:, 0].mean() / both[1][:, 0].mean():.3f} (n = {n:,} each)"
    return Finding("undecided", noisy(said, needed, n, mistake)) if needed > budget else Finding("holds", said)


def require(finding: Finding, claim: str) -> None:
    """Raise `AssertionError` that names the claim unless nothing speaks against it."""
    if not finding.ok:
        raise AssertionError(f"{claim}: {finding.outcome}: {finding.detail}")


def assert_unbiased(
    estimator: Estimator,
    x: Tensor,
    y: Tensor,
    target: Mapping[str, Tensor] | None = None,
    *,
    alpha: float = ALPHA,
    mistake: float = MISTAKE,
    budget: int = BUDGET,
) -> None:
    """Assert that the mean of an estimator's draws on a batch is the true gradient, or a target.

    The scale along the target is tested in the whole, in each block and in each parameter, and the mean along four random
    directions, by t-tests. False alarms: at most `alpha` over all of them together (half by Bonferroni for the whole and the
    blocks, half by Holm for the rest). Power: a relative mistake of `mistake` in the scale of the whole or of one block is
    found with a chance of at least 90 %, since the number of draws follows from a pilot; a parameter with a small share of the
    gradient shows larger mistakes only. Estimators without noise are compared exactly.

    Args:
        estimator: one with a single state (`replicas=None`); its random stream moves on.
        x, y: the batch, in float64 where rounding should not count.
        target: a gradient per parameter; None for the true one.
        alpha, mistake, budget: chance of a false alarm, mistake to be found, and the most draws of a test.

    Raises:
        AssertionError: the mean is another one, or the budget does not suffice to tell.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected, make_estimator
        >>> from fdfa_core.testing import assert_unbiased
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0).double()
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4).double(), torch.arange(8) % 3
        >>> assert_unbiased(make_estimator("fg-a", net, seed=0), x, y)
        >>> assert_unbiased(make_estimator("dfa", net, seed=0), x, y)
        Traceback (most recent call last):
            ...
        AssertionError: the mean of dfa: fails: without noise, and another gradient in 0.affine.weight (...)
    """
    target = true_gradient(estimator.net, x, y, estimator.loss) if target is None else target
    found = mean_finding(estimator, x, y, target, alpha=alpha, mistake=mistake, budget=budget)
    require(found, f"the mean of {_named(estimator)}")


def assert_variance(
    estimator: Estimator,
    x: Tensor,
    y: Tensor,
    law: float | Mapping[str, float],
    *,
    alpha: float = ALPHA,
    mistake: float = MISTAKE,
    budget: int = BUDGET,
) -> None:
    """Assert that the total variance of an estimator's draws on a batch, the trace of their covariance, is what a law says.

    The mean squared distance of draws to their mean is compared with the law by a t-test. False alarms: at most `alpha` over
    the whole and the parameters together. Power: a relative mistake of `mistake` in the whole is found with a chance of at
    least 90 %.

    Args:
        estimator, x, y, alpha, mistake, budget: as for `assert_unbiased`.
        law: the total variance, or a variance for each parameter by name. 0 for an estimator without noise.

    Raises:
        AssertionError: the variance is another one, or the budget does not suffice to tell.
        InvalidInput: the law is negative, not finite, or has other names.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected, make_estimator, true_gradient
        >>> from fdfa_core.testing import assert_variance
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0).double()
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4).double(), torch.arange(8) % 3
        >>> norm2 = sum(float(g.square().sum()) for g in true_gradient(net, x, y).values())
        >>> parameters = sum(p.numel() for p in net.parameters())
        >>> assert_variance(make_estimator("fg-w", net, seed=0), x, y, (parameters + 1) * norm2)
    """
    found = variance_finding(estimator, x, y, law, alpha=alpha, mistake=mistake, budget=budget)
    require(found, f"the variance of {_named(estimator)}")


def assert_matches(
    a: Estimator,
    b: Estimator,
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = ALPHA,
    mistake: float = MISTAKE,
    budget: int = BUDGET,
) -> None:
    """Assert that two estimators have the same mean and the same total variance on a batch, such as two implementations of one.

    Welch's t-tests compare the total variance, the scale in the whole, in each block and in each parameter, and four random
    directions. False alarms: at most `alpha` over all together. Power: a relative difference of `mistake` in the variance, or
    in the scale of the whole or of a block, is found with a chance of at least 90 %. Without noise they are compared exactly.
    Laws that differ in higher moments only are not told apart.

    Args:
        a, b: the estimators; `b` sets the number of draws.
        x, y, alpha, mistake, budget: as for `assert_unbiased`.

    Raises:
        AssertionError: they differ, or the budget does not suffice to tell.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected, make_estimator
        >>> from fdfa_core.testing import assert_matches
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0).double()
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4).double(), torch.arange(8) % 3
        >>> assert_matches(make_estimator("zo", net, seed=0), make_estimator("fg-w", net, seed=1), x, y, mistake=0.1)
    """
    found = _match(a, b, x, y, alpha, mistake, budget)
    require(found, f"{_named(a)} against {_named(b)}")


def _named(estimator: Estimator) -> str:
    return getattr(estimator, "name", type(estimator).__name__)


def assert_no_side_effects(estimator: Estimator, x: Tensor, y: Tensor) -> None:
    """Assert that `estimate`, `sample` and `advance` touch nothing but the estimator's own state and random stream.

    Looked at are the network's parameters, buffers, `.grad`, flags, modes and hooks, the batch, and the global random streams
    of torch, NumPy and Python. No matter of chance: there are no false alarms, and what is touched on this batch is found.

    Args:
        estimator: its own state may learn in `advance`.
        x, y: the batch.

    Raises:
        AssertionError: what is touched, and by which call.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected, make_estimator
        >>> from fdfa_core.testing import assert_no_side_effects
        >>> net = fully_connected([4, 6, 3], batch_norm=True, seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> assert_no_side_effects(make_estimator("fdfa", net, seed=0), x, y)
    """
    contract.untouched(estimator, x, y)
