"""Networks of every habit: estimates are of the function that reverse mode sees, or a refusal says why not."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fdfa_core import Block, BlockNetwork, cut, make_estimator, measure, true_gradient
from fdfa_core.errors import FdfaError, InvalidInput, Unsupported
from habits import BLOCKS, F64, Own, backbone, batch, flat, linear, network, restarted


def slopes(net, x, y, loss="cross_entropy", seed=0):
    """The slope that fg-w measures, and the true one along its direction: random signs, so that g = s v tells both."""
    estimator = make_estimator("fg-w", net, loss=loss, perturbation="rademacher", seed=seed)
    restarted(net)
    g = flat(estimator.estimate(x, y))
    restarted(net)
    true = flat(true_gradient(net, x, y, loss))
    size = g.abs().max()
    return float(size), float((g / size) @ true)


@pytest.mark.parametrize("name", BLOCKS)
def test_slope_is_the_one_that_reverse_mode_sees(name):
    measured, true = slopes(network(BLOCKS[name]), *batch())
    assert measured == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("method", ["fg-a", "fdfa", "dfa", "pepita", "lg-fg-a", "fa"])
def test_methods_train_and_their_readout_is_exact(name, method):
    net, (x, y) = network(BLOCKS[name]), batch()
    if (name, method) == ("torch.func.grad inside", "fa"):
        with pytest.raises(Unsupported, match=r"block 1 \(Own\): fa changes its values"):
            make_estimator(method, net).backward(x, y)
        return
    estimator = make_estimator(method, net, **({"site": "post"} if "fg-a" in method else {}))
    estimator.backward(x, y)
    restarted(net)
    found = estimator.estimate(x, y)
    restarted(net)
    if method != "pepita":
        torch.testing.assert_close(found["2.weight"], true_gradient(net, x, y)["2.weight"])
    assert all(g.isfinite().all() for g in estimator.sample(x, y, 3).values())


@pytest.mark.parametrize("how", ["compiled", "compiled in place", "compiled function"])
@pytest.mark.parametrize("method", ["fg-w", "fg-a", "fdfa", "lg-fg-w"])
def test_compiled_block_gives_the_numbers_of_the_block_itself(method, how):
    def step(self, x):
        return x + self.b(torch.tanh(self.a(x)))

    block = Own(step, a=linear(), b=linear())
    twin = Own(step, a=block.a, b=block.b)
    if how == "compiled":
        twin = torch.compile(twin, backend="eager")
    elif how == "compiled in place":
        twin.compile(backend="eager")
    else:
        twin.function = torch.compile(step, backend="eager")
    stem, head = nn.Linear(6, 8), nn.Linear(8, 3)
    found = []
    for each in (block, twin):
        options = {"site": "post"} if method == "fg-a" else {}
        estimator = make_estimator(method, BlockNetwork(stem, each, head), seed=0, **options)
        estimator.advance(*batch(torch.float32))
        found.append(flat(estimator.estimate(*batch(torch.float32))))
    torch.testing.assert_close(*found)


def test_padding_row_of_an_embedding_is_a_constant():
    net = BlockNetwork(Own(lambda self, x: self.e(x).mean(1), e=nn.Embedding(5, 8, padding_idx=0)), nn.Linear(8, 3)).double()
    ids = torch.tensor([[0, 1], [0, 2], [3, 4]])
    measured, true = slopes(net, ids, torch.tensor([0, 1, 2]))
    assert measured == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("method", ["bp", "dfa", "fa", "fg-w", "fdfa"])
def test_embedding_with_a_greatest_norm_is_read_and_not_rewritten(method):
    net = BlockNetwork(nn.Sequential(nn.Embedding(9, 8, max_norm=1.0), Own(lambda _, x: x.mean(1))), nn.Linear(8, 3)).double()
    ids, y = torch.randint(9, (5, 4)), batch()[1]
    before = net[0][0].weight.detach().clone()
    make_estimator(method, net).estimate(ids, y)
    assert torch.equal(net[0][0].weight, before)
    measured, true = slopes(net, ids, y)
    assert measured == pytest.approx(true, rel=1e-9)
    make_estimator(method, net).backward(ids, y)
    assert net[0][0].weight[ids.unique()].norm(dim=1).max() <= 1 + 1e-6


def test_embedding_that_scales_its_gradient_is_refused_for_tangents_only():
    net = BlockNetwork(nn.Sequential(nn.Embedding(4, 8, scale_grad_by_freq=True), Own(lambda _, x: x.mean(1))), nn.Linear(8, 3))
    ids, y = torch.tensor([[0, 0], [1, 0], [2, 3]]), torch.tensor([0, 1, 2])
    with pytest.raises(Unsupported, match=r"block 0 \(Sequential\): its tangent is not the derivative that reverse mode sees"):
        make_estimator("fg-w", net).estimate(ids, y)
    make_estimator("dfa", net).backward(ids, y)


# Outputs of every shape ---------------------------------------------------------------------------------------------------


def tokens():
    return BlockNetwork(Block(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 3), input_shape=(5, 6)).double()


def token_loss(outputs, targets):
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


METHODS = ["bp", "fg-w", "fg-a", "dfa", "dkp", "fdfa", "grape", "pepita", "fa", "lg-fg-a", "lg-fg-w", "frozen"]


@pytest.mark.parametrize("method", METHODS)
def test_outputs_of_tokens_are_those_of_the_flattened_network(method):
    net = tokens()
    flatter = BlockNetwork(net[0], nn.Sequential(net[1], nn.Flatten()), input_shape=(5, 6)).double()
    x, y = torch.randn(4, 5, 6, dtype=F64), torch.randint(3, (4, 5))
    found = []
    for each, loss in ((net, token_loss), (flatter, lambda o, t: token_loss(o.view(4, 5, 3), t))):
        estimator = make_estimator(method, each, loss=loss, seed=0)
        estimator.advance(x, y)
        found.append([flat(estimator.estimate(x, y)), flat(estimator.sample(x, y, 2)), estimator.backward(x, y)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_squeezed_to_numbers_are_those_of_one_column(method):
    hidden, last = Block(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 1)
    narrow = BlockNetwork(hidden, nn.Sequential(last, Own(lambda _, x: x.squeeze(-1)))).double()
    x, y, found = batch()[0], torch.randn(5, dtype=F64), []
    for net, targets in ((narrow, y), (BlockNetwork(hidden, last), y.unsqueeze(1))):
        estimator = make_estimator(method, net, loss="mse", seed=0)
        estimator.advance(x, targets)
        found.append([flat(estimator.estimate(x, targets)), flat(estimator.sample(x, targets, 2))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_cross_entropy_by_name_says_what_to_do_with_tokens():
    with pytest.raises(InvalidInput, match=r"outputs: shape: got \(4, 5, 3\).*callable \(outputs, targets\)"):
        make_estimator("dfa", tokens()).estimate(torch.randn(4, 5, 6, dtype=F64), torch.randint(3, (4, 5)))


# What trains --------------------------------------------------------------------------------------------------------------


def head_only(blocks=2):
    net = cut(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))).double()
    for block in net[:blocks]:
        block.requires_grad_(False)
    return net


def test_directions_are_drawn_for_what_trains_only():
    net, (x, y) = head_only(), batch()
    estimator = make_estimator("fg-w", net, perturbation="rademacher")
    found = estimator.sample(x, y, 3)
    assert estimator.size == 27
    assert all(not found[name].any() for name in found if not name.startswith("2."))
    g = flat({name: found[name][0] for name in ("2.weight", "2.bias")})
    true = true_gradient(net, x, y)
    slope = g.abs().max()
    assert (g / slope) @ flat({name: true[name] for name in ("2.weight", "2.bias")}) == pytest.approx(float(slope))


@pytest.mark.parametrize("method", ["fg-a", "fdfa", "dfa"])
def test_a_frozen_block_adds_no_noise(method):
    """The estimates are those of the network above the frozen block."""
    x, y = batch()
    whole, part = head_only(0), head_only(1)
    part.load_state_dict(whole.state_dict())
    found = []
    for net, inputs in ((part, x), (BlockNetwork(whole[1], whole[2]), whole[0](x).detach())):
        estimator = make_estimator(method, net, seed=0)
        if method == "dfa":
            estimator.feedback[-1] = torch.ones(3, 8, dtype=F64)
        estimator.advance(inputs, y)
        sampled = estimator.sample(inputs, y, 3)
        found.append([sampled[name] for name in list(sampled)[-4:]])
        assert not any(sampled[name].any() for name in list(sampled)[:-4])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_partly_trained_networks_train(method, blocks):
    net, (x, y) = head_only(blocks), batch()
    estimator = make_estimator(method, net)
    for _ in range(2):
        estimator.backward(x, y)
    assert all((p.grad is None) == (not p.requires_grad) for p in net.parameters())
    assert all(g.isfinite().all() for g in estimator.sample(x, y, 2).values())


def test_measure_counts_what_trains():
    frame = measure(head_only(), *batch(), ["bp", "fg-w"], replicates=4)
    assert set(frame[frame.level == "block"].block) == {2}
    assert set(frame[frame.level == "network"]["size"]) == {27}


def test_nothing_that_trains_is_refused_by_measure():
    with pytest.raises(InvalidInput, match="no parameter that requires a gradient"):
        measure(head_only(3), *batch(), ["bp"], replicates=2)


def test_weights_that_no_gradient_reaches_are_not_perturbed_for_nothing():
    net = network(lambda: Own(backbone, a=linear()))
    with pytest.raises(Unsupported, match=r"block 1 \(Own\) switches gradients off.*1.a.bias, 1.a.weight.*requires_grad_"):
        make_estimator("fg-w", net).estimate(*batch())
    assert not make_estimator("lg-fg-w", net).estimate(*batch())["1.a.weight"].any()
    net[0].requires_grad_(False), net[1].requires_grad_(False)
    measured, true = slopes(net, *batch())
    assert measured == pytest.approx(abs(true), rel=1e-9)


@pytest.mark.parametrize("name", ["gradients on again inside", "layer drop"])
@pytest.mark.parametrize("method", ["fg-a", "dfa", "fdfa"])
def test_every_parameter_has_a_draw_each_also_where_no_signal_reaches_it(method, name):
    net = network(BLOCKS[name])
    estimator = make_estimator(method, net, **({"site": "post"} if method == "fg-a" else {}))
    restarted(net)
    assert all(g.shape == (7, *p.shape) for g, p in zip(estimator.sample(*batch(), 7).values(), net.parameters(), strict=True))


# Hooks and losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bp", "fdfa", "dfa", "fg-w", "fa", "frozen"])
def test_backward_calls_the_hooks_of_parameters(method):
    net, called = head_only(0), []
    mask = torch.zeros(8, 6, dtype=F64)
    mask[0] = 1
    net[0].affine.weight.register_hook(lambda g: g * mask)
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(called.append)
    estimator = make_estimator(method, net)
    estimator.backward(*batch())
    first = net[0].affine.weight.grad.clone()
    estimator.backward(*batch())
    assert len(called) == 2 * len(list(net.parameters()))
    assert not first[1:].any()


@pytest.mark.parametrize("method", ["fdfa", "dfa", "fg-w", "fa"])
def test_backward_hook_of_a_module_is_refused_by_name(method):
    net = head_only(0)
    net[1].register_full_backward_hook(lambda *_: None)
    with pytest.raises(Unsupported, match=r"block 1: Block 1 has a backward hook .*which only bp calls"):
        make_estimator(method, net).backward(*batch())
    make_estimator("bp", net).backward(*batch())


@pytest.mark.parametrize("method", ["bp", "fdfa", "dfa", "fg-w", "fa"])
@pytest.mark.parametrize("kind", ["penalty", "auxiliary"])
def test_a_loss_that_reaches_into_the_network_is_refused(method, kind):
    def keep(self, x):
        self.aux = (z := torch.tanh(self.a(x))).square().mean()
        return z

    net = network(lambda: Own(keep, a=linear(), aux=0.0))

    def loss(outputs, targets):
        term = net[1].a.weight.square().sum() if kind == "penalty" else net[1].aux
        return F.cross_entropy(outputs, targets, reduction="none") + term

    for act in ("estimate", "backward"):
        with pytest.raises(InvalidInput, match=r"loss loss: got 'a function whose graph reaches the parameter"):
            getattr(make_estimator(method, net, loss=loss), act)(*batch())


@pytest.mark.parametrize("method", ["bp", "fg-w"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: (o.argmax(1) != t).double(), "a tensor without a gradient"),
        (lambda o, t: torch.tensor((o.detach().numpy() ** 2).sum(1)), "a tensor without a gradient"),
        (lambda o, t: 1.0, "its result: got 'a float'"),
        (lambda o, t: (o.sum(1), 0), "its result: got 'a tuple'"),
        (lambda o, t: o.argmax(1), "dtype of its result: got torch.int64"),
    ],
    ids=["no slope", "numpy", "float", "tuple", "integers"],
)
def test_a_loss_that_returns_something_else_is_named(method, loss, message):
    with pytest.raises(InvalidInput, match=message):
        make_estimator(method, head_only(0), loss=loss).backward(*batch())


# Refusals by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fdfa", "fg-w", "dfa", "fa"])
@pytest.mark.parametrize("what", ["double", "head", "other classes"])
def test_a_network_changed_afterwards_is_refused(method, what):
    net = head_only(0).float()
    estimator, (x, y) = make_estimator(method, net), batch(torch.float32)
    estimator.backward(x, y)
    if what == "double":
        net.double()
    else:
        net[2] = nn.Linear(8, 3 if what == "head" else 5)
    with pytest.raises(InvalidInput, match="net: got .*than when the estimator was made.*make a new estimator"):
        estimator.backward(x.double() if what == "double" else x, y)


@pytest.mark.parametrize("method", ["fdfa", "fg-w", "dfa", "fa", "frozen"])
def test_autocast_is_refused_by_name(method):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InvalidInput, match=r"torch.autocast: got 'on'"):
        make_estimator(method, head_only(0).float()).backward(*batch(torch.float32))


def test_parameters_of_several_types_are_refused_by_name():
    net = BlockNetwork(nn.Linear(6, 8), nn.Linear(8, 3).bfloat16())
    with pytest.raises(InvalidInput, match=r"1.weight: dtype: got 'torch.bfloat16, where 0.weight is torch.float32'"):
        make_estimator("fdfa", net).backward(*batch(torch.float32))


@pytest.mark.parametrize("method", ["dkp", "lg-fg-a", "lg-fg-w"])
def test_adam_in_float16_is_refused(method):
    with pytest.raises(InvalidInput, match=f"net: dtype: got torch.float16; accepted: .*{method}.*Adam.*bfloat16"):
        make_estimator(method, head_only(0).half())


@pytest.mark.parametrize("method", ["fdfa", "fg-w", "dfa", "bp", "fa"])
def test_inference_tensors_are_taken_and_inference_mode_is_not(method):
    net = BlockNetwork(Own(lambda self, x: x + torch.tanh(self.a(x)), a=nn.Linear(6, 6)), nn.Linear(6, 3)).double()
    with torch.inference_mode():
        x, y = batch()
        with pytest.raises(InvalidInput, match="inference_mode"):
            make_estimator(method, net).backward(x, y)
    make_estimator(method, net).backward(x, y)


@pytest.mark.parametrize("method", ["bp", "fdfa"])
@pytest.mark.parametrize(
    ("first", "x", "y", "message"),
    [
        (nn.Linear(6, 8), torch.randn(4, 6), torch.rand(4), r"y: got 'torch.float32, shape \(4,\)'; accepted: integer class"),
        (nn.Linear(6, 8), torch.randn(4, 6), torch.rand(4, 4), r"y: got 'torch.float32, shape \(4, 4\)'"),
        (nn.Linear(6, 8), torch.ones(4, 6).long(), torch.zeros(4).long(), "x: dtype: got torch.int64; accepted: torch.float32"),
        (nn.Linear(6, 8), torch.ones(4, 6).cfloat(), torch.zeros(4).long(), "x: dtype: got torch.complex64; accepted: real"),
        (nn.Linear(6, 8), torch.ones(4, 5), torch.zeros(4).long(), r"x: shape of a sample: got \(5,\); accepted: \(6,"),
        (nn.Conv2d(3, 2, 3), torch.ones(4, 3, 4, 4).byte(), torch.zeros(4).long(), "x: dtype: got torch.uint8"),
        (nn.Conv2d(3, 2, 3), torch.ones(4, 1, 4, 4), torch.zeros(4).long(), r"x: shape: got \(4, 1, 4, 4\); accepted: \(N, 3"),
        (nn.Embedding(5, 8), torch.ones(4), torch.zeros(4).long(), "x: dtype: got torch.float32; accepted: torch.int64"),
        (nn.Embedding(5, 8), torch.tensor([1, 2, 3, 7]), torch.zeros(4).long(), "x: index: got 7; accepted: .* 0 to 4"),
        (nn.Linear(6, 8), {"input_ids": torch.ones(4, 6)}, torch.zeros(4).long(), "x: got 'a dict'; accepted: a tensor"),
        (nn.Linear(6, 8), torch.eye(6).to_sparse(), torch.zeros(6).long(), r"x: layout: got torch.sparse_coo.*to_dense"),
    ],
)
def test_inputs_and_targets_of_another_kind_are_named(method, first, x, y, message):
    net = BlockNetwork(Own(lambda self, x: self.a(x).flatten(1), a=first), nn.Linear(8, 3))
    with pytest.raises(InvalidInput, match=message):
        make_estimator(method, net).backward(x, y)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.jit.trace(m, torch.randn(2, 8))])
def test_wrappers_that_cannot_be_followed_are_named(wrap):
    net = BlockNetwork(nn.Linear(6, 8), wrap(linear()), nn.Linear(8, 3))
    with pytest.raises(Unsupported, match="block 1: .*(its .module|module that was scripted or traced)"):
        make_estimator("dfa", net).backward(*batch(torch.float32))


def test_refusal_names_the_operation_of_torch_and_no_line_of_this_project():
    net = BlockNetwork(nn.EmbeddingBag(9, 8), nn.Linear(8, 3))
    with pytest.raises(Unsupported, match=r"block 0 \(EmbeddingBag\).*torch's embedding_bag.*take no tangents") as caught:
        make_estimator("fg-w", net).backward(torch.randint(9, (5, 4)), torch.zeros(5).long())
    assert ".py" not in str(caught.value)


def test_dense_random_weight_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr("fdfa_core.estimators.feedback_alignment.free_memory", lambda device: 1000)
    net = network(lambda: Own(lambda self, x: x @ self.w, w=nn.Parameter(torch.eye(8))))
    with pytest.raises(Unsupported, match=r"fa needs a random weight of 8 × 8 numbers for 1 \("):
        make_estimator("fa", net).backward(*batch())


def test_a_scale_of_channels_leaves_a_block_to_its_layers():
    block = Own(lambda self, x: x + self.scale * self.a(x), a=nn.Conv2d(3, 3, 1), scale=nn.Parameter(torch.ones(3, 1, 1)))
    estimator = make_estimator("fa", BlockNetwork(nn.Conv2d(1, 3, 1), block, nn.Sequential(nn.Flatten(), nn.Linear(12, 3))))
    estimator.backward(torch.randn(2, 1, 2, 2), torch.tensor([0, 1]))
    assert set(estimator.feedback) == {"1.a.weight", "2.1.weight"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_an_estimator_is_pickled_with_its_state(method, loss):
    estimator, (x, y) = make_estimator(method, head_only(0), loss=loss), batch()
    estimator.backward(x, y)
    twin = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(flat(twin.estimate(x, y)), flat(estimator.estimate(x, y)))


def test_all_refusals_are_errors_of_this_project():
    assert issubclass(Unsupported, FdfaError) and issubclass(InvalidInput, FdfaError)
