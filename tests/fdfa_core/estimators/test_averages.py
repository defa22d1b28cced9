"""One schedule of the weights of a moving average, for the estimators, the theory and the figures."""

import numpy as np
import pytest

from analysis import momentum
from analysis.theory import feedback_law
from fdfa_core.estimators import averages, make_estimator
from toys import make_batch, make_toy

RATES = (1.0, 0.5, 0.3, 0.1, 0.01)


@pytest.mark.parametrize("rate", RATES)
def test_weights_begin_as_a_plain_mean_and_stay_at_the_rate(rate):
    plain = averages.plain_items(rate)
    weights = [averages.weight(rate, t) for t in range(1, plain + 5)]
    assert weights == [1 / t for t in range(1, plain + 1)] + [rate] * 4
    assert averages.plain_items(rate, warmup=False) == 0
    assert {averages.weight(rate, t, warmup=False) for t in range(1, 9)} == {rate}


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("rate", RATES)
def test_theory_and_figures_follow_the_schedule_of_the_estimator(rate, warmup):
    net = make_toy("fc")
    estimator = make_estimator("fdfa", net, feedback_lr=rate, warmup=warmup)
    law = feedback_law(net, make_batch(net)[0], 2, feedback_lr=rate, warmup=warmup)
    variance, memory = 0.0, 1.0
    for step in range(1, 130):
        w = estimator.weight(step)
        variance, memory = (1 - w) ** 2 * variance + w**2, (1 - w) * memory
        np.testing.assert_allclose([law.factor(step), law.memory(step)], [variance, memory], rtol=1e-10, atol=1e-15)
        if step in (1, 7, 129):
            assert momentum.factor(rate, step, warmup) == pytest.approx(variance)
