"""Means and variances over perturbations, on a fixed batch.

Each test of a mean draws a number of estimates fixed beforehand and asks three questions at level ALARM/3 each: is the slope
against the target 1 (a t-test, whose power does not fall with the number of parameters), are ten fixed projections right
(Hotelling), is any single component wrong (Holm over t-tests). A correct estimator fails with probability ALARM per test, that
is about 0.3 % for this file on fresh seeds (seeds are fixed). `check_mean` also demands that a scale error of 10 % would
be caught with a probability of at least 90 %, from the standard error it has.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import twins
from analysis.statistics import holm
from analysis.theory import predict
from fdfa_core.estimators import make_estimator
from fdfa_core.gradients import true_gradient
from fdfa_core.networks.blocks import Block, BlockNetwork
from fdfa_core.networks.dense import fully_connected
from toys import make_batch, make_toy
from twins import Slow

ALARM = 1e-4
SCALE_ERROR, POWER = 0.1, 0.9
DRAWS = 10_000


def flat(gradients):
    """Draws (R, P) of all parameters."""
    return torch.cat([g.flatten(1) for g in gradients.values()], 1).numpy()


def p_values_of_the_mean(draws: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """p-values of "the mean of the draws (R, P) is the target (P,)"."""
    count = len(draws)
    slopes = draws @ target / (target @ target)
    p = {"slope": stats.ttest_1samp(slopes, 1.0).pvalue}
    moving = np.ptp(draws, axis=0) > 1e-12
    errors = draws[:, moving] - target[moving]
    projected = errors @ np.random.default_rng(0).standard_normal((errors.shape[1], 10))
    mean, covariance = projected.mean(0), np.cov(projected.T)
    t2 = count * mean @ np.linalg.solve(covariance, mean)
    p["projections"] = stats.f.sf(t2 * (count - 10) / (10 * (count - 1)), 10, count - 10)
    p["components"] = holm(stats.ttest_1samp(errors, 0.0).pvalue).min()
    return p


def check_mean(draws, target):
    p = p_values_of_the_mean(draws, target)
    assert min(p.values()) > ALARM / 3, p
    still = np.ptp(draws, axis=0) <= 1e-12  # exact parts, and zeros of batch normalisation
    np.testing.assert_allclose(draws[0, still], target[still], rtol=1e-10, atol=1e-12)
    slopes = draws @ target / (target @ target)
    reach = SCALE_ERROR * math.sqrt(len(slopes)) / slopes.std() - stats.norm.isf(ALARM / 6)
    assert stats.norm.cdf(reach) >= POWER


def prepared(toy, samples=4):
    net = make_toy(toy)
    return net, *make_batch(net, samples)


UNBIASED = [
    ("fg-w", "fc", {}),
    ("fg-w", "fc", {"perturbation": "sphere"}),
    ("fg-w", "fc_bn", {"perturbation": "rademacher"}),
    ("fg-w", "residual", {}),
    ("fg-a", "fc", {}),
    ("fg-a", "fc", {"perturbation": "rademacher", "site": "post"}),
    ("fg-a", "fc", {"joint": False, "readout": "perturbed"}),
    ("fg-a", "fc", {"readout": "perturbed", "perturbation": "sphere"}),
    ("fg-a", "fc", {"tangents": 2}),
    ("fg-a", "fc_bn", {"slope": "batch"}),
]


@pytest.mark.parametrize(("method", "toy", "options"), UNBIASED, ids=str)
def test_forward_gradients_are_unbiased(method, toy, options):
    net, x, y = prepared(toy)
    draws = flat(make_estimator(method, net, seed=1, **options).sample(x, y, DRAWS))
    target = torch.cat([g.flatten() for g in true_gradient(net, x, y).values()]).numpy()
    check_mean(draws, target)


def test_fg_w_with_a_direction_per_sample_is_unbiased():
    net, x, y = prepared("fc")
    estimator = make_estimator("fg-w", net, seed=1, per_sample=True)
    draws = flat(estimator.sample(x, y, DRAWS))
    check_mean(draws, torch.cat([g.flatten() for g in true_gradient(net, x, y).values()]).numpy())


def test_own_slopes_are_biased_under_batch_normalisation():
    """The reason for slope="batch": a sample's perturbation moves the losses of the others, unseen by its own slope."""
    net, x, y = prepared("fc_bn", samples=8)
    truth = true_gradient(net, x, y)["0.affine.0.weight"]
    error = {}
    for slope in ("sample", "batch"):
        draws = make_estimator("fg-a", net, seed=1, slope=slope).sample(x, y, 4 * DRAWS)["0.affine.0.weight"]
        error[slope] = float((draws.mean(0) - truth).norm() / truth.norm())
    assert error["sample"] > 0.3
    assert error["batch"] < 0.1


