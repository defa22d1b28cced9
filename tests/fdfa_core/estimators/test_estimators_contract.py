"""What every estimator promises: it touches nothing but its own, repeats itself bit for bit, and stays local."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import available_estimators, estimator_class, estimator_options, make_estimator
from fdfa_core.memory import peak_memory
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.convolutional import convolutional
from fdfa_core.perturbations import Gaussian
from places import ROOT
from toys import COUPLED, make_batch, make_toy

METHODS = [
    ("bp", {}),
    ("bp", {"checkpoint": True}),
    ("fg-w", {}),
    ("fg-w", {"tangents": 3, "combine": "projection"}),
    ("fg-w", {"per_sample": True}),
    ("zo", {"epsilon": 0.1}),
    ("zo", {"epsilon": 0.1, "tangents": 3}),
    ("fg-a", {"site": "post"}),
    ("fg-a", {"site": "post", "joint": False, "readout": "perturbed", "slope": "batch"}),
    ("guess", {}),
    ("guess", {"rank": 2, "tangents": 2}),
    ("lg-fg-w", {}),
    ("lg-fg-a", {"site": "post", "tangents": 2}),
    ("fa", {}),
    ("dfa", {}),
    ("drtp", {}),
    ("dkp", {}),
    ("dkp", {"feedback_optimizer": "sgd"}),
    ("pepita", {}),
    ("fdfa", {}),
    ("fdfa", {"feedback_rule": "adam", "joint": "cyclic", "tangents": 2}),
    ("fdfa", {"directions": "orthogonal", "joint": False, "warmup": True}),
    ("cosine-dfa", {}),
    ("grape", {}),
    ("grape", {"order": "after", "cosine": "frobenius", "normalise": False, "joint": False, "feedback_lr": 0.5}),
    ("grape", {"calibrate_every": 2, "tangents": 2, "joint": "cyclic"}),
    ("frozen", {}),
    ("fg-a-averaged", {"site": "post"}),
    ("fdfa-averaged", {}),
]
LEARNING = [(m, o) for m, o in METHODS if estimator_class(m).stateful]
NO_DIRECTIONS = ("bp", "fa", "dfa", "drtp", "dkp", "pepita", "frozen")  # the same draw always, given the state
methods = pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
coupled_methods = pytest.mark.parametrize(
    ("method", "options"), [(m, o) for m, o in METHODS if not o.get("per_sample")], ids=str
)
learning = pytest.mark.parametrize(("method", "options"), LEARNING, ids=str)


def toy_for(options, coupled="fc_bn"):
    return make_toy("fc_bn_eval" if options.get("per_sample") else coupled)


def tensors(state):
    """All tensors of a nested state, in an order that the order of a dict's keys does not change."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = [state[key] for key in sorted(state, key=str)]
    return [t for part in state for t in tensors(part)] if isinstance(state, list | tuple) else []


def same_bits(found, expected):
    found, expected = tensors(found), tensors(expected)
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_every_registered_estimator_is_tested():
    ours = {name for name in available_estimators() if estimator_class(name).__module__.startswith("fdfa_core.")}
    assert {method for method, _ in METHODS} == ours


def test_the_documentation_names_every_estimator_and_option():
    page = (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")
    for method in {method for method, _ in METHODS}:
        assert f"`{method}`" in page or method.endswith("-averaged") and "`…-averaged`" in page
        for option in estimator_options(method):
            assert f"`{option}`" in page, f"{option} of {method}"


# Nothing else is touched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", ["fc_bn", "dropout"])
@methods
def test_looking_changes_nothing(method, options, toy):
    net = toy_for(options, toy)
    x, y = make_batch(net)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before = copy.deepcopy([list(net.state_dict().values()), [p.grad for p in net.parameters()], x, y])
    estimator = make_estimator(method, net, **options)
    stream = torch.random.get_rng_state()
    estimator.estimate(x, y)
    estimator.sample(x, y, 2)
    estimator.advance(x, y)
    assert same_bits([list(net.state_dict().values()), [p.grad for p in net.parameters()], x, y], before)
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert not any(h for m in net.modules() for h in (m._forward_hooks, m._forward_pre_hooks))


@pytest.mark.parametrize("toy", COUPLED)
@coupled_methods
def test_backward_moves_running_statistics_as_a_training_step_does(method, options, toy):
    net = make_toy(toy)
    twin = copy.deepcopy(net)
    x, y = make_batch(net)
    make_estimator(method, net, **options).backward(x, y)
    twin(x)
    for (name, buffer), expected in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=1e-12, atol=1e-14, msg=name)


