"""Laws derived from the closed forms."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.theory import conditions, difference, feedback_drift, feedback_law, lag_bias, laws, optimal, predict
from analysis.theory.conditions import example, weights_leak_less
from analysis.theory.laws import contest
from fdfa_core import fully_connected
from fdfa_core.errors import InvalidInput


@pytest.mark.parametrize("kurtosis, law", [(3, "gaussian"), (1, "rademacher")])
@pytest.mark.parametrize("block", [0, 1])
def test_average_variance_of_activity_perturbation_of_one_layer(kurtosis, law, block):
    net, x, y = example([4, 5, 3, 2])
    weight = f"{block}.affine.weight"
    moments = laws.average_moments(predict("bp", net, x, y, 7), [weight])
    units, fan_in = net.get_parameter(weight).shape
    table = laws.average_variance(*moments, units=units, fan_in=fan_in, batch_size=7, kurtosis=kurtosis)
    found = predict("fg-a", net, x, y, 7, joint=False, perturbation=law).variance[weight].mean()
    assert table["fg-a"] == pytest.approx(float(found), rel=1e-12)


def test_average_variance_of_directions_that_the_batch_shares_by_enumeration():
    """u uᵀĝ over all signs u, and all batches of two of three samples drawn with replacement."""
    gradients = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    means = torch.stack([(a + b) / 2 for a in gradients for b in gradients])
    draws = torch.einsum("ui,uk,bkj->ubij", signs, signs, means).flatten(0, 1)
    within, square = gradients.var(0, correction=0).mean(), gradients.mean(0).square().mean()
    table = laws.average_variance(float(within), float(square), units=4, fan_in=5, batch_size=2, kurtosis=1)
    assert table["fg-a shared"] == pytest.approx(float(draws.var(0, correction=0).mean()), rel=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.9, 0.999])
def test_a_law_that_knows_the_gradient_is_unbiased_and_as_quiet_as_one_likes(share):
    gradient = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v, p = optimal.aligned_law(gradient, share)
    assert torch.allclose(torch.einsum("d,di,dj->ij", p, v, v), torch.eye(6, dtype=torch.float64), atol=1e-12)
    estimates = (v @ gradient)[:, None] * v
    assert torch.allclose(p @ estimates, gradient, atol=1e-12) and float(p.sum()) == pytest.approx(1)
    variance = p @ estimates.square().sum(1) - gradient.square().sum()
    assert float(variance) == pytest.approx((1 / share - 1) * float(gradient.square().sum()), rel=1e-10)


def test_no_whole_numbers_of_directions_beat_the_best_allocation_and_some_come_close():
    net, x, y = example([5, 6, 4, 3])
    x, y = x[:3], y[:3]
    best, total = optimal.allocation(net, x, y), 30

    @functools.cache
    def noise(sample, count):
        return predict("fg-a", net, x[sample : sample + 1], y[sample : sample + 1], 1, tangents=count).total("perturbation")

    def variance(*counts):
        """Perturbation variance of the batch with so many directions for each sample."""
        return sum(noise(sample, count) for sample, count in enumerate(counts)) / 9

    equal = variance(10, 10, 10)
    assert equal == pytest.approx(predict("fg-a", net, x, y, 3, tangents=10, sampling="given_batch").total("perturbation"))
    ratios = {(a, b): variance(a, b, total - a - b) / equal for a in range(1, 29) for b in range(1, 30 - a)}
    assert best.ratio <= min(ratios.values()) < 1.02 * best.ratio
    assert min(ratios, key=ratios.get) == tuple((best.shares[:2] * total).round().int().tolist())


@pytest.mark.parametrize("call", [
    lambda: optimal.aligned_law(torch.zeros(3), 0.5), lambda: optimal.aligned_law(torch.ones(1), 0.5),
    lambda: optimal.aligned_law(torch.ones(3), 1.0), lambda: optimal.aligned_law(torch.tensor([1.0, math.nan]), 0.5),
])  # fmt: skip
def test_a_law_of_nothing_is_refused(call):
    with pytest.raises(InvalidInput):
        call()


def smooth():
    """A tanh network of 12 parameters at one batch, and its loss as a function of them."""
    net = fully_connected([2, 2, 2], activation="tanh", seed=0).double()
    x, y = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64), torch.tensor([0, 1])
    named = {name: p.detach() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss(theta):
        parts = zip(named, theta.split(sizes), strict=True)
        return F.cross_entropy(torch.func.functional_call(net, {n: t.view_as(named[n]) for n, t in parts}, (x,)), y)

    return net, x, y, torch.cat([p.flatten() for p in named.values()]), loss


def test_bias_of_difference_quotients_by_enumeration_of_all_signs():
    """What the closed form leaves out falls with the fourth power of ε."""
    net, x, y, theta, loss = smooth()
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(theta))), dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(loss, theta)
    left = []
    for epsilon in (0.1, 0.05):
        slopes = torch.stack([(loss(theta + epsilon * v) - loss(theta - epsilon * v)) / (2 * epsilon) for v in signs])
        bias = (slopes.unsqueeze(1) * signs).mean(0) - gradient
        predicted = difference.difference_bias(net, x, y, epsilon, perturbation="rademacher")
        predicted = torch.cat([b.flatten() for b in predicted.values()])
        left.append(float((bias - predicted).norm()))
        assert left[-1] < 0.05 * float(bias.norm())
    assert left[0] / left[1] == pytest.approx(16, rel=0.05)


def test_bias_of_difference_quotients_along_normal_directions_is_that_of_the_smoothed_loss():
    """The mean is the gradient of E ℓ(θ + εv): a rule of cubature that is exact up to the fifth degree gives both sides."""
    net, x, y, theta, loss = smooth()
    n, epsilon = len(theta), 0.05
    # E f(v) for a quintic f (McNamee & Stenger 1967): the centre, ±√3 e_i, and (±√3 e_i ± √3 e_j)
    root, eye = math.sqrt(3), torch.eye(n, dtype=torch.float64)
    points = [(torch.zeros(n, dtype=torch.float64), 1 + n * (n - 7) / 18)]
    points += [(s * root * e, (4 - n) / 18) for e in eye for s in (1, -1)]
    pairs = itertools.product(itertools.combinations(eye, 2), itertools.product([1, -1], repeat=2))
    points += [(root * (s * a + t * b), 1 / 36) for (a, b), (s, t) in pairs]
    smoothed = sum(w * torch.autograd.functional.jacobian(loss, theta + epsilon * v) for v, w in points)
    bias = smoothed - torch.autograd.functional.jacobian(loss, theta)
    predicted = torch.cat([b.flatten() for b in difference.difference_bias(net, x, y, epsilon).values()])
    # E ∇ℓ(θ + εv) − ∇ℓ = (ε²/2) ∇Δℓ + O(ε⁴), which is (ε²/6)·3 ∇Δℓ
    assert float((bias - predicted).norm()) < 0.02 * float(bias.norm())


def test_moments_of_a_cut_slope_by_monte_carlo():
    v = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = (2.0 * v[:, 0]).clamp(-1.5, 1.5).unsqueeze(1) * v
    keep, variance = difference.clipped_slope(2.0, parameters=6, clip=1.5)
    along, squares = draws[:, 0] / 2.0, (draws - draws.mean(0)).square().sum(1)
    assert abs(along.mean() - keep) < 4 * along.std() / len(v) ** 0.5 < 0.02 * keep
    assert abs(squares.mean() - variance) < 4 * squares.std() / len(v) ** 0.5 < 0.02 * variance
    assert difference.clipped_slope(2.0, parameters=6, clip=1e3) == pytest.approx((1.0, 7 * 4.0))  # (P + 1) ‖∇‖²


def test_third_derivatives_of_a_large_network_are_refused():
    with pytest.raises(InvalidInput, match="net: parameters: got 8062; accepted: at most 1000"):
        difference.difference_bias(fully_connected([400, 20, 2], seed=0), torch.ones(1, 400), torch.tensor([0]), 0.1)


@pytest.mark.parametrize("epsilon", [0, -0.1, float("nan")])
def test_an_impossible_step_is_refused(epsilon):
    net, x, y, *_ = smooth()
    with pytest.raises(InvalidInput, match=f"epsilon: got {epsilon}; accepted: a finite positive number"):
        difference.difference_bias(net, x, y, epsilon)
    with pytest.raises(InvalidInput, match=f"epsilons: got {epsilon}; accepted: a finite positive number"):
        difference.quotient_errors(net.float(), x.float(), y, [0.1, epsilon])


def test_no_directions_are_refused():
    net, x, y, *_ = smooth()
    with pytest.raises(InvalidInput, match="directions: got 0"):
        difference.quotient_errors(net.float(), x.float(), y, [0.1], directions=0)


@pytest.mark.parametrize("kind", ["shared", "per sample"])
def test_average_variance_of_weight_perturbation(kind):
    net, x, y = example([4, 5, 2])
    size = sum(p.numel() for p in net.parameters())  # all parameters share the direction, as one layer of 1 × P weights would
    moments = laws.average_moments(predict("bp", net, x, y, 7))
    table = laws.average_variance(*moments, units=1, fan_in=size, batch_size=7)
    found = predict("fg-w", net, x, y, 7, per_sample=kind == "per sample")
    assert table[f"fg-w {kind}"] == pytest.approx(found.total() / size, rel=1e-12)


def test_average_variance_is_the_published_table_for_gaussian_directions():
    table = laws.average_variance(2.0, 5.0, units=4, fan_in=6, batch_size=3)
    assert table["fg-w shared"] == pytest.approx((24 + 2) / 3 * 2 + (24 + 1) * 5)
    assert table["fg-w per sample"] == pytest.approx((24 + 2) / 3 * 2 + (24 + 1) / 3 * 5)
    assert table["fg-a shared"] == pytest.approx((4 + 2) / 3 * 2 + (4 + 1) * 5)
    assert table["fg-a"] == pytest.approx((4 + 2) / 3 * 2 + (4 + 1) / 3 * 5)


def test_noise_to_signal_of_weight_perturbation_given_the_batch_depends_on_nothing_but_size():
    net, x, y = example([4, 5, 2])
    size = sum(p.numel() for p in net.parameters())
    for law, kurtosis in (("gaussian", 3), ("rademacher", 1)):
        found = predict("fg-w", net, x, y, len(x), sampling="given_batch", perturbation=law, tangents=2)
        assert found.total() / found.total("target") == pytest.approx((size + kurtosis - 2) / 2, rel=1e-12)


@pytest.mark.parametrize(
    "name, options, expected",
    [("bp", {}, 0), ("fg-w", {"per_sample": True}, 2), ("fg-a", {"readout": "perturbed"}, 1), ("fg-a", {}, 1)],
    ids=str,
)
def test_width_slopes_of_the_first_layer(name, options, expected):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 10, generator=generator), torch.randint(0, 3, (32,), generator=generator)
    cases = [(n, fully_connected([10, n, 3], seed=1), x, y, 16) for n in (64, 128, 256, 512, 1024)]
    found = laws.slopes(laws.sweep(name, cases, **options))
    slope = found[found.parameter == "0.affine.weight"].slope.item()
    assert slope == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("bp", {}, -1),
        ("fg-a", {}, -1),
        ("fg-w", {"per_sample": True}, -1),
        ("fdfa", {"feedback_lr": 0.1}, None),
    ],
    ids=str,
)
def test_batch_slopes(name, options, expected):
    net, x, y = example([4, 5, 4, 2])
    found = laws.slopes(laws.sweep(name, [(n, net, x, y, n) for n in (1, 4, 16, 64)], **options))
    whole = found[found.level == "network"]
    if expected is None:  # the cross part falls twice as fast
        assert -2 < whole.slope.item() < -1 and whole.curvature.item() > 0
    else:
        assert whole.slope.item() == pytest.approx(expected, abs=1e-9)
        assert whole.curvature.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("combine", ["mean", "projection"])
@pytest.mark.parametrize("tangents", [1, 3])
def test_expected_cosine_by_monte_carlo(combine, tangents):
    generator, size = torch.Generator().manual_seed(0), 7
    v = torch.randn(200_000, tangents, size, generator=generator, dtype=torch.float64)
    if combine == "mean":
        g = (v[..., :1] * v).sum(1)  # the gradient is the first axis
        cosine = g[:, 0] / g.norm(dim=1)
    else:
        basis = torch.linalg.qr(v.mT)[0]
        cosine = basis[:, 0].norm(dim=1)
    for found, expected in (
        (cosine, laws.expected_cosine(size, tangents, combine)),
        (cosine.square(), laws.expected_squared_cosine(size, tangents, combine)),
    ):
        assert abs(float(found.mean()) - expected) < 4.5 * float(found.std()) / len(found) ** 0.5  # false alarm 7e-6


def rank_one_cosines(jacobian, draws=40_000):
    """Frobenius cosines (draws,), and mean cosines of columns (draws,), of pieces (J p) pᵀ with J."""
    p = torch.randn(draws, jacobian.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pieces = (p @ jacobian.T).unsqueeze(2) * p.unsqueeze(1)
    whole = (pieces * jacobian).sum((1, 2)) / pieces.norm(dim=(1, 2)) / jacobian.norm()
    return whole, torch.cosine_similarity(pieces, jacobian.unsqueeze(0), dim=1).mean(1)


def spectrum(*values, units=7):
    """A Jacobian with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(8)
    left = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(units, len(values), generator=generator, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("values", [(2.0,), (1.0, 1.0, 1.0), (5.0, 1.0, 0.1), (3.0, 0.0)], ids=str)
def test_squared_cosine_of_a_rank_one_piece_by_monte_carlo(values):
    """40,000 draws; the mean square is the same for every spectrum, the mean lies between the published bound and its root."""
    jacobian = spectrum(*values)
    cosines, _ = rank_one_cosines(jacobian)
    square = cosines.square()
    assert abs(square.mean() - laws.rank_one_squared_cosine(7)) < 4 * square.std() / len(square) ** 0.5
    margin = 4 * float(cosines.std()) / len(cosines) ** 0.5
    assert laws.rank_one_cosine_bound(jacobian) - margin < float(cosines.mean()) < 7**-0.5


def test_the_published_bound_is_close_for_one_output_and_loose_for_a_flat_spectrum():
    one, flat = spectrum(2.0, units=50), spectrum(1.0, 1.0, 1.0, units=50)
    assert laws.rank_one_cosine_bound(one) == pytest.approx(math.sqrt(2 / (math.pi * 50)), rel=1e-12)
    assert laws.rank_one_cosine_bound(flat) == pytest.approx(math.sqrt(2 / (math.pi * 150)), rel=1e-12)
    assert 1 < laws.expected_cosine(50) / laws.rank_one_cosine_bound(one) < 1.01
    assert rank_one_cosines(flat)[0].mean() > 1.5 * laws.rank_one_cosine_bound(flat)


def test_cosine_of_columns_of_a_rank_one_piece_by_monte_carlo():
    jacobian = spectrum(2.0)
    _, columns = rank_one_cosines(jacobian)
    assert abs(columns.mean() - laws.rank_one_column_cosine(jacobian)) < 4 * columns.std() / len(columns) ** 0.5


def test_laws_of_rank_one_pieces_refuse():
    with pytest.raises(InvalidInput, match="units: got 0"):
        laws.rank_one_squared_cosine(0)
    with pytest.raises(InvalidInput, match="outputs: got 3; accepted: 1"):
        laws.rank_one_column_cosine(spectrum(1.0, 1.0, 1.0))


def test_expected_cosine_of_a_complete_projection_is_one():
    assert laws.expected_cosine(5, 5, "projection") == 1.0


def test_expected_cosine_of_many_dimensions():
    assert laws.expected_cosine(10**7) == pytest.approx(math.sqrt(2 / (math.pi * 10**7)), rel=1e-6)


@pytest.mark.parametrize("arguments", [(0, 1, "mean"), (5, 6, "projection"), (5, 0, "mean"), (5, 1, "sum")])
def test_expected_cosine_refuses(arguments):
    with pytest.raises(InvalidInput):
        laws.expected_cosine(*arguments)


def test_projection_keeps_a_share_of_the_gradient():
    net, x, y = example([3, 2, 2])
    size = sum(p.numel() for p in net.parameters())
    found = predict("fg-w", net, x, y, len(x), sampling="given_batch", combine="projection", tangents=4)
    second = found.total("mean") + found.total()
    assert second == pytest.approx(found.total("target") * laws.expected_squared_cosine(size, 4, "projection"), rel=1e-12)
    whole = predict("fg-w", net, x, y, len(x), sampling="given_batch", combine="projection", tangents=size)
    assert whole.total("mse") == pytest.approx(0, abs=1e-15)


def test_projection_variance_by_monte_carlo():
    net, x, y = example([2, 1, 2])
    found = predict("fg-w", net, x, y, len(x), sampling="given_batch", combine="projection", tangents=3)
    g = torch.cat([v.flatten() for v in found.target.values()])
    v = torch.randn(100_000, len(g), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(v)[0]
    drawn = (basis @ (basis.mT @ g[:, None]))[..., 0]
    expected = torch.cat([v.flatten() for v in found.variance.values()])
    deviation = (drawn - drawn.mean(0)).square()
    assert ((deviation.mean(0) - expected).abs() < 5 * deviation.std(0) / len(drawn) ** 0.5).all()  # false alarm 4e-6 in all


def test_tracking_rate_minimises_the_feedbacks_error():
    variance, drift2 = 3.0, 1e-6
    rate = laws.tracking_feedback_lr(variance, drift2)
    rates = np.geomspace(rate / 3, rate * 3, 2001)
    assert rates[np.argmin(rates / 2 * variance + drift2 / rates**2)] == pytest.approx(rate, rel=2e-3)


def test_lag_of_the_feedback_under_a_linear_drift():
    alpha, drift, held, jacobian = 0.2, 0.01, 0.0, 1.0
    for _ in range(400):  # E[B] follows the mean of D
        jacobian += drift
        used = held
        held = (1 - alpha) * held + alpha * jacobian
    assert used - jacobian == pytest.approx(-drift / alpha, rel=1e-10)


def test_lag_bias_is_the_gradient_of_the_lag():
    net, x, y = example([4, 5, 3, 2])
    held = [b.view(2, -1) for b in feedback_law(net, x, 1).mean()]
    drift = [torch.randn(b.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i, b in enumerate(held)]
    late = predict("dfa", net, x, y, 4, feedback=[b - v / 0.1 for b, v in zip(held, drift, strict=True)]).mean
    found, mean = lag_bias(net, x, y, drift, 0.1), predict("fdfa", net, x, y, 4).mean
    for name in ("0.affine.weight", "0.affine.bias", "1.affine.weight"):
        torch.testing.assert_close(found[name], late[name] - mean[name], rtol=1e-9, atol=1e-12)


def test_drift_is_the_mean_change_of_the_jacobian():
    net, x, _ = example([4, 5, 3, 2])
    after, *_ = example([4, 5, 3, 2], seed=1)
    drift = feedback_drift(net, after, x, 10)
    torch.testing.assert_close(drift[1] * 10, after[2].weight.detach() - net[2].weight.detach())


def test_best_rate_under_drift_minimises_the_gradients_error():
    net, x, y = example([4, 5, 3, 2])
    generator = torch.Generator().manual_seed(0)
    drift = [1e-3 * torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (5, 3)]
    error = laws.DriftError.of(net, x, y, 8, drift)
    best = error.best_feedback_lr()
    assert 0.001 < best < 0.9
    assert all(error.mse(best) <= error.mse(rate) * (1 + 1e-9) for rate in np.geomspace(1e-4, 1, 200))


def test_drift_error_without_drift_is_the_prediction():
    net, x, y = example([4, 5, 3, 2])
    still = [torch.zeros(2, n, dtype=torch.float64) for n in (5, 3)]
    found = predict("fdfa", net, x, y, 8, feedback_lr=0.3)
    expected = found.total("mse", 0) + found.total("mse", 1)
    assert laws.DriftError.of(net, x, y, 8, still).mse(0.3) == pytest.approx(expected, rel=1e-12)


def test_adam_feedback_variance_approximates_adam():
    generator, rate, sd = torch.Generator().manual_seed(0), 2e-3, 1.5
    b = torch.zeros(20_000)
    adam = torch.optim.Adam([b], lr=rate)
    for _ in range(4000):
        b.grad = b - sd * torch.randn(b.shape, generator=generator)
        adam.step()
    net, x, _ = example([4, 5, 2])
    law = feedback_law(net, x, 1)
    scale = sd / float(law.step_covariance[0][0, 0, 0].sqrt())
    predicted = scale * float(laws.adam_feedback_variance(law, rate)[0][0, 0])
    assert float(b.var()) == pytest.approx(predicted, rel=0.04)  # 1 % of Monte-Carlo error, 3 % for the approximation


def test_noise_cosine_approximates_the_angle_of_many_independent_perturbations():
    net, x, y = example([4, 5, 2])
    found = predict("fg-a", net, x, y, 10**6)
    assert laws.noise_cosine(found) == pytest.approx(1, abs=1e-3)


# --- Each side of every claim: a network where it holds and one where it does not


@pytest.fixture(scope="module")
def table():
    return conditions()


@pytest.mark.parametrize(
    "claim, verdicts",
    [
        ("Var FG-A < Var FG-W", [True, False, True]),
        ("Var FG-W (a direction per sample) < Var FG-W (shared)", [True]),
        ("Var FDFA < Var FG-A", [True, True, False, True, True]),
        ("MSE FDFA < MSE FG-A", [True, False]),
        ("bias² of FDFA < 10⁻²⁰ ‖∇‖²", [True, True, False]),
        ("Var FDFA (α → 0) < Var BP", [True, False]),
        ("feedback part summed over all lags: α = 0.01 < α = 1", [False]),
    ],
)
def test_where_a_claim_holds(table, claim, verdicts):
    assert table[table.claim == claim].holds.tolist() == verdicts


def test_failures_are_not_marginal(table):
    fails = table[~table.holds & (table.claim != "feedback part summed over all lags: α = 0.01 < α = 1")]
    assert (fails.ratio > 1.15).all()


def test_table_is_complete(table):
    assert table[["claim", "setting", "why"]].map(bool).all(axis=None)
    assert table[["a", "b", "ratio"]].notna().all(axis=None)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("readout", ["perturbed", "exact"])
def test_equal_input_norms_suffice_for_activities_to_beat_weights(seed, readout):
    net, x, y = example([9, 8, 8, 3], seed=seed)
    assert weights_leak_less(net, x, readout)
    activities = predict("fg-a", net, x, y, 4, readout=readout).total()
    assert activities < predict("fg-w", net, x, y, 4, per_sample=True).total() < predict("fg-w", net, x, y, 4).total()


def test_the_counterexample_violates_the_sufficient_condition():
    net, x, _ = example([20, 10, 3], readout=0.1, inputs=6.0)
    assert not weights_leak_less(net, x)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_one_hidden_layer_never_loses_in_any_component(activation, rate, batch_size):
    net, x, y = example([6, 5, 3], activation, gain=2.0)
    fdfa = predict("fdfa", net, x, y, batch_size, feedback_lr=rate).variance
    fg_a = predict("fg-a", net, x, y, batch_size, site="post").variance
    assert all((fdfa[name] <= fg_a[name] * (1 + 1e-10) + 1e-15).all() for name in fdfa)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_last_hidden_block_has_no_bias(activation):
    net, x, y = example([6, 5, 4, 3], activation, gain=2.0)
    bias = predict("fdfa", net, x, y, 4).bias
    torch.testing.assert_close(bias["1.affine.weight"], torch.zeros_like(bias["1.affine.weight"]), atol=1e-14, rtol=0)
    assert bias["0.affine.weight"].norm() > 1e-3


def test_feedback_rate_limit_is_where_the_errors_cross():
    found = contest(*example([6, 5, 4, 3], gain=2.0, seed=51))
    rate = float(found.feedback_lr_limit(380))
    assert 0 < rate < 1
    assert found.fdfa(380, rate) == pytest.approx(float(found.fg_a(380)), rel=1e-10)


def test_batch_limit_is_where_even_a_vanishing_rate_loses():
    found = contest(*example([6, 5, 4, 3], gain=2.0, seed=51))
    assert found.fdfa(0.99 * found.batch_limit, 1e-9) < found.fg_a(0.99 * found.batch_limit)
    assert found.fdfa(1.01 * found.batch_limit, 1e-9) > found.fg_a(1.01 * found.batch_limit)


def test_contest_equals_predictions():
    net, x, y = example([6, 5, 4, 3], gain=2.0, seed=51)
    found = contest(net, x, y, block=0, perturbation="rademacher")
    fdfa = predict("fdfa", net, x, y, 6, feedback_lr=0.2, perturbation="rademacher")
    fg_a = predict("fg-a", net, x, y, 6, site="post", perturbation="rademacher")
    assert found.fdfa(6, 0.2) == pytest.approx(fdfa.total("mse", 0), rel=1e-12)
    assert found.fg_a(6) == pytest.approx(fg_a.total("mse", 0), rel=1e-12)