@pytest.mark.parametrize("method", ["lg-fg-w", "lg-fg-a"])
def test_local_greedy_gradients_are_unbiased_for_the_local_losses(method):
    net, x, y = prepared("fc")
    estimator = make_estimator(method, net, seed=1)
    draws = flat(estimator.sample(x, y, DRAWS))
    slow = Slow(net, x, y)
    sizes = [sum(p.numel() for p in slow.own(block).values()) for block in slow.hidden]
    axes = [math.sqrt(size) * torch.eye(size, dtype=torch.float64) for size in sizes]  # slopes along these are the gradient
    local = twins.lg_fg_w(slow, axes, estimator.readouts)
    check_mean(draws, torch.cat([local[name].flatten() for name in slow.names]).detach().numpy())


@pytest.mark.parametrize(("perturbation", "excess"), [("gaussian", 1), ("rademacher", -1), ("sphere", -1)])
@pytest.mark.parametrize("tangents", [1, 2])
def test_total_variance_of_fg_w(perturbation, excess, tangents):
    """(P + κ − 2) ‖∇ℓ‖²/K, on a network so small that κ matters; level ALARM, a 10 % error is caught with 99 %."""
    net = fully_connected([2, 2, 2], activation="tanh", seed=1).double()
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    estimator = make_estimator("fg-w", net, seed=1, perturbation=perturbation, tangents=tangents)
    draws = flat(estimator.sample(x, y, 4 * DRAWS))
    gradient = torch.cat([g.flatten() for g in true_gradient(net, x, y).values()]).numpy()
    expected = (len(gradient) + excess) * (gradient @ gradient) / tangents
    squares = ((draws - draws.mean(0)) ** 2).sum(1)
    total, se = squares.mean(), squares.std() / math.sqrt(len(draws))
    assert abs(math.log(total / expected)) * total / se < stats.norm.isf(ALARM / 2)
    assert stats.norm.cdf(0.1 * total / se - stats.norm.isf(ALARM / 2)) > 0.99


FEEDBACK = [
    ("fc", {}),
    ("fc_bn", {}),
    ("conv", {"joint": False}),
    ("transformer", {"tangents": 2}),
    ("fc", {"perturbation": "rademacher"}),
    ("fc", {"directions": "antithetic"}),
    ("fc", {"directions": "orthogonal"}),
    ("fc", {"directions": "orthogonal", "tangents": 4}),  # 16 directions in 10 dimensions: more than one block
]


@pytest.mark.parametrize(("toy", "options"), FEEDBACK, ids=str)
def test_mean_of_one_jacobian_estimate_is_the_mean_jacobian(toy, options):
    net, x, y = prepared(toy)
    estimator = make_estimator("fdfa", net, seed=1, replicas=DRAWS, feedback_lr=1.0, **options)
    estimator.advance(x, y)
    check_feedback(estimator, Slow(net, x, y))


def check_feedback(estimator, slow):
    own = torch.arange(len(slow.x))
    jacobians = [slow.jacobian(block, "post")[own, :, own].mean(0) for block in slow.hidden]  # a sample's own, O × n
    draws = np.concatenate([b.flatten(1).numpy() for b in estimator.feedback], 1)
    check_mean(draws, torch.cat([j.flatten() for j in jacobians]).detach().numpy())


