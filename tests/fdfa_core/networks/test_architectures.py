"""The architectures: published sizes, reproducible initialisation, refused options."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fdfa_core import (
    Block,
    BlockNetwork,
    alexnet,
    available_estimators,
    convolutional,
    fully_connected,
    make_estimator,
    residual,
    residual_mlp,
    transformer,
    true_gradient,
)
from fdfa_core.errors import InvalidInput, UnknownName, Unsupported
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.networks.decorrelation import Decorrelation, decorrelated
from fdfa_core.networks.registry import ARCHITECTURES, architecture_options, build
from fdfa_core.training.run import train
from tiny import BASE, PROBE

# Every architecture at a size that takes no time, for images of 1 × 8 × 8 and three outputs
TINY = {
    "fully_connected": {"hidden": [5, 4]},
    "convolutional": {"channels": (2, 3), "hidden": (4,), "kernel_size": 3, "padding": 1},
    "residual": {"channels": (2, 3)},
    "residual_mlp": {"width": 4, "blocks": 2},
    "transformer": {"patch": 4, "dimension": 4},
}


def tiny(architecture, **options):
    return build(architecture, (1, 8, 8), 3, **{"seed": 0, **TINY[architecture], **options})


def batch(architecture, n=4):
    x = torch.randn(n, 1, 8, 8)
    return x.flatten(1) if architecture == "fully_connected" else x, torch.randint(3, (n,))


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def layers(net, kind):
    return [module for module in net.modules() if isinstance(module, kind)]


# Biases, dropout, initialisation ---------------------------------------------------------------------------------------

WITH_OPTIONS = ("fully_connected", "convolutional")


@pytest.mark.parametrize("architecture", WITH_OPTIONS)
def test_options_that_are_not_given_change_nothing(architecture):
    plain, spelt = tiny(architecture), tiny(architecture, bias=True, dropout=0.0, initialisation="torch")
    assert str(plain) == str(spelt)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), spelt.parameters(), strict=True))


@pytest.mark.parametrize("architecture", WITH_OPTIONS)
def test_layers_without_biases(architecture):
    net = tiny(architecture, bias=False, batch_norm=False)
    assert {name.rpartition(".")[2] for name, _ in net.named_parameters()} == {"weight"}


@pytest.mark.parametrize("architecture", WITH_OPTIONS)
def test_dropout_ends_every_hidden_block_and_not_the_readout(architecture):
    net = tiny(architecture, dropout=0.25)
    last = [block.activation[-1] for block in net.hidden]
    assert all(isinstance(module, nn.Dropout) and module.p == 0.25 for module in last)
    assert len(layers(net, nn.Dropout)) == len(net.hidden)


BOUNDS = {  # of the uniform laws, from fan-in and fan-out; the spread of the others
    "torch": lambda i, o: (i**-0.5, (3 * i) ** -0.5),
    "he_uniform": lambda i, o: ((6 / i) ** 0.5, (2 / i) ** 0.5),
    "xavier_uniform": lambda i, o: ((6 / (i + o)) ** 0.5, (2 / (i + o)) ** 0.5),
    "he_normal": lambda i, o: (None, (2 / i) ** 0.5),
    "lecun_normal": lambda i, o: (None, i**-0.5),
    "xavier_normal": lambda i, o: (None, (2 / (i + o)) ** 0.5),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_named_initialisations_have_their_law(name):
    net = fully_connected([300, 400, 10], initialisation=name, seed=0)
    weight = net[0].affine.weight.detach()
    bound, spread = BOUNDS[name](300, 400)
    assert float(weight.std()) == pytest.approx(spread, rel=0.01)  # 120,000 entries: a standard error of 0.2 %
    if bound:
        assert 0.999 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6)
    else:
        assert float(weight.abs().max()) > 3.5 * spread
    readout = BOUNDS[name](400, 10)[1]
    assert float(net.readout.weight.detach().std()) == pytest.approx(readout, rel=0.05)


def test_orthogonal_initialisation():
    weight = fully_connected([7, 5, 3], initialisation="orthogonal", seed=0)[0].affine.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(5))


def test_convolutions_are_initialised_too():
    convolution = convolutional((1, 28, 28), 10, initialisation="he_uniform", seed=0)[0].affine[0]
    bound = (6 / 25) ** 0.5
    assert 0.95 * bound < float(convolution.weight.detach().abs().max()) <= bound


def test_a_named_initialisation_is_a_function_of_the_seed_alone():
    stream = torch.random.get_rng_state()
    one, two, other = (fully_connected([5, 4, 3], initialisation="he_normal", seed=seed)[0].affine.weight for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"dropout: got 1\.0; accepted: a number in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout: got -0.1"),
        ({"dropout": True}, "dropout: got True"),
        ({"dropout": float("nan")}, "dropout: got nan"),
        ({"dropout": "0.1"}, "dropout: got '0.1'"),
        ({"bias": 0}, "bias: got 0; accepted: True or False"),
        ({"initialisation": "he"}, "initialisation: got 'he'; accepted: one of torch, he_uniform"),
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", WITH_OPTIONS)
def test_impossible_values_of_these_are_refused(architecture, options, message):
    with pytest.raises(InvalidInput, match=message):
        tiny(architecture, **options)


# Decorrelated inputs -------------------------------------------------------------------------------------------------


def mixed_inputs(samples=64, features=5):
    generator = torch.Generator().manual_seed(3)
    x, mix = (torch.randn(n, features, generator=generator, dtype=torch.float64) for n in (samples, features))
    return 0.5 + x @ mix / 2, torch.arange(samples) % 3


def test_a_decorrelating_layer_stands_before_every_linear_layer_and_changes_nothing_at_first():
    plain, net = (tiny("fully_connected", batch_norm=True, decorrelation=rate) for rate in (None, 1e-3))
    chains = [module for module in net.modules() if type(module) is nn.Sequential and len(module) > 1]
    assert [[type(layer).__name__ for layer in chain[:2]] for chain in chains] == [["Decorrelation", "Linear"]] * 3
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), net.parameters(), strict=True))
    x, _ = batch("fully_connected", 7)
    assert torch.equal(plain.eval()(x), net.eval()(x))


def test_the_matrix_moves_as_written_out_sample_by_sample():
    """R ← R − η (C − diag C) R, from values before the step; three steps, against loops."""
    (x, _), layer = mixed_inputs(4, 3), Decorrelation(3, rate=0.05).double()
    expected = torch.eye(3, dtype=torch.float64)
    for _ in range(3):
        values = [[sum(float(expected[i, j] * row[j]) for j in range(3)) for i in range(3)] for row in x]
        torch.testing.assert_close(layer(x), torch.tensor(values, dtype=torch.float64), rtol=1e-13, atol=1e-13)
        step = torch.zeros(3, 3, dtype=torch.float64)
        for i in range(3):
            for k in range(3):
                if i != k:
                    c = sum(row[i] * row[k] for row in values) / 4
                    step[i] += c * expected[k]
        expected = expected - 0.05 * step
        torch.testing.assert_close(layer.matrix, expected, rtol=1e-13, atol=1e-13)
    before = layer.eval().matrix.clone()
    layer(x)
    assert torch.equal(layer.matrix, before)  # at rest in evaluation mode


def test_training_decorrelates_the_inputs_of_every_layer():
    x, y = mixed_inputs()
    net = fully_connected([5, 4, 3], activation="tanh", decorrelation=0.02, seed=0).double()
    estimator = make_estimator("fg-a", net, site="post")
    shares = []
    for step in range(301):
        if step in (0, 300):
            net.eval()
            inputs = [net[0].affine[0](x), net[1][0](net[0](x).detach())]
            moments = [h.mT @ h / len(h) for h in inputs]
            shares.append([float((c - c.diagonal().diag()).norm() / c.norm()) for c in moments])
        net.train()
        estimator.backward(x, y)  # the weights rest: only the matrices move
    assert min(shares[0]) > 0.7 and shares[1][0] < 1e-2
    assert shares[1][1] < 0.6 * shares[0][1]  # the hidden units are small, and their moments move slowly


@pytest.mark.parametrize("name", ["fg-a", "fg-w", "zo", "fdfa", "fa", "pepita", "grape", "guess"])
def test_measuring_leaves_the_matrices_and_one_step_moves_them_once(name):
    x, y = mixed_inputs(8)
    options = {"site": "post"} if name == "fg-a" else {}
    net, twin = (fully_connected([5, 4, 3], activation="tanh", decorrelation=0.01, seed=0).double() for _ in range(2))
    estimator = make_estimator(name, net, **options)
    estimator.sample(x, y, 3)
    estimator.advance(x, y)
    assert all(torch.equal(m, torch.eye(len(m), dtype=m.dtype)) for m in net.buffers())
    estimator.backward(x, y)
    twin(x)  # what one call in training mode makes of them
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))
    assert all(not torch.equal(m, torch.eye(len(m), dtype=m.dtype)) for m in net.buffers())


@pytest.mark.parametrize("options", [{}, {"checkpoint": True}], ids=str)
def test_gradients_of_a_step_are_those_at_the_matrices_that_it_used(options):
    x, y = mixed_inputs(8)
    net = fully_connected([5, 4, 4, 3], activation="tanh", decorrelation=0.3, seed=0).double()
    expected = true_gradient(net, x, y)
    make_estimator("bp", net, **options).backward(x, y)
    assert not torch.equal(net[0].affine[0].matrix, torch.eye(5, dtype=torch.float64))
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-14, msg=name)


def test_any_network_gets_decorrelating_layers_and_keeps_its_outputs():
    block = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Tanh())
    net = BlockNetwork(Block(nn.Linear(5, 5), nn.Tanh()), block, nn.Linear(4, 3)).double()
    x, _ = mixed_inputs(6)
    sizes = {name: p.shape[1] for name, p in net.named_parameters() if p.dim() == 2}
    matrices = {name: torch.eye(n) + 0.3 * torch.ones(n, n).triu() for name, n in list(sizes.items())[1:]}
    found = decorrelated(net, 0.01, matrices)
    torch.testing.assert_close(found.eval()(x), net(x), rtol=1e-12, atol=1e-12)
    assert len(layers(found, Decorrelation)) == 4 and not layers(net, Decorrelation)
    assert torch.equal(layers(found, Decorrelation)[0].matrix, torch.eye(5, dtype=torch.float64))
    assert BlockNetwork(Decorrelation(5), nn.Linear(5, 3)).input_shape == (5,)


def shared():
    layer = nn.Linear(4, 4)
    return BlockNetwork(nn.Sequential(layer, nn.Tanh()), nn.Sequential(layer, nn.Tanh()), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Decorrelation(0), InvalidInput, "features: got 0; accepted: a positive integer"),
        (lambda: Decorrelation(3, float("inf")), InvalidInput, "rate: got inf; accepted: a finite number of at least 0"),
        (lambda: Decorrelation(3)(torch.ones(2, 4)), InvalidInput, r"Decorrelation: shape: got \(2, 4\)"),
        (lambda: Decorrelation(3)(torch.ones(2, 1, 3, 3)), InvalidInput, r"put nn.Flatten\(\) before it"),
        (lambda: tiny("fully_connected", decorrelation=-1), InvalidInput, "decorrelation: got -1; accepted: None for no"),
        (lambda: tiny("fully_connected", decorrelation="1"), InvalidInput, "decorrelation: got '1'"),
        (lambda: decorrelated(shared()), Unsupported, "0.0.weight stands in several places"),
        (lambda: decorrelated(nn.Sequential(nn.Conv2d(1, 1, 1))), InvalidInput, "a network with a linear layer"),
        (lambda: decorrelated(tiny("fully_connected"), matrices={"x": torch.eye(2)}), InvalidInput, "matrices: got x|'x'"),
        (
            lambda: decorrelated(fully_connected([2, 2, 2]), matrices={"1.weight": torch.ones(2, 2)}),
            InvalidInput,
            "matrices: 1.weight: got 'a matrix without an inverse'",
        ),
        (
            lambda: decorrelated(fully_connected([2, 2, 2]), matrices={"1.weight": torch.eye(3)}),
            InvalidInput,
            r"matrices: shape for 1.weight: got \(3, 3\)",
        ),
    ],
)
def test_what_cannot_be_decorrelated_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_decorrelation_is_an_option_of_an_experiment(tmp_path):
    network = {"architecture": "fully_connected", "hidden": [5], "decorrelation": 0.01}
    table = {**BASE, "network": network, "estimator": {"name": "fg-a"}, "training": {"steps": 2, "batch_size": 32}}
    summary = json.loads((train(RunConfig.model_validate(table), tmp_path) / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)


# Published sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "input_shape", "sites"),
    [
        ("cnn", (1, 28, 28), [(15, 12, 12), (40, 4, 4), (128,)]),
        ("cnn-released", (1, 28, 28), [(15, 24, 24), (40, 10, 10), (128,)]),
        ("cnn-released", (3, 32, 32), [(15, 28, 28), (40, 12, 12), (128,)]),
    ],
)
def test_convolutional_network_has_its_poolings_where_the_variant_says(variant, input_shape, sites):
    assert convolutional(input_shape, 10, variant=variant).site_shapes("post") == sites


def test_released_convolutional_network_has_4000_inputs_to_its_first_fully_connected_layer():
    assert [m.in_features for m in layers(convolutional((1, 28, 28), 10, variant="cnn-released"), nn.Linear)] == [4000, 128]


def test_alexnet_has_its_published_widths():
    with torch.device("meta"):
        net = alexnet(100)
    assert [shape[0] for shape in net.site_shapes()] == [64, 192, 384, 256, 256, 4096, 4096]


def test_alexnet_has_as_many_weights_and_feedback_values_as_the_released_one():
    with torch.device("meta"):
        net = alexnet(100)
    feedback = 100 * sum(map(math.prod, net.site_shapes()))
    assert (round(parameters(net) / 1e6, 1), round(feedback / 1e6, 1)) == (57.4, 20.5)


@pytest.mark.parametrize(("size", "grid"), [(224, (6, 6)), (64, (3, 3)), (32, (2, 2))])
def test_alexnet_leaves_a_grid_before_its_fully_connected_layers(size, grid):
    with torch.device("meta"):
        assert alexnet(10, size).site_shapes()[4] == (256, *grid)


def test_alexnet_normalises_every_hidden_block():
    with torch.device("meta"):
        net = alexnet(10)
    assert all(any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in block.affine) for block in net.hidden)


def test_alexnet_of_a_smaller_width_is_estimated():
    net, x = alexnet(5, 32, width=1 / 32, seed=0), torch.randn(3, 3, 32, 32)
    assert make_estimator("fdfa", net).backward(x, torch.randint(5, (3,))).isfinite()


def test_residual_network_is_a_resnet_8():
    net = residual((3, 32, 32), 10)
    weighted = [m for m in layers(net, (nn.Conv2d, nn.Linear)) if getattr(m, "kernel_size", None) != (1, 1)]
    assert len(weighted) == 8


def test_stages_of_the_residual_network_halve_the_image():
    net = residual((3, 32, 32), 10)
    assert net.site_shapes() == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("activation, act", [("relu", lambda z: np.maximum(z, 0)), ("tanh", np.tanh)])
def test_residual_perceptron_is_what_its_formula_says(activation, act):
    net = residual_mlp((1, 2, 3), 3, width=4, blocks=2, mlp_ratio=3, activation=activation, seed=0).double()
    x = torch.randn(5, 1, 2, 3, dtype=torch.float64)
    w = {name: p.detach().numpy() for name, p in net.named_parameters()}

    def normalised(h):
        return (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)

    h = x.flatten(1).numpy() @ w["0.1.weight"].T + w["0.1.bias"]
    for i in (1, 2):
        z = act(normalised(h) @ w[f"{i}.body.1.weight"].T + w[f"{i}.body.1.bias"])
        assert z.shape == (5, 12)
        h = h + z @ w[f"{i}.body.3.weight"].T + w[f"{i}.body.3.bias"]
    expected = normalised(h) @ w["3.1.weight"].T + w["3.1.bias"]
    np.testing.assert_allclose(net(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_a_stream_that_has_grown_leaves_no_gradient_to_the_blocks_of_a_residual_perceptron():
    """The last LayerNorm takes the scale of the stream away, and divides the gradient of all below by it."""
    net, (x, y) = tiny("residual_mlp").double(), batch("residual_mlp")
    direction, norms = torch.tensor([1.0, -2.0, 0.5, 3.0]), []
    for scale in (1e2, 1e6):
        with torch.no_grad():
            net[0][1].bias.copy_(scale * direction)
        gradient = true_gradient(net, x.double(), y)
        norms.append(float(sum(g.square().sum() for name, g in gradient.items() if name.startswith("1.")) ** 0.5))
    assert norms[1] == pytest.approx(1e-4 * norms[0], rel=0.1) and norms[0] > 1e-6


def test_transformer_keeps_a_token_per_patch():
    assert transformer((1, 8, 8), 10, patch=2, dimension=6).site_shapes() == [(16, 6)] * 3


def test_transformer_sees_where_a_patch_is():
    net, x = tiny("transformer"), torch.randn(2, 1, 8, 8)
    assert not torch.allclose(net(x), net(x.flip(-1)), atol=1e-4)


# What holds for every architecture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TINY)
def test_equal_seeds_give_equal_weights(architecture):
    one, two = tiny(architecture), tiny(architecture)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("architecture", TINY)
def test_other_seeds_give_other_weights(architecture):
    one, two = tiny(architecture), tiny(architecture, seed=1)
    assert not all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("architecture", TINY)
def test_seed_leaves_the_global_random_stream_alone(architecture):
    before = torch.get_rng_state()
    tiny(architecture)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", TINY)
def test_without_seed_the_global_random_stream_decides(architecture):
    torch.manual_seed(5)
    one = tiny(architecture, seed=None)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), tiny(architecture, seed=5).parameters(), strict=True))


@pytest.mark.parametrize("architecture", TINY)
def test_outputs_are_as_many_as_asked_for(architecture):
    assert tiny(architecture).output_shape() == (3,)


@pytest.mark.parametrize("estimator", ["fg-w", "fg-a", "dfa", "fdfa"])
@pytest.mark.parametrize("architecture", TINY)
def test_local_methods_serve_the_architecture(architecture, estimator):
    net = tiny(architecture)
    options = {"site": "post"} if estimator == "fg-a" else {}
    found = make_estimator(estimator, net, **options).sample(*batch(architecture), 2)
    assert all(found[name].shape == (2, *p.shape) and found[name].isfinite().all() for name, p in net.named_parameters())


@pytest.mark.parametrize("architecture", ["residual", "residual_mlp", "transformer"])
def test_every_estimator_serves_ordinary_modules_or_says_why_not(architecture):
    net, (x, y) = tiny(architecture), batch(architecture)
    for name in available_estimators():
        try:
            loss = make_estimator(name, net).backward(x, y)
        except Unsupported as error:
            assert "block" in str(error), f"{name}: {error}"
        else:
            assert loss.isfinite(), name


@pytest.mark.parametrize("architecture", TINY)
def test_architecture_trains_from_a_configuration(architecture, tmp_path):
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in TINY[architecture].items()}
    network = {"architecture": architecture, **options}
    table = {**BASE, "network": network, "estimator": {"name": "fdfa"}, "training": {"steps": 2, "batch_size": 32}}
    summary = json.loads((train(RunConfig.model_validate(table), tmp_path) / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)


@pytest.mark.cuda
@pytest.mark.parametrize("estimator", available_estimators())
def test_every_estimator_trains_and_is_probed_on_a_gpu(estimator, tmp_path):
    probe = {**PROBE, "schedule": {"kind": "first_and_last"}}
    table = {**BASE, "estimator": {"name": estimator}, "training": {"steps": 2, "batch_size": 32}, "probe": probe}
    directory = train(RunConfig.model_validate(table), tmp_path, device="cuda")
    assert json.loads((directory / "summary.json").read_text())["status"] == "finished"


@pytest.mark.cuda
@pytest.mark.parametrize("architecture", TINY)
def test_equal_seeds_give_equal_weights_on_a_gpu(architecture):
    before = torch.cuda.get_rng_state()
    with torch.device("cuda"):
        one, two = tiny(architecture), tiny(architecture)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.cuda.get_rng_state(), before)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fully_connected([4, 3]), r"widths: got \[4, 3\]; accepted: at least three"),
        (lambda: fully_connected([4, 0, 3]), r"widths: got \[4, 0, 3\]"),
        (lambda: fully_connected(4), "widths: got 4; accepted: a list of positive integers"),
        (lambda: fully_connected([4, 4, 3], activation="swish"), "activation: got 'swish'; accepted: one of relu"),
        (lambda: convolutional((1, 28, 28), 10, variant="lenet"), "variant: got 'lenet'; accepted: one of cnn, cnn-released"),
        (lambda: convolutional((1, 8, 8), 10), r"input_shape: got \(1, 8, 8\).*smaller kernel_size"),
        (lambda: convolutional((784,), 10), r"input_shape: got \(784,\); accepted: channels, height and width"),
        (lambda: convolutional((1, 28, 28), 10, channels=(4,)), r"channels: got \[4\]; accepted: 2 sizes"),
        (lambda: convolutional((1, 28, 28), 10, hidden=(0,)), r"hidden: got \[0\]; accepted: positive integers"),
        (lambda: convolutional((1, 28, 28), 10, channels=8), "channels: got 8; accepted: a list of positive integers"),
        (lambda: convolutional((1, 28, 28), 10, hidden="64"), "hidden: got '64'; accepted: a list of positive integers"),
        (lambda: alexnet(10, 48), "input_size: got 48; accepted: 224 or 64 or 32 pixels"),
        (lambda: alexnet(10, width=0), "width: got 0; accepted: a positive number"),
        (lambda: residual((1, 8, 8), 3, channels=()), r"channels: got \[\]"),
        (lambda: residual((1, 8, 8), 3, channels=8), "channels: got 8; accepted: a list of positive integers"),
        (lambda: residual(8, 3), "input_shape: got 8; accepted: a list of positive integers"),
        (lambda: residual_mlp((1, 8, 8), 3, width=0), r"width: got \[0\]; accepted: positive integers"),
        (lambda: residual_mlp((1, 8, 8), 3, blocks=1001), "blocks: got 1001; accepted: at most 1000"),
        (lambda: residual_mlp((1, 8, 8), 3, activation="gelu"), "activation: got 'gelu'; accepted: one of relu, tanh"),
        (lambda: transformer((1, 8, 8), 3, patch=3), r"patch: got 3; accepted: a divisor"),
        (lambda: transformer((1, 8, 8), 3, dimension=6, heads=4), "heads: got 4; accepted: a divisor of the dimension 6"),
        (lambda: build("alexnet", (3, 32, 64), 10), r"input_shape: got \(3, 32, 64\); accepted: square images"),
        (lambda: build("fully_connected", (4,), 3, hidden=64), "hidden: got 64; accepted: a list of positive integers"),
        (lambda: build("fully_connected", (4,), 3, hidden="64"), "hidden: got '64'; accepted: a list of positive integers"),
        (lambda: build("fully_connected", (4,), 3, hidden=[]), r"hidden: got \[\]; accepted: at least one"),
        (lambda: build("fully_connected", (4,), 3), "hidden of fully_connected: got 'nothing'"),
    ],
)
def test_impossible_value_is_refused(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_unknown_architecture_is_answered_with_the_known_ones():
    with pytest.raises(UnknownName, match=f"one of {', '.join(ARCHITECTURES)}"):
        build("lenet", (1, 28, 28), 10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unknown_option_is_answered_with_the_known_ones(architecture):
    known = ", ".join(architecture_options(architecture))
    with pytest.raises(UnknownName, match=f"option of {architecture}: got 'widht'; accepted: one of {known}"):
        build(architecture, (1, 8, 8), 3, widht=2)
