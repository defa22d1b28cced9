"""Identities of single methods, and replicas of a state."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from analysis import momentum
from analysis.theory import feedback_law
from fdfa_core import fully_connected
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import averages, make_estimator
from fdfa_core.gradients import true_gradient
from fdfa_core.networks.blocks import Block, BlockNetwork
from fdfa_core.perturbations import Gaussian
from toys import make_batch, make_toy
from twins import Recorder


def hidden(net, gradients):
    return {name: g for name, g in gradients.items() if net.block_of(name) < len(net) - 1}


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"per_sample": True}], ids=str)
def test_fg_w_projected_on_as_many_directions_as_parameters_is_the_gradient(options):
    net = make_toy("fc")
    x, y = make_batch(net)
    size = sum(p.numel() for p in net.parameters())
    found = make_estimator("fg-w", net, tangents=size, combine="projection", **options).estimate(x, y)
    for name, value in true_gradient(net, x, y).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("toy", "slope", "units"), [("fc", "sample", 10), ("fc_bn", "batch", 40)])
def test_fg_a_projected_on_as_many_directions_as_units_is_the_gradient(toy, slope, units):
    net = make_toy(toy)
    x, y = make_batch(net)
    found = make_estimator("fg-a", net, tangents=units, combine="projection", slope=slope).estimate(x, y)
    for name, value in true_gradient(net, x, y).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)


def test_projection_on_directions_that_repeat_is_that_on_their_span():
    class Repeating(Gaussian):
        def sample(self, shape, *, generator, dtype):
            return super().sample((1, *shape[1:]), generator=generator, dtype=dtype).repeat(shape[0], 1)

    net = make_toy("fc")
    x, y = make_batch(net)
    one = make_estimator("fg-w", net, combine="projection", perturbation=Repeating()).estimate(x, y)
    three = make_estimator("fg-w", net, combine="projection", perturbation=Repeating(), tangents=3).estimate(x, y)
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, rtol=0, atol=1e-12)


def test_frozen_moves_the_readout_alone():
    net = make_toy("fc")
    x, y = make_batch(net)
    found, truth = make_estimator("frozen", net).estimate(x, y), true_gradient(net, x, y)
    assert all((g == 0).all() for g in hidden(net, found).values())
    torch.testing.assert_close(found["2.weight"], truth["2.weight"])


@pytest.mark.parametrize("toy", ["fc", "conv", "dropout"])
def test_pepita_without_projection_gives_no_hidden_update(toy):
    """With dropout this holds only if both passes use the same masks."""
    net = make_toy(toy)
    x, y = make_batch(net)
    estimator = make_estimator("pepita", net)
    estimator.feedback[0] = torch.zeros_like(estimator.feedback[0])
    found = estimator.estimate(x, y)
    assert all((g.abs() < 1e-15).all() for g in hidden(net, found).values())
    assert found[list(found)[-1]].abs().max() > 0


def test_pepita_gives_activations_with_parameters_their_gradient():
    hidden_block = Block(nn.Linear(5, 4), nn.PReLU(4))
    net = BlockNetwork(hidden_block, nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    estimator = make_estimator("pepita", net)
    with torch.no_grad():
        error = (net(x).softmax(-1) - torch.nn.functional.one_hot(y, 3)) / len(x)
        moved = x + len(x) * error @ estimator.feedback[0].flatten(1)
        change = (hidden_block(x) - hidden_block(moved)) / len(x)
    expected = torch.autograd.grad(hidden_block(moved), list(hidden_block.parameters()), change)
    found = estimator.estimate(x, y)
    for (name, _), value in zip(net[0].named_parameters(prefix="0"), expected, strict=True):
        torch.testing.assert_close(found[name], value)


def test_dkp_feedback_gradient_of_the_last_hidden_block_is_the_readouts():
    net = make_toy("fc")
    x, y = make_batch(net)
    estimator = make_estimator("dkp", net)
    estimator.backward(x, y)
    trace = estimator.trace(x)
    found = estimator.feedback_gradients(trace, estimator.loss.error(trace.output, y)[1])[-1]
    torch.testing.assert_close(found, net[2].weight.grad, rtol=1e-12, atol=1e-14)


def test_dkp_feedback_approaches_a_readout_that_learns_at_the_same_rate_and_decay():
    """B_t − W_t = (1 − ηλ)^t (B_0 − W_0), whatever the batches and the other weights do."""
    net, rate, decay = make_toy("fc"), 0.2, 0.3
    estimator = make_estimator("dkp", net, feedback_optimizer="sgd", feedback_lr=rate, feedback_decay=decay)
    weights = torch.optim.SGD(net.parameters(), lr=rate, weight_decay=decay)
    start = estimator.feedback[-1] - net[2].weight.detach()
    for seed in range(20):
        estimator.backward(*make_batch(net, seed=seed))
        weights.step()
    torch.testing.assert_close(estimator.feedback[-1] - net[2].weight, (1 - rate * decay) ** 20 * start, rtol=1e-10, atol=1e-12)


def test_drtp_hidden_gradients_do_not_depend_on_the_output():
    net = make_toy("fc")
    x, y = make_batch(net)
    estimator = make_estimator("drtp", net)
    before = hidden(net, estimator.estimate(x, y))
    with torch.no_grad():
        net[2].weight.add_(1)
    after = hidden(net, estimator.estimate(x, y))
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_drtp_takes_probabilities_as_targets():
    net = make_toy("fc")
    x, y = make_batch(net)
    estimator = make_estimator("drtp", net)
    one_hot = torch.nn.functional.one_hot(y, 3).double()
    for name, value in estimator.estimate(x, y).items():
        torch.testing.assert_close(estimator.estimate(x, one_hot)[name], value, rtol=1e-12, atol=1e-15)


def test_fdfa_with_one_hidden_block_is_unbiased_once_the_feedback_is_the_readout():
    net = make_toy("dropout").eval()
    x, y = make_batch(net)
    estimator = make_estimator("fdfa", net)
    estimator.feedback = [net[1].weight.detach()]
    for name, value in true_gradient(net, x, y).items():
        torch.testing.assert_close(estimator.estimate(x, y)[name], value, rtol=1e-10, atol=1e-14)


def test_fa_with_the_weights_themselves_is_backpropagation():
    net = make_toy("conv")
    x, y = make_batch(net)
    estimator = make_estimator("fa", net)
    estimator.estimate(x, y)
    parameters = dict(net.named_parameters())
    estimator.feedback = {name: parameters[name].detach() for name in estimator.feedback}
    for name, value in true_gradient(net, x, y).items():
        torch.testing.assert_close(estimator.estimate(x, y)[name], value, rtol=1e-10, atol=1e-14)


def test_lg_with_one_hidden_block_is_fg_a():
    """Its local readout is the network's."""
    net = make_toy("dropout").eval()
    x, y = make_batch(net)
    local, whole = (make_estimator(method, net, seed=3).estimate(x, y) for method in ("lg-fg-a", "fg-a"))
    for name, value in whole.items():
        torch.testing.assert_close(local[name], value, rtol=1e-12, atol=1e-15)