@pytest.mark.parametrize("joint", [True, "cyclic"])
def test_stationary_mean_of_the_feedback_is_the_mean_jacobian(joint):
    net, x, y = prepared("fc")
    estimator = make_estimator("fdfa", net, seed=1, replicas=DRAWS // 2, feedback_lr=0.5, joint=joint)
    for _ in range(32 if joint is True else 64):  # 2^-32 of the start at zero is left
        estimator.advance(x, y)
    check_feedback(estimator, Slow(net, x, y))


def test_fdfa_is_unbiased_on_a_linear_network():
    net, x, y = prepared("linear")
    estimator = make_estimator("fdfa", net, seed=1, replicas=DRAWS, feedback_lr=1.0)
    other_x, other_y = make_batch(net, 6, seed=9)  # any batch tells the Jacobian
    estimator.advance(other_x, other_y)
    draws = flat(estimator.sample(x, y, DRAWS))
    check_mean(draws, torch.cat([g.flatten() for g in true_gradient(net, x, y).values()]).numpy())


def test_as_many_orthogonal_directions_as_units_give_a_linear_network_its_exact_jacobian():
    net = make_toy("linear")
    estimator = make_estimator("fdfa", net, directions="orthogonal", feedback_lr=1.0)
    estimator.advance(*make_batch(net, samples=10))  # 6 + 4 hidden units
    w2, w3 = net[1].affine.weight, net[2].weight
    torch.testing.assert_close(estimator.feedback[0], w3 @ w2, rtol=0, atol=1e-12)
    torch.testing.assert_close(estimator.feedback[1], w3.data, rtol=0, atol=1e-12)


def error_of_one_estimate(toy, samples, **options):
    """E‖D − J̄‖² over both blocks, and its standard error."""
    net, x, y = prepared(toy, samples)
    estimator = make_estimator("fdfa", net, seed=1, replicas=4000, feedback_lr=1.0, **options)
    estimator.advance(x, y)
    slow, own = Slow(net, x, y), torch.arange(samples)
    errors = sum(
        (b.flatten(2) - slow.jacobian(block, "post")[own, :, own].mean(0)).square().sum((1, 2))
        for block, b in enumerate(estimator.feedback)
    ).detach()
    return float(errors.mean()), float(errors.std()) / math.sqrt(len(errors))


def test_orthogonal_directions_lower_the_error_of_the_jacobian_estimate():
    independent, se1 = error_of_one_estimate("fc", 8)
    orthogonal, se2 = error_of_one_estimate("fc", 8, directions="orthogonal")
    assert independent - orthogonal > 5 * math.hypot(se1, se2)
    assert orthogonal / independent < 0.4  # 8 samples for 10 units: 1 − N/n is 0.2, the Jacobian's spread adds to it


def test_antithetic_directions_double_the_error_of_the_jacobian_estimate():
    independent, se1 = error_of_one_estimate("linear", 8)
    antithetic, se2 = error_of_one_estimate("linear", 8, directions="antithetic")
    assert abs(antithetic - 2 * independent) < 4 * math.hypot(2 * se1, se2)


@pytest.mark.parametrize(
    ("method", "options", "dimension"),
    [("fg-w", {}, 39), ("fg-w", {"per_sample": True}, 39), ("fg-a", {}, 4), ("lg-fg-w", {}, 24), ("lg-fg-a", {}, 4)],
    ids=str,
)
def test_squared_cosine_of_a_projection_is_its_share_of_the_dimensions(method, options, dimension):
    """E cos² = K/d for a Gaussian span; with one sample FG-A's error and its parameters' gradients have the same cosine."""
    net = fully_connected([5, 4, 3], seed=1, activation="tanh").double()
    x, y = make_batch(net, samples=1)
    names = list(dict(net.named_parameters()))[: None if method == "fg-w" else 2]
    draws = make_estimator(method, net, seed=1, tangents=3, combine="projection", **options).sample(x, y, 4000)
    draws = flat({name: draws[name] for name in names})
    truth = true_gradient(net, x, y)
    target = torch.cat([truth[name].flatten() for name in names]).numpy()
    cos2 = (draws @ target) ** 2 / ((draws**2).sum(1) * (target @ target))
    assert abs(cos2.mean() - 3 / dimension) < 4 * cos2.std() / math.sqrt(len(cos2))


# What the classes declare ---------------------------------------------------------------------------------------------

DECLARED = [
    ("fg-w", {}),
    ("fg-w", {"perturbation": "sphere", "tangents": 3}),
    ("fg-w", {"per_sample": True, "perturbation": "rademacher"}),
    ("zo", {"perturbation": "rademacher"}),
    ("fg-a", {}),
    ("fg-a", {"site": "post", "perturbation": "rademacher"}),
    ("fg-a", {"joint": False, "perturbation": "sphere", "tangents": 2}),
    ("fg-a", {"readout": "perturbed"}),
    ("fg-a", {"slope": "batch", "perturbation": "rademacher", "readout": "perturbed"}),
    ("fg-a", {"mask": "active"}),
    ("fg-a", {"allocation": "optimal"}),
    ("fg-a", {"allocation": "optimal", "tangents": 3, "joint": False, "site": "post", "perturbation": "rademacher"}),
    ("fg-a", {"allocation": "optimal", "tangents": 3, "readout": "perturbed", "perturbation": "sphere"}),
    ("fg-a", {"allocation": "optimal", "tangents": 3, "mask": "active"}),
    ("guess", {}),
    ("guess", {"rank": 2, "tangents": 2}),
    ("frozen", {}),
]


@pytest.mark.parametrize("toy", ["fc", "fc_bn_eval"])
@pytest.mark.parametrize(("method", "options"), DECLARED, ids=str)
def test_the_declared_variance_is_the_closed_form_of_the_theory(method, options, toy):
    net = make_toy(toy)
    x, y = make_batch(net)
    estimator = make_estimator(method, net, **options)
    declared = estimator.variance(x, y) if callable(estimator.variance) else estimator.variance
    settings = {"site": "pre", **options} if method == "fg-a" else options
    theory = predict(method, net, x, y, len(x), sampling="given_batch", **settings)
    assert declared == pytest.approx(theory.total("variance"), rel=1e-9)


@pytest.mark.parametrize("toy", ["shared_inside", "residual", "transformer", "mixed"])
@pytest.mark.parametrize("options", [{"perturbation": "rademacher"}, {"allocation": "optimal", "tangents": 3}], ids=str)
def test_the_declared_variance_of_blocks_of_any_kind(options, toy):
    """A layer that a block uses twice, tokens, a matrix that belongs to no layer."""
    net = make_toy(toy)
    x, y = make_batch(net, seed=4)
    theory = predict("fg-a", net, x, y, len(x), sampling="given_batch", site="post", **options)
    declared = make_estimator("fg-a", net, site="post", **options).variance(x, y)
    assert declared == pytest.approx(theory.total("variance"), rel=1e-9)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fg-w", {"tangents": 2, "combine": "projection"}),
        ("fg-w", {"perturbation": "low-rank-2"}),
        ("zo", {"epsilon": 0.5}),
        ("fg-a", {"slope": "batch", "perturbation": "sphere"}),
        ("fg-a", {"tangents": 2, "combine": "projection"}),
        ("grape", {}),
    ],
    ids=str,
)
def test_no_variance_is_declared_where_no_closed_form_is_known(method, options):
    net = make_toy("fc")
    x, y = make_batch(net)
    estimator = make_estimator(method, net, **options)
    assert (estimator.variance(x, y) if callable(estimator.variance) else estimator.variance) is None


