"""Every estimator equals its slow twin, given the same perturbations, on every kind of network it serves."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import twins
from analysis.theory import predict
from analysis.theory.optimal import allocation
from fdfa_core import Block, BlockNetwork, fully_connected, true_gradient
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators import forward_feedback, make_estimator, weight_perturbation
from fdfa_core.estimators.activity_perturbation import first_linear
from fdfa_core.estimators.tangents import best_counts
from fdfa_core.linearisation.factored import dense
from fdfa_core.perturbations import Gaussian, LowRank
from toys import COUPLED, TOYS, WITH_PRE_SITE, make_batch, make_toy
from twins import Recorder, Slow

ALL = [name for name in TOYS if name != "dropout"]  # a mask cannot be handed to a twin
PRE = [name for name in WITH_PRE_SITE if name != "dropout"]
FEW = ["fc_bn", "conv", "transformer"]


def assert_equal(found, expected, tolerance=1e-10):
    assert set(found) == set(expected)
    for name, value in expected.items():
        value = value.detach()
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


def drift(net):
    """Move the weights, as training would."""
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.02)


class Case:
    """An estimator on a toy, with its draws recorded."""

    def __init__(self, method, toy, **options):
        self.net = make_toy(toy)
        self.x, self.y = make_batch(self.net)
        self.law = Recorder(Gaussian())
        if method not in ("dfa", "drtp", "dkp", "fa", "pepita", "frozen", "bp"):
            options["perturbation"] = self.law
        self.estimator = make_estimator(method, self.net, seed=3, **options)

    def estimate(self):
        """An estimate, the draws it took, and the slow network at the same point."""
        found = self.estimator.estimate(self.x, self.y)
        return found, self.law.take(), Slow(self.net, self.x, self.y)

    def steps(self, count=3):
        """Advance the state over different batches and weights; yields the slow network and draws of each step."""
        for seed in range(count):
            x, y = make_batch(self.net, seed=10 + seed)
            slow = Slow(self.net, x, y)
            self.estimator.advance(x, y)
            yield slow, self.law.take()
            drift(self.net)


@pytest.mark.parametrize("toy", ALL)
def test_bp_is_the_gradient(toy):
    found, _, slow = Case("bp", toy).estimate()
    assert_equal(found, slow.gradient())


@pytest.mark.parametrize("toy", ALL)
def test_fg_w(toy):
    found, (v,), slow = Case("fg-w", toy).estimate()
    assert_equal(found, twins.fg_w(slow, v))


@pytest.mark.parametrize("combine", ["mean", "projection"])
@pytest.mark.parametrize("toy", FEW)
def test_fg_w_of_several_tangents(toy, combine):
    found, (v,), slow = Case("fg-w", toy, tangents=3, combine=combine).estimate()
    assert_equal(found, twins.fg_w(slow, v, combine))


class RecordedLowRank(LowRank):
    """Directions of low rank, kept."""

    def sample_parameters(self, *arguments):
        self.drawn = super().sample_parameters(*arguments)
        return self.drawn.clone()


@pytest.mark.parametrize("toy", ALL)
def test_fg_w_of_low_rank(toy):
    net = make_toy(toy)
    law, batch = RecordedLowRank(rank=2), make_batch(net)
    found = make_estimator("fg-w", net, perturbation=law, seed=3).estimate(*batch)
    slow = Slow(net, *batch)
    assert_equal(found, twins.fg_w(slow, law.drawn))
    for name, v in slow.split(law.drawn[0]).items():
        assert v.dim() < 2 or torch.linalg.matrix_rank(v.flatten(1)) == min(2, len(v), v[0].numel()), name


@pytest.mark.parametrize("options", [{"epsilon": 0.3}, {"epsilon": 0.02, "tangents": 3, "clip": 0.05}], ids=str)
@pytest.mark.parametrize("toy", ALL)
def test_zo(toy, options):
    found, (v,), slow = Case("zo", toy, **options).estimate()
    assert_equal(found, twins.zo(slow, v, options["epsilon"], options.get("clip", math.inf)))


def test_zo_with_a_small_step_is_fg_w():
    found, (v,), slow = Case("zo", "conv", epsilon=1e-4).estimate()
    assert_equal(found, twins.fg_w(slow, v), tolerance=1e-4)


@pytest.mark.parametrize("toy", ["fc_bn", "dropout", "transformer"])
def test_draws_of_zo_side_by_side_are_those_one_by_one(toy, monkeypatch):
    """Batch normalisation moves its statistics and dropout draws its masks: both losses of a direction see the same."""
    net = make_toy(toy)
    x, y = make_batch(net)
    together = make_estimator("zo", net, seed=3).sample(x, y, 4)
    monkeypatch.setattr(weight_perturbation, "vmap", lambda *_, **__: refuse)
    assert_equal(make_estimator("zo", net, seed=3).sample(x, y, 4), together)


def refuse(*_):
    raise RuntimeError("vmap cannot follow this")


@pytest.mark.parametrize("toy", [name for name in ALL if name not in COUPLED])
def test_fg_w_per_sample(toy):
    found, (v,), slow = Case("fg-w", toy, per_sample=True).estimate()
    assert_equal(found, twins.fg_w_per_sample(slow, v))


@pytest.mark.parametrize("combine", ["mean", "projection"])
def test_fg_w_per_sample_of_several_tangents(combine):
    found, (v,), slow = Case("fg-w", "fc_bn_eval", per_sample=True, tangents=3, combine=combine).estimate()
    assert_equal(found, twins.fg_w_per_sample(slow, v, combine))


@pytest.mark.parametrize("toy", ALL)
def test_fg_a_at_block_outputs(toy):
    found, us, slow = Case("fg-a", toy, site="post").estimate()
    assert_equal(found, twins.fg_a(slow, us, site="post"))


@pytest.mark.parametrize("toy", PRE)
def test_fg_a_at_affine_outputs(toy):
    found, us, slow = Case("fg-a", toy).estimate()
    assert_equal(found, twins.fg_a(slow, us))


@pytest.mark.parametrize("toy", PRE)
def test_fg_a_of_active_units(toy):
    found, (u,), slow = Case("fg-a", toy, mask="active").estimate()
    moving = torch.cat([twins.active(slow, block) for block in slow.hidden], dim=-1)
    assert_equal(found, twins.fg_a(slow, [u * moving]))


@pytest.mark.parametrize("toy", ["fc", "fc_bn_eval", "residual", "transformer", "mixed"])
def test_fg_a_of_the_best_shares(toy):
    """Sample by sample: the mean over its first K_p directions alone, with K_p from the closed form of the theory."""
    net = make_toy(toy)
    x, y = make_batch(net, seed=4)
    case = make_estimator("fg-a", net, seed=3, site="post", tangents=6, allocation="optimal")
    found, slow = case.estimate(x, y), Slow(net, x, y)
    counts = allocation(net, x, y, site="post").counts(6 * len(x)).tolist()
    assert sum(counts) == 6 * len(x) and len(set(counts)) > 1
    units = sum(slow.site(block, "post").shape[1] for block in slow.hidden)
    shape, stream = (max(counts), len(x), units), torch.Generator().manual_seed(3)
    u = Gaussian().sample(shape, generator=stream, dtype=torch.float64)
    expected = {name: torch.zeros_like(g) for name, g in slow.gradient().items()} | slow.readout()
    for p, count in enumerate(counts):
        alone = torch.zeros_like(u)
        alone[:count, p] = u[:count, p]
        for name, g in twins.fg_a(slow, [alone], site="post").items():
            if int(name.split(".")[0]) < len(net) - 1:
                expected[name] = expected[name] + g * len(u) / max(count, 1)
    assert_equal(found, expected)


def test_equal_shares_of_equal_samples_are_plain_fg_a():
    net = make_toy("fc")
    x, y = (v[:1].repeat(4, *[1] * (v.dim() - 1)) for v in make_batch(net))
    plain, best = (make_estimator("fg-a", net, seed=1, tangents=2, allocation=a).sample(x, y, 3) for a in ("equal", "optimal"))
    assert all(torch.equal(plain[name], best[name]) for name in plain)


def test_a_sample_without_a_gradient_gets_no_directions_and_one_with_no_noise_gets_one():
    net = BlockNetwork(Block(nn.Linear(2, 1), nn.ReLU()), nn.Linear(1, 2)).double()
    with torch.no_grad():
        net[0].affine.weight.copy_(torch.tensor([[1.0, 0.0]])), net[0].affine.bias.zero_()
    x, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 1.0]], dtype=torch.float64), torch.tensor([0, 1, 1])
    signs = make_estimator("fg-a", net, perturbation="rademacher", tangents=2, allocation="optimal")  # one unit: s u is exact
    assert_equal(signs.estimate(x, y), true_gradient(net, x, y))
    assert signs.variance(x, y) == 0
    normal = make_estimator("fg-a", net, tangents=2, allocation="optimal")
    trace = normal.trace(x)
    groups = normal.perturbed(trace, normal.loss.error(trace.output, y)[1])
    counts = normal.shares(groups, len(x))[1].tolist()
    assert counts[1] == 0 and sum(counts) == 6 and min(counts[0], counts[2]) >= 1


def test_a_run_that_diverges_is_not_stopped_by_the_shares():
    net = make_toy("fc")
    with torch.no_grad():
        net.readout.weight.fill_(float("nan"))
    estimator = make_estimator("fg-a", net, allocation="optimal", check=False)
    estimator.backward(*make_batch(net))
    assert net[0].affine.weight.grad.isnan().any()


@pytest.mark.parametrize("seed", range(4))
def test_no_whole_numbers_beat_the_best_counts(seed):
    noise = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    noise[seed] = 0.0
    needed = noise > 0
    ways = [c for c in itertools.product(range(10), repeat=4) if sum(c) == 9]
    ways = [c for c in ways if all(k > 0 for k, need in zip(c, needed, strict=True) if need)]
    least = min(sum(float(b) / k for b, k in zip(noise, c, strict=True) if b > 0) for c in ways)
    counts = best_counts(noise, needed, 9)
    assert counts.sum() == 9 and float((noise / counts.clamp(min=1)).sum()) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slope": "batch"}, '"equal" with slope="batch"'),
        ({"combine": "projection"}, '"equal" with combine="projection"'),
        ({"perturbation": Recorder(Gaussian())}, '"equal" with a law of your own'),
    ],
)
def test_shares_that_nobody_knows_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        make_estimator("fg-a", make_toy("fc"), allocation="optimal", **options)


def test_shares_of_coupled_samples_and_too_few_directions_are_refused():
    net = make_toy("fc_bn")
    with pytest.raises(Unsupported, match="cannot serve batch normalisation in training mode"):
        make_estimator("fg-a", net, allocation="optimal").estimate(*make_batch(net))
    with pytest.raises(InvalidInput, match="total: got 1; accepted: at least 2"):
        best_counts(torch.ones(2), torch.ones(2), 1)
    with pytest.raises(Unsupported, match="given the batch alone"):
        predict("fg-a", make_toy("fc"), *make_batch(net), 2, allocation="optimal")


@pytest.mark.parametrize("options", [{}, {"rank": 2, "tangents": 2}], ids=str)
@pytest.mark.parametrize("toy", ALL)
def test_guess(toy, options):
    """FG-A along V ξ. The columns of V are orthonormal, and span the rows of the next weights, or the largest part of them."""
    case = Case("guess", toy, **options)
    found, (xi,), slow = case.estimate()
    parts, bases = [], [case.estimator.basis(block) for block in slow.hidden]
    for block, basis in zip(slow.hidden, bases, strict=True):
        units = slow.values[block]["post"][0].numel()
        size = units if basis is None else units // len(basis) * basis.shape[1]
        part, xi = xi[..., :size], xi[..., size:]
        parts.append(part if basis is None else (part.unflatten(-1, (-1, basis.shape[1])) @ basis.T).flatten(-2))
    assert xi.numel() == 0
    assert_equal(found, twins.fg_a(slow, [torch.cat(parts, -1)], site="post"))
    for block, basis in zip(slow.hidden, bases, strict=True):
        layer = first_linear(case.net[block + 1])
        if basis is not None:
            values, vectors = torch.linalg.eigh(layer.weight.T @ layer.weight)
            kept = vectors[:, -min(options.get("rank", len(layer.weight)), int((values > 1e-12).sum())):]
            torch.testing.assert_close(basis @ basis.T, kept @ kept.T)


def test_guess_takes_the_space_of_the_present_weights():
    net = fully_connected([5, 6, 3], seed=0).double()
    estimator = make_estimator("guess", net)
    before = estimator.basis(0)
    assert before.shape == (6, 3) and estimator.basis(0) is before
    with torch.no_grad():
        net.readout.weight.copy_(torch.eye(3, 6))
    assert estimator.basis(0)[3:].abs().max() == 0


def test_guess_takes_all_directions_where_the_next_block_does_not_begin_with_its_weights():
    linear = nn.Linear(6, 3)
    for before, known in ((nn.Flatten(), True), (nn.LayerNorm(6), False)):
        basis = make_estimator("guess", BlockNetwork(nn.Linear(5, 6), nn.Sequential(before, linear))).basis(0)
        assert (basis is not None) == known
    assert make_estimator("guess", BlockNetwork(nn.Linear(5, 6), linear)).basis(0).shape == (6, 3)
    linear.register_forward_pre_hook(lambda module, inputs: (inputs[0] ** 2,))
    assert make_estimator("guess", BlockNetwork(nn.Linear(5, 6), linear)).basis(0) is None


@pytest.mark.parametrize("toy", PRE)
def test_lg_fg_a_of_active_units(toy):
    case = Case("lg-fg-a", toy, mask="active")
    found, us, slow = case.estimate()
    masked = [u * twins.active(slow, block) for block, u in zip(slow.hidden, us, strict=True)]
    assert_equal(found, twins.lg_fg_a(slow, masked, case.estimator.readouts))


@pytest.mark.parametrize("name, options", [("fg-a", {"site": "post"}), ("lg-fg-a", {"combine": "projection"})], ids=str)
def test_a_mask_that_would_not_hold_is_refused(name, options):
    with pytest.raises(InvalidInput, match="mask: got 'active'; accepted: \"none\" with " + "=.".join(*options.items())):
        make_estimator(name, make_toy("fc"), mask="active", **options)


def test_a_mask_leaves_idle_units_alone_and_takes_no_random_numbers():
    net = fully_connected([5, 30, 4, 3], activation="relu", seed=0).double()
    x, y = torch.ones(1, 5, dtype=torch.float64), torch.tensor([0])
    idle = net[0].affine(x)[0] <= 0
    plain, masked = (make_estimator("fg-a", net, seed=1, mask=mask) for mask in ("none", "active"))
    found = masked.estimate(x, y)["0.affine.bias"]
    assert idle.any() and (found[idle] == 0).all() and (found[~idle] != 0).all()
    assert (plain.estimate(x, y)["0.affine.bias"][idle] != 0).all()
    assert torch.equal(plain.generator.get_state(), masked.generator.get_state())


@pytest.mark.parametrize(
    "options",
    [
        {"readout": "perturbed"},
        {"joint": False},
        {"joint": False, "readout": "perturbed"},
        {"tangents": 3},
        {"tangents": 3, "combine": "projection"},
        {"tangents": 3, "combine": "projection", "joint": False},
        {"slope": "batch"},
        {"slope": "batch", "tangents": 3},
        {"slope": "batch", "tangents": 3, "combine": "projection"},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
@pytest.mark.parametrize("toy", FEW)
def test_fg_a_options(toy, options):
    found, us, slow = Case("fg-a", toy, site="post", **options).estimate()
    known = {key: value for key, value in options.items() if key != "tangents"}  # the twin counts the draws
    assert_equal(found, twins.fg_a(slow, us, site="post", **known))


@pytest.mark.parametrize("toy", ALL)
def test_dfa(toy):
    case = Case("dfa", toy)
    found, _, slow = case.estimate()
    assert_equal(found, twins.direct(slow, case.estimator.feedback))


@pytest.mark.parametrize("method", ["dfa", "drtp", "dkp", "fdfa", "cosine-dfa"])
@pytest.mark.parametrize("toy", FEW)
def test_feedback_of_a_rank_is_the_best_of_that_rank(toy, method):
    """By the eigenvectors of B Bᵀ, after steps that learn, which go on as without it."""
    case, whole = Case(method, toy, rank=2), Case(method, toy)
    for _ in zip(case.steps(), whole.steps(), strict=True):
        pass
    found, _, slow = case.estimate()
    feedback = []
    for b, same in zip(case.estimator.feedback, whole.estimator.feedback, strict=True):
        assert torch.equal(b, same)
        _, vectors = torch.linalg.eigh(b.flatten(1) @ b.flatten(1).T)
        feedback.append(vectors[:, -2:] @ vectors[:, -2:].T @ b.flatten(1))
    assert_equal(found, twins.direct(slow, feedback, *([twins.one_hot(slow)] if method == "drtp" else [])))


@pytest.mark.parametrize("toy", PRE)
def test_dfa_at_affine_outputs(toy):
    case = Case("dfa", toy, site="pre")
    found, _, slow = case.estimate()
    assert_equal(found, twins.direct(slow, case.estimator.feedback, site="pre"))


@pytest.mark.parametrize("toy", ALL)
def test_drtp(toy):
    case = Case("drtp", toy)
    found, _, slow = case.estimate()
    assert_equal(found, twins.direct(slow, case.estimator.feedback, twins.one_hot(slow)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("toy", FEW)
def test_dkp_feedback(toy, optimizer):
    case = Case("dkp", toy, feedback_optimizer=optimizer, feedback_lr=0.1, feedback_decay=0.2)
    expected = [b.clone() for b in case.estimator.feedback]
    stepper = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](expected, lr=0.1, weight_decay=0.2)
    for slow, _ in case.steps():
        for block, b in enumerate(expected):
            outer = [torch.outer(e, h) for e, h in zip(slow.error, slow.site(block, "post"), strict=True)]
            b.grad = sum(outer).view_as(b)
        stepper.step()
    found, _, slow = case.estimate()
    assert_equal(dict(enumerate(case.estimator.feedback)), dict(enumerate(expected)))
    assert_equal(found, twins.direct(slow, expected))


FDFA_OPTIONS = [
    {},
    {"joint": False},
    {"joint": "cyclic"},
    {"tangents": 2},
    {"warmup": True},
    {"joint": "cyclic", "warmup": True},
    {"directions": "antithetic"},
]


@pytest.mark.parametrize("options", FDFA_OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "default")
@pytest.mark.parametrize("toy", FEW)
def test_fdfa_feedback_by_momentum(toy, options):
    case = Case("fdfa", toy, feedback_lr=0.3, **options)
    expected = [torch.zeros(3, value.shape[1]).double() for value in _site_values(case)]
    updates = [0] * len(expected)
    for step, (slow, us) in enumerate(case.steps()):
        if options.get("directions") == "antithetic":
            us = [torch.cat([u, -u]) for u in us]
        for block, estimate in twins.jacobian_estimates(slow, us, _groups(options, slow, step), "post").items():
            updates[block] += 1
            alpha = max(0.3, 1 / updates[block]) if options.get("warmup") else 0.3
            expected[block] = (1 - alpha) * expected[block] + alpha * estimate
    found, _, slow = case.estimate()
    assert_equal({i: b.flatten(1) for i, b in enumerate(case.estimator.feedback)}, dict(enumerate(expected)))
    assert_equal(found, twins.direct(slow, expected))


def _site_values(case):
    slow = Slow(case.net, case.x, case.y)
    return [slow.site(block, "post") for block in slow.hidden]


def _groups(options, slow, step):
    blocks = list(slow.hidden)
    joint = options.get("joint", True)
    return [[step % len(blocks)]] if joint == "cyclic" else [blocks] if joint else [[b] for b in blocks]


@pytest.mark.parametrize("joint", [True, "cyclic"])
@pytest.mark.parametrize("toy", ALL)
def test_fdfa_feedback_by_adam(toy, joint):
    case = Case("fdfa", toy, feedback_rule="adam", feedback_lr=0.1, joint=joint)
    expected = [torch.zeros(3, value.shape[1]).double() for value in _site_values(case)]
    adam = torch.optim.Adam(expected, lr=0.1)
    for step, (slow, us) in enumerate(case.steps()):
        adam.zero_grad()
        groups = _groups({"joint": joint}, slow, step)
        for block, estimate in twins.jacobian_estimates(slow, us, groups, "post").items():
            expected[block].grad = expected[block] - estimate
        adam.step()
    assert_equal({i: b.flatten(1) for i, b in enumerate(case.estimator.feedback)}, dict(enumerate(expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fdfa_feedback_moves_as_torchs_adam_bit_by_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    found, expected = ([torch.zeros(10, 37, dtype=dtype), torch.zeros(10, 8, 3, dtype=dtype)] for _ in range(2))
    ours, torchs = torch.optim.Adam(found, lr=1e-3), torch.optim.Adam(expected, lr=1e-3)
    for step in range(20):
        for i in (0, 1) if step % 3 else (0,):  # as blocks that take turns, each with its own count
            gradient = torch.randn(found[i].shape, generator=generator).to(dtype)
            expected[i].grad = gradient.clone()
            forward_feedback._adam_step(ours, found[i], gradient)
        torchs.step()
        torchs.zero_grad()
    assert all(torch.equal(a, b) and a.abs().min() > 0 and a.grad is None for a, b in zip(found, expected, strict=True))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("toy", PRE)
def test_fdfa_at_affine_outputs(toy):
    case = Case("fdfa", toy, site="pre", feedback_lr=1.0)
    for slow, us in case.steps(1):
        expected = twins.jacobian_estimates(slow, us, _groups({}, slow, 0), "pre")
    found, _, slow = case.estimate()
    assert_equal({i: b.flatten(1) for i, b in enumerate(case.estimator.feedback)}, expected)
    assert_equal(found, twins.direct(slow, list(expected.values()), site="pre"))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("toy", FEW)
def test_cosine_dfa_feedback(toy, optimizer):
    case = Case("cosine-dfa", toy, feedback_optimizer=optimizer, feedback_lr=0.1)
    expected = [b.clone().flatten(1).requires_grad_() for b in case.estimator.feedback]
    stepper = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](expected, lr=0.1)
    for slow, us in case.steps():
        estimates = twins.jacobian_estimates(slow, us, _groups({}, slow, 0), "post")
        stepper.zero_grad()
        sum(1 - F.cosine_similarity(b.flatten(), estimates[i].flatten(), dim=0) for i, b in enumerate(expected)).backward()
        stepper.step()
    found, _, slow = case.estimate()
    expected = [b.detach() for b in expected]
    assert_equal({i: b.flatten(1) for i, b in enumerate(case.estimator.feedback)}, dict(enumerate(expected)))
    assert_equal(found, twins.direct(slow, expected))


GRAPE = [
    {},
    {"tangents": 2, "joint": False, "feedback_lr": 0.7},
    {"cosine": "frobenius", "normalise": False, "feedback_lr": 0.3},
    {"order": "after", "joint": "cyclic"},
    {"site": "pre"},
]


@pytest.mark.parametrize("options", GRAPE, ids=str)
@pytest.mark.parametrize("toy", FEW)
def test_grape(toy, options):
    """The state after some steps, what an estimate adds to it, and the gradient that follows from both."""
    if options.get("site") == "pre" and toy not in PRE:
        pytest.skip("no pre site")
    case = Case("grape", toy, **options)
    site = options.get("site", "post")

    def refined(feedback, slow, us, step):
        rule = options.get("feedback_lr", 10.0), options.get("cosine", "columns"), options.get("normalise", True)
        estimates = twins.jacobian_estimates(slow, us, _groups(options, slow, step), site)
        return [
            twins.grape_refinement(b, estimates[i], *rule) if i in estimates else b for i, b in enumerate(feedback)
        ]

    expected = [b.clone().flatten(1) for b in case.estimator.feedback]
    if options.get("normalise", True):
        for b in expected:
            torch.testing.assert_close(b.norm(dim=0), torch.ones(b.shape[1]).double())
    for step, (slow, us) in enumerate(case.steps()):
        expected = refined(expected, slow, us, step)
    assert_equal(_held(case), dict(enumerate(expected)))
    found, us, slow = case.estimate()
    used = expected if options.get("order") == "after" else refined(expected, slow, us, 3)
    assert_equal(found, twins.direct(slow, used, site=site))
    assert_equal(_held(case), dict(enumerate(expected)))  # an estimate keeps nothing of what it refined


def _held(case):
    return {i: b.flatten(1) for i, b in enumerate(case.estimator.feedback)}


def test_grape_trains_with_the_feedback_that_its_step_refined():
    case = Case("grape", "fc_bn")
    before = [b.clone().flatten(1) for b in case.estimator.feedback]
    slow = Slow(case.net, case.x, case.y)
    case.estimator.backward(case.x, case.y)
    estimates = twins.jacobian_estimates(slow, case.law.take(), _groups({}, slow, 0), "post")
    expected = [twins.grape_refinement(b, estimates[i], 10.0, "columns", True) for i, b in enumerate(before)]
    assert_equal(_held(case), dict(enumerate(expected)))
    assert_equal({name: p.grad for name, p in case.net.named_parameters()}, twins.direct(slow, expected))


@pytest.mark.parametrize("toy", ALL)
def test_grape_calibrates_by_the_gradient(toy):
    case = Case("grape", toy, calibrate_every=1)
    before = [b.clone() for b in case.estimator.feedback]
    found, drawn, slow = case.estimate()
    assert_equal(found, slow.gradient())
    case.estimator.backward(case.x, case.y)
    assert_equal({name: p.grad for name, p in case.net.named_parameters()}, slow.gradient())
    assert not drawn and all(torch.equal(a, b) for a, b in zip(before, case.estimator.feedback, strict=True))


def test_grape_calibrates_at_every_third_step_alone():
    case = Case("grape", "fc", calibrate_every=3)
    exact = []
    for _ in range(7):
        true = Slow(case.net, case.x, case.y).gradient()
        case.estimator.backward(case.x, case.y)
        exact.append(all(torch.allclose(p.grad, true[name], rtol=1e-9) for name, p in case.net.named_parameters()))
    assert exact == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("toy", ALL)
def test_fa(toy):
    case = Case("fa", toy)
    found, _, slow = case.estimate()
    assert_equal(found, twins.fa(slow, case.estimator.feedback))


@pytest.mark.parametrize("toy", ALL)
def test_pepita(toy):
    case = Case("pepita", toy, scale=0.5)
    found, _, slow = case.estimate()
    assert_equal(found, twins.pepita(slow, case.estimator.feedback[0]))


@pytest.mark.parametrize("toy", ALL)
def test_frozen(toy):
    found, _, slow = Case("frozen", toy).estimate()
    zeros = {name: torch.zeros_like(p) for name, p in slow.parameters.items()}
    assert_equal(found, zeros | slow.readout())


@pytest.mark.parametrize("toy", ALL)
def test_lg_fg_w(toy):
    case = Case("lg-fg-w", toy)
    found, vs, slow = case.estimate()
    assert_equal(found, twins.lg_fg_w(slow, vs, case.estimator.readouts))


@pytest.mark.parametrize("toy", ALL)
def test_lg_fg_a_at_block_outputs(toy):
    case = Case("lg-fg-a", toy, site="post")
    found, us, slow = case.estimate()
    assert_equal(found, twins.lg_fg_a(slow, us, case.estimator.readouts, "post"))


@pytest.mark.parametrize("toy", PRE)
def test_lg_fg_a_at_affine_outputs(toy):
    case = Case("lg-fg-a", toy)
    found, us, slow = case.estimate()
    assert_equal(found, twins.lg_fg_a(slow, us, case.estimator.readouts))


@pytest.mark.parametrize("combine", ["mean", "projection"])
@pytest.mark.parametrize("toy", FEW)
def test_lg_of_several_tangents(toy, combine):
    case = Case("lg-fg-w", toy, tangents=3, combine=combine)
    found, vs, slow = case.estimate()
    assert_equal(found, twins.lg_fg_w(slow, vs, case.estimator.readouts, combine))
    case = Case("lg-fg-a", toy, tangents=3, combine=combine, site="post")
    found, us, slow = case.estimate()
    assert_equal(found, twins.lg_fg_a(slow, us, case.estimator.readouts, "post", combine))


@pytest.mark.parametrize("toy", ALL)
@pytest.mark.parametrize("name, replicas", [("lg-fg-w", None), ("lg-fg-a", 3)])
def test_lg_own_gradient_is_that_of_the_local_losses_by_automatic_differentiation(toy, name, replicas):
    net = make_toy(toy)
    x, y = make_batch(net)
    estimator = make_estimator(name, net, seed=3, replicas=replicas, **({"site": "post"} if replicas else {}))
    found = estimator.own_gradients(x, y, replica=2)
    copied, local, total = copy.deepcopy(net), x, 0.0
    for i, block in enumerate(copied.hidden):
        local = block(local.detach())
        if i < len(copied.hidden) - 1:
            weight, bias = (t if replicas is None else t[2] for t in estimator.readouts[i])
            total = total + F.cross_entropy(local.flatten(1) @ weight.T + bias, y)
        else:
            total = total + F.cross_entropy(copied.readout(local), y)
    names, parameters = zip(*copied.named_parameters(), strict=True)
    assert_equal(found, dict(zip(names, torch.autograd.grad(total, parameters), strict=True)))
    for name, g in estimator.own_gradients(x, y).items() if replicas else ():  # of all of them
        assert_equal({name: dense(g)[2] if len(g.shape) > found[name].dim() else g}, {name: found[name]})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("toy", FEW)
def test_lg_readouts_descend_their_local_losses(toy, optimizer):
    case = Case("lg-fg-a", toy, site="post", readout_optimizer=optimizer, readout_lr=0.1)
    expected = [[t.clone() for t in pair] for pair in case.estimator.readouts]
    tensors = [t for pair in expected for t in pair]
    stepper = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](tensors, lr=0.1)
    for slow, _ in case.steps():
        for pair, gradients in zip(expected, twins.lg_readout_gradients(slow, expected), strict=True):
            for tensor, gradient in zip(pair, gradients, strict=True):
                tensor.grad = gradient
        stepper.step()
    found = [t for pair in case.estimator.readouts for t in pair]
    assert_equal(dict(enumerate(found)), dict(enumerate(tensors)))