def test_cosine_dfa_turns_the_feedback_towards_the_jacobian():
    net = make_toy("linear")
    estimator = make_estimator("cosine-dfa", net, feedback_lr=0.3, tangents=4)
    jacobian = net[2].weight.detach() @ net[1].affine.weight.detach()

    def cosine():
        return float(torch.nn.functional.cosine_similarity(estimator.feedback[0].flatten(), jacobian.flatten(), dim=0))

    start = cosine()
    for seed in range(200):
        estimator.advance(*make_batch(net, 8, seed))
    assert cosine() > max(start, 0.9)


def test_grape_turns_every_column_of_the_feedback_towards_the_jacobians():
    net = make_toy("linear")
    estimator = make_estimator("grape", net, feedback_lr=0.3, tangents=4)
    jacobian = net[2].weight.detach() @ net[1].affine.weight.detach()
    for seed in range(400):
        estimator.advance(*make_batch(net, 8, seed))
    cosines = torch.nn.functional.cosine_similarity(estimator.feedback[0], jacobian, dim=0)
    assert cosines.min() > 0.9
    torch.testing.assert_close(estimator.feedback[0].norm(dim=0), torch.ones(6).double())


# Replicas -------------------------------------------------------------------------------------------------------------

REPLICATED = [
    ("fdfa", {"feedback_lr": 0.3}),
    ("fdfa", {"feedback_rule": "adam", "joint": False, "tangents": 2}),
    ("fdfa", {"joint": "cyclic", "directions": "antithetic", "warmup": True}),
    ("cosine-dfa", {}),
    ("grape", {}),
    ("grape", {"order": "after", "joint": "cyclic", "tangents": 2}),
    ("dkp", {}),
    ("lg-fg-a", {"site": "post"}),
    ("lg-fg-w", {"readout_optimizer": "sgd"}),
]
R = 3
replicated = pytest.mark.parametrize(("method", "options"), REPLICATED, ids=str)