@methods
def test_backward_writes_what_estimate_returns(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    expected = make_estimator(method, net, seed=5, **options).estimate(x, y)
    loss = make_estimator(method, net, seed=5, **options).backward(x, y)
    torch.testing.assert_close(loss, F.cross_entropy(net(x), y).detach())
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-14)


@methods
def test_training_again_replaces_gradients(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    for p in net.parameters():
        p.grad = torch.full_like(p, torch.nan)
    make_estimator(method, net, **options).backward(x, y)
    assert all(p.grad.isfinite().all() and not p.grad.requires_grad for p in net.parameters())


@methods
def test_parameters_that_do_not_train_get_no_gradient(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    net[0].requires_grad_(False)
    expected = make_estimator(method, net, seed=5, **options).estimate(x, y)
    make_estimator(method, net, seed=5, **options).backward(x, y)
    for name, p in net.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-14)
        else:
            assert p.grad is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@methods
def test_labels_of_any_integer_type_are_the_same_labels(method, options, loss, dtype):
    net = toy_for(options)
    x, y = make_batch(net)
    expected, found = (make_estimator(method, net, loss=loss, **options).estimate(x, labels) for labels in (y, y.to(dtype)))
    assert same_bits(found, expected)


@methods
def test_probabilities_may_be_wider_than_the_network(method, options):
    net = make_toy("fc", dtype=torch.float32)
    x, y = make_batch(net)
    p = F.one_hot(y, 3).double()
    expected, found = (make_estimator(method, net, **options).estimate(x, targets) for targets in (p.float(), p))
    assert same_bits(found, expected)


# Randomness and state -------------------------------------------------------------------------------------------------


@methods
def test_equal_seeds_give_equal_bits(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    found = [train(make_estimator(method, net, seed=4, **options), x, y) for _ in range(2)]
    assert same_bits(*found)


@methods
def test_other_seeds_give_other_estimates(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    one, other = (train(make_estimator(method, net, seed=seed, **options), x, y) for seed in (4, 5))
    assert same_bits(one, other) == (method in ("bp", "frozen"))


def train(estimator, x, y, steps=2):
    """Gradients of some steps at fixed weights."""
    found = []
    for _ in range(steps):
        estimator.backward(x, y)
        found.append([p.grad.clone() for p in estimator.net.parameters()])
    return found


@pytest.mark.parametrize("steps", [0, 3])
@methods
def test_a_saved_state_goes_on_to_the_same_bits(method, options, steps):
    net = toy_for(options)
    x, y = make_batch(net)
    estimator = make_estimator(method, net, seed=4, **options)
    train(estimator, x, y, steps)
    file = io.BytesIO()
    torch.save(estimator.state_dict(), file)
    expected = train(estimator, x, y)
    file.seek(0)
    resumed = make_estimator(method, net, seed=99, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same_bits(train(resumed, x, y), expected)
    assert same_bits(resumed.state_dict(), estimator.state_dict())


@learning
def test_a_saved_state_stays_as_it_was(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    estimator = make_estimator(method, net, **options)
    estimator.advance(x, y)
    saved = estimator.state_dict()
    before = copy.deepcopy(saved)
    estimator.advance(x, y)
    assert same_bits(saved, before)


@methods
def test_stateful_tells_whether_advancing_moves_the_state(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    estimator = make_estimator(method, net, **options)
    estimator.estimate(x, y)  # random feedback is made at the first batch
    before = copy.deepcopy(estimator.state_dict())
    estimator.advance(x, y)
    assert same_bits(estimator.state_dict(), before) != estimator.stateful


@learning
def test_advance_and_backward_move_the_state_alike(method, options):
    net = toy_for(options)
    x, y = make_batch(net)
    trains, watches = (make_estimator(method, net, seed=4, **options) for _ in range(2))
    if method in ("lg-fg-w", "lg-fg-a"):  # their own estimates and their readouts' start share the random stream
        trains.estimate(x, y)
        watches.estimate(x, y)
    trains.backward(x, y)
    watches.advance(x, y)
    own, other = trains.own_state(), watches.own_state()
    for found, expected in zip(tensors(own), tensors(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


# Locality -------------------------------------------------------------------------------------------------------------


class Mark(torch.autograd.Function):
    """Identity that notes in `sweeps` which blocks a sweep of reverse-mode differentiation passes."""

    sweeps: list[set[int]] = []
    generate_vmap_rule = True

    @staticmethod
    def forward(x, block):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.block = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        Mark.sweeps[-1].add(ctx.block)
        return gradient.clone(), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent.clone()


class Marked(nn.Module):
    def __init__(self, inner, block):
        super().__init__()
        self.inner, self.block = inner, block

    def forward(self, x):
        return Mark.apply(self.inner(Mark.apply(x, self.block)), self.block)


@pytest.fixture
def sweeps(monkeypatch):
    """The blocks that each sweep of reverse-mode differentiation passes."""
    plain = torch.autograd.grad

    def grad(*args, **kwargs):
        Mark.sweeps.append(set())
        return plain(*args, **kwargs)

    def backward(*args, **kwargs):
        raise AssertionError("an estimator called backward()")

    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(Mark, "sweeps", [])
    return Mark.sweeps


def marked():
    net = make_toy("fc")
    return BlockNetwork(*[Marked(block, i) for i, block in enumerate(net)], input_shape=(5,))


def test_recomputed_blocks_give_the_bits_of_bp_and_move_what_they_keep_once():
    shape = {"channels": [4, 8], "hidden": [8], "padding": 2, "dropout": 0.5}
    plain, recomputed = (convolutional((1, 16, 16), 3, **shape, seed=0) for _ in range(2))
    x, y = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    peaks = []
    for net, options in ((plain, {}), (recomputed, {"checkpoint": True})):
        estimator = make_estimator("bp", net, **options)
        torch.manual_seed(0)
        peaks.append([peak_memory(lambda estimator=estimator: estimator.backward(x, y)) for _ in range(2)][-1])
    assert same_bits({n: p.grad for n, p in plain.named_parameters()}, {n: p.grad for n, p in recomputed.named_parameters()})
    assert same_bits(dict(plain.named_buffers()), dict(recomputed.named_buffers())) and peaks[1] < 0.9 * peaks[0]


@pytest.mark.parametrize(("method", "options"), [case for case in METHODS if case[0] != "bp"], ids=str)
def test_no_reverse_mode_sweep_leaves_a_block(method, options, sweeps):
    net = marked()
    x, y = make_batch(net)
    estimator = make_estimator(method, net, **options)
    estimator.backward(x, y)
    estimator.sample(x, y, 2)
    assert max(map(len, sweeps), default=0) <= 1


def test_a_sweep_through_all_blocks_would_be_seen(sweeps):
    net = marked()
    make_estimator("bp", net).backward(*make_batch(net))
    assert sweeps == [{0, 1, 2}]


@pytest.mark.parametrize(("method", "options"), [case for case in METHODS if case[0] != "bp"], ids=str)
def test_blocks_are_called_on_inputs_without_history(method, options):
    net = make_toy("residual")
    seen = []

    def look(module, inputs):
        graph = inputs[0].grad_fn
        while graph is not None and graph.next_functions:  # as far back as there is history: to a leaf of this call
            seen.append(graph.name())
            graph = graph.next_functions[0][0]

    for block in net:
        block.register_forward_pre_hook(look)
    x, y = make_batch(net)
    make_estimator(method, net, **options).backward(x, y)
    assert set(seen) <= {"CloneBackward0"}  # of the leaf itself


# Properties -----------------------------------------------------------------------------------------------------------


class Permuted:
    """A law whose per-sample draws are those of another, in another order of samples."""

    name, kurtosis = "gaussian", 3.0

    def __init__(self, order):
        self.order = order

    def sample(self, shape, *, generator, dtype):
        drawn = Gaussian().sample(shape, generator=generator, dtype=dtype)
        return drawn[..., self.order, :] if drawn.shape[-2] == len(self.order) else drawn


PER_SAMPLE_DRAWS = [("fg-a", {"site": "post"}), ("lg-fg-a", {"site": "post"}), ("fdfa", {}), ("cosine-dfa", {}), ("grape", {})]
batches = st.tuples(st.integers(2, 6), st.integers(0, 10**6))


@settings(max_examples=10, deadline=None)
@given(batch=batches)
@pytest.mark.parametrize(
    ("method", "options"),
    [(m, o) for m, o in METHODS if m in NO_DIRECTIONS] + [("fg-w", {}), ("lg-fg-w", {})] + PER_SAMPLE_DRAWS,
    ids=str,
)
def test_the_order_of_samples_does_not_matter(method, options, batch):
    samples, seed = batch
    net = make_toy("fc_bn")
    x, y = make_batch(net, samples, seed)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    found = []
    for index in (torch.arange(samples), order):
        law = {"perturbation": Permuted(index)} if (method, options) in PER_SAMPLE_DRAWS else {}
        estimator = make_estimator(method, net, seed=seed, **options, **law)
        estimator.advance(x[index], y[index])
        found.append(estimator.estimate(x[index], y[index]))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-9 * max(1, float(value.abs().max())))


@settings(max_examples=5, deadline=None)
@given(samples=st.integers(1, 5), double=st.booleans(), seed=st.integers(0, 10**6))
@methods
def test_gradients_have_the_parameters_shapes_and_type(method, options, samples, double, seed):
    net = make_toy("conv", dtype=torch.float64 if double else torch.float32).eval()
    x, y = make_batch(net, samples, seed)
    estimator = make_estimator(method, net, seed=seed, **options)
    estimator.advance(x, y)
    found, drawn = estimator.estimate(x, y), estimator.sample(x, y, 2)
    assert list(found) == [name for name, _ in net.named_parameters()]
    for name, p in net.named_parameters():
        assert (found[name].shape, found[name].dtype) == (p.shape, p.dtype)
        assert (drawn[name].shape, drawn[name].dtype) == ((2, *p.shape), p.dtype)
        assert found[name].isfinite().all()


@settings(max_examples=8, deadline=None)
@given(factor=st.floats(0.01, 100), batch=batches)
@pytest.mark.parametrize(("method", "options"), [c for c in METHODS if c[0] not in ("drtp", "pepita")], ids=str)
def test_scaling_the_loss_scales_the_estimate(method, options, factor, batch):
    samples, seed = batch
    net = toy_for(options)
    x, y = make_batch(net, samples, seed)
    plain, scaled = (
        make_estimator(method, net, loss=loss, seed=seed, **options).estimate(x, y)
        for loss in ("cross_entropy", lambda out, t: factor * F.cross_entropy(out, t, reduction="none"))
    )
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], factor * value, rtol=1e-9, atol=1e-12 * factor)


@pytest.mark.parametrize("method", NO_DIRECTIONS)
def test_a_batch_taken_twice_counts_once(method):
    """The loss is a mean: an error, target or input change that is not divided by N would show here."""
    net = make_toy("fc")
    x, y = make_batch(net)
    estimator = make_estimator(method, net)
    once, twice = estimator.estimate(x, y), estimator.estimate(x.repeat(2, 1), y.repeat(2))
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("toy", ["fc", "conv", "transformer"])
@methods
def test_a_smaller_last_batch(method, options, toy):
    net = make_toy(toy).eval()
    estimator = make_estimator(method, net, **options)
    for samples in (4, 3, 1, 4):
        estimator.backward(*make_batch(net, samples))
    assert all(p.grad.isfinite().all() for p in net.parameters())


@coupled_methods
def test_one_sample_is_too_few_for_batch_normalisation(method, options):
    net = make_toy("fc_bn")
    x, y = make_batch(net, samples=1)
    with pytest.raises((InvalidInput, ValueError), match="more than (one|1) value per channel"):
        make_estimator(method, net, **options).estimate(x, y)


@methods
def test_float32_agrees_with_float64(method, options):
    if method not in NO_DIRECTIONS:
        options = {**options, "perturbation": Rounded()}
    estimators = [make_estimator(method, make_toy("fc", dtype=t), **options) for t in (torch.float64, torch.float32)]
    double, single = estimators
    double.advance(*make_batch(double.net))
    double.estimate(*make_batch(double.net))  # feedback may be made at first use
    single.load_own_state(rounded(double.own_state()))
    for estimator in estimators:
        estimator.generator.manual_seed(7)
    expected, found = (estimator.estimate(*make_batch(estimator.net)) for estimator in estimators)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=1e-5 * max(1, float(value.abs().max())))


class Rounded:
    """Draws in double precision, rounded to the precision asked for."""

    name, kurtosis = "gaussian", 3.0

    def sample(self, shape, *, generator, dtype):
        return Gaussian().sample(shape, generator=generator, dtype=torch.float64).to(dtype)


def rounded(state):
    """A nested state in single precision."""
    if isinstance(state, torch.Tensor):
        return state.float()
    if isinstance(state, dict):
        return {key: rounded(value) for key, value in state.items()}
    return type(state)(map(rounded, state)) if isinstance(state, list | tuple) else state
