"""Averages over steps: their weights, and the estimators that average their gradient: by hand, variance, state."""

import numpy as np
import pytest
import torch

from analysis import momentum
from analysis.theory import feedback_law
from fdfa_core import fully_connected, make_estimator, true_gradient
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import averages
from toys import make_batch, make_toy

NAMES = ("fg-a-averaged", "fdfa-averaged")


def problem():
    generator = torch.Generator().manual_seed(2)
    net = fully_connected([6, 5, 4, 3], seed=0).double()
    return net, torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator)


def written(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_training_hands_on_the_average_of_the_plain_methods_gradients(name):
    net, x, y = problem()
    averaged = make_estimator(name, net, seed=7, gradient_lr=0.4)
    plain = make_estimator(name.removesuffix("-averaged"), net, seed=7)
    average = 0.0
    for t in range(1, 7):
        plain.backward(x, y)
        rate = max(0.4, 1 / t)
        average = (1 - rate) * average + rate * written(net)
        averaged.backward(x, y)
        torch.testing.assert_close(written(net), average)


@pytest.mark.parametrize("name", NAMES)
def test_advance_moves_the_state_as_training_does(name):
    net, x, y = problem()
    trained, shadow = (make_estimator(name, net, seed=3, gradient_lr=0.3) for _ in range(2))
    for _ in range(4):
        trained.backward(x, y)
        shadow.advance(x, y)
    for parameter in shadow.average:
        torch.testing.assert_close(shadow.average[parameter], trained.average[parameter])


def test_variance_of_the_average_falls_by_the_rate_over_two_minus_the_rate():
    net, x, y = problem()
    plain = make_estimator("fg-a", net, seed=1).sample(x, y, 3000)["0.affine.weight"]
    averaged = make_estimator("fg-a-averaged", net, seed=2, replicas=3000, gradient_lr=0.5)
    for _ in range(8):
        averaged.advance(x, y)
    drawn = averaged.sample(x, y, 3000)["0.affine.weight"]
    assert float(drawn.var(0).sum() / plain.var(0).sum()) == pytest.approx(1 / 3, rel=0.1)


def test_average_is_unbiased_at_frozen_weights():
    net, x, y = problem()
    averaged = make_estimator("fg-a-averaged", net, seed=4, replicas=4000, gradient_lr=0.2)
    for _ in range(10):
        averaged.advance(x, y)
    g, true = averaged.sample(x, y, 4000)["0.affine.weight"].flatten(1), true_gradient(net, x, y)["0.affine.weight"].flatten()
    slope = g @ true / true.square().sum()
    assert abs(float(slope.mean()) - 1) < 4 * float(slope.std()) / 4000**0.5


@pytest.mark.parametrize("name", NAMES)
def test_one_replica_draws_from_its_own_average(name):
    net, x, y = problem()
    averaged = make_estimator(name, net, seed=4, replicas=3, gradient_lr=1e-6)
    for _ in range(50):
        averaged.advance(x, y)
    draw = averaged.draws(x, y, 1, replica=2)["0.affine.weight"][0]
    distance = [float((draw - m).norm()) for m in averaged.average["0.affine.weight"]]
    assert min(range(3), key=distance.__getitem__) == 2


@pytest.mark.parametrize("name", NAMES)
def test_estimating_leaves_the_average_alone(name):
    net, x, y = problem()
    averaged = make_estimator(name, net, seed=4)
    averaged.advance(x, y)
    before = {n: m.clone() for n, m in averaged.average.items()}
    averaged.estimate(x, y)
    averaged.sample(x, y, 5)
    assert averaged.averaged == 1 and all(torch.equal(before[n], averaged.average[n]) for n in before)


@pytest.mark.parametrize("name", NAMES)
def test_state_is_restored_to_the_bit(name):
    net, x, y = problem()
    one, other = (make_estimator(name, net, seed=s) for s in (1, 2))
    one.advance(x, y)
    other.load_state_dict(one.state_dict())
    one.backward(x, y)
    expected = written(net)
    other.backward(x, y)
    assert torch.equal(written(net), expected)


@pytest.mark.parametrize("rate", [0, 1.5, -0.1, True, "fast"])
def test_impossible_rate_is_refused(rate):
    with pytest.raises(InvalidInput, match=r"gradient_lr: got .*\(0, 1\]"):
        make_estimator("fg-a-averaged", problem()[0], gradient_lr=rate)


# --- the schedule of the weights -------------------------------------------------------------------------------------


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