class Replay:
    """A law that hands out given draws."""

    name, kurtosis = "gaussian", 3.0

    def __init__(self, draws):
        self.draws = list(draws)

    def sample(self, shape, *, generator, dtype):
        drawn = self.draws.pop(0)
        assert tuple(shape) == tuple(drawn.shape)
        return drawn


def nth(state, r):
    """Replica r of a state that holds nothing but replicated tensors."""
    return [nth(part, r) for part in state] if isinstance(state, list | tuple) else state[r].clone()


@pytest.mark.parametrize("toy", ["fc_bn", "conv", "transformer"])
@replicated
def test_replicas_move_as_single_states_do(method, options, toy):
    net, law = make_toy(toy), Recorder(Gaussian())
    x, y = make_batch(net)
    random = {} if method == "dkp" else {"perturbation": law}
    many = make_estimator(method, net, replicas=R, **options, **random)
    many.estimate(x, y)  # makes the states
    key = "readouts" if method.startswith("lg") else "feedback"
    start = [nth(many.own_state()[key], r) for r in range(R)]
    law.take()
    for seed in range(3):
        many.advance(*make_batch(net, seed=seed))
    advanced = law.take()
    drawn = many.sample(x, y, R)
    used = law.take()
    for r in range(R):
        random = {} if method == "dkp" else {"perturbation": Replay([v[r] for v in advanced] + _of_replica(used, r))}
        single = make_estimator(method, net, **options, **random)
        single.load_own_state({**single.own_state(), key: start[r]})
        for seed in range(3):
            single.advance(*make_batch(net, seed=seed))
        assert_close(nth(many.own_state()[key], r), single.own_state()[key])
        for name, value in single.estimate(x, y).items():
            torch.testing.assert_close(drawn[name][r], value, rtol=1e-9, atol=1e-11)


def _of_replica(used, r):
    """The draws of an estimate by replica r (feedback methods take none, but where they refine the feedback first)."""
    return [v[r] for v in used]


def assert_close(found, expected):
    if isinstance(found, list):
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("method", "options"),
    [(m, o) for m, o in REPLICATED if not m.startswith("lg") and (m, o) != ("grape", {})],  # these draw at every estimate
    ids=str,
)
def test_a_replica_can_be_asked_for_alone(method, options):
    net = make_toy("fc")
    x, y = make_batch(net)
    estimator = make_estimator(method, net, replicas=R, **options)
    estimator.advance(x, y)
    all_of_them = estimator.sample(x, y, R)
    for r in range(R):
        alone = estimator.draws(x, y, 1, replica=r)
        for name, value in all_of_them.items():
            torch.testing.assert_close(alone[name][0], value[r], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("method", ["fdfa", "cosine-dfa", "grape"])
def test_replicas_are_distributed_as_single_estimators_are(method):
    """Kolmogorov–Smirnov on one entry's norm after three steps, level 1e-3."""
    net, count = make_toy("fc"), 300
    batches = [make_batch(net, seed=seed) for seed in range(3)]

    def norms(seed, replicas):
        estimator = make_estimator(method, net, seed=seed, replicas=replicas)
        for batch in batches:
            estimator.advance(*batch)
        return estimator.feedback[0].flatten(1 if replicas else 0).norm(dim=-1).reshape(-1)

    singles = torch.cat([norms(seed, None) for seed in range(count)])
    assert stats.ks_2samp(norms(1000, count).numpy(), singles.numpy()).pvalue > 1e-3


def test_replicas_do_not_move_together():
    net = make_toy("fc")
    estimator = make_estimator("fdfa", net, replicas=2000, feedback_lr=1.0)
    estimator.advance(*make_batch(net))
    b = estimator.feedback[0].flatten(1)
    b = b - b.mean(0)
    neighbours = (b[:-1] * b[1:]).sum(1)
    assert abs(neighbours.mean()) < 4 * neighbours.std() / len(neighbours) ** 0.5


# --- Averages over steps: their weights, and the estimators that average their gradient ----------------------------


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