@pytest.mark.parametrize("options", [{}, {"readout": "perturbed"}, {"allocation": "optimal", "tangents": 2}], ids=str)
def test_outputs_of_any_shape_have_the_variance_of_flat_ones(options):
    """A loss for each of four tokens sees (N, 4, 3), and flat outputs (N, 12) that are given that shape."""
    torch.manual_seed(0)
    hidden, readout = Block(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3)
    nets = [BlockNetwork(hidden, readout, input_shape=(4, 6)), BlockNetwork(hidden, nn.Sequential(readout, nn.Flatten()))]
    x, y = torch.randn(5, 4, 6), torch.randint(3, (5, 4))

    def loss(outputs, targets):
        return F.cross_entropy(outputs.view(-1, 4, 3).transpose(1, 2), targets, reduction="none").mean(1)

    shaped, flattened = (make_estimator("fg-a", net.double(), loss=loss, **options).variance(x.double(), y) for net in nets)
    assert shaped == pytest.approx(flattened, rel=1e-12) and shaped > 0


@pytest.mark.parametrize("method", ["fg-a", "guess", "lg-fg-a"])
def test_bias_is_declared_where_samples_are_coupled(method):
    assert make_estimator(method, make_toy("fc_bn")).expectation == "biased"
    assert make_estimator(method, make_toy("fc_bn_eval")).expectation != "biased"


def test_the_average_declares_what_it_holds_with_the_declared_gradient_in_it():
    net = make_toy("fc")
    x, y = make_batch(net)
    averaged, plain = make_estimator("fg-a-averaged", net, gradient_lr=0.25), make_estimator("fg-a", net)
    assert averaged.expectation == "gradient" and averaged.variance(x, y) == pytest.approx(plain.variance(x, y))
    for _ in range(5):
        averaged.advance(x, y)
    truth = true_gradient(net, x, y)
    for name, g in averaged.expectation(x, y).items():
        torch.testing.assert_close(g, 0.75 * averaged.average[name] + 0.25 * truth[name])
    assert averaged.variance(x, y) == pytest.approx(plain.variance(x, y) / 16)
    assert make_estimator("fdfa-averaged", net).expectation == "biased"


def test_a_given_state_without_noise_is_declared_as_such():
    net = make_toy("fc")
    x, y = make_batch(net)
    assert make_estimator("fdfa-averaged", net).variance(x, y) == 0.0
    assert make_estimator("grape", net, order="after").variance == 0.0 == make_estimator("dkp", net).variance
