"""The closed forms equal sums over every outcome, to rounding."""

import pytest
import torch
from torch import nn

import exhaustive
from analysis.theory import feedback_law, local_maps, predict
from analysis.theory.decorrelation import input_forms, whitening
from fdfa_core import Block, BlockNetwork, fully_connected
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators.registry import make_estimator
from fdfa_core.networks.decorrelation import decorrelated

LAWS = ("gaussian", "rademacher", "sphere")


def dense(activation="tanh", widths=(2, 2, 1, 2), batch_norm=False):
    net = fully_connected(list(widths), activation=activation, batch_norm=batch_norm, seed=3).double()
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            for value in (module.running_mean, module.weight.data, module.bias.data):
                value.add_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
            module.running_var.mul_(2.5)
    return net.eval()


def convolutional():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = BlockNetwork(
            Block(nn.Conv2d(1, 1, 2), nn.Sequential(nn.Tanh(), nn.AvgPool2d((2, 1)))),
            Block(nn.Sequential(nn.Flatten(), nn.Linear(2, 1)), nn.Tanh()),
            nn.Linear(1, 2),
            input_shape=(1, 3, 3),
        )
    return net.double()


def attentive():
    """A block that is no `Block`, and whose parameters touch every unit."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return BlockNetwork(
            nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
            Block(nn.Linear(2, 1), nn.Softplus()),
            nn.Linear(1, 2),
            input_shape=(2,),
        ).double()


NETWORKS = {
    "tanh": dense,
    "relu": lambda: dense("relu", (2, 3, 2)),
    "batch-norm": lambda: dense(batch_norm=True),
    "conv": convolutional,
    "layer-norm": attentive,
}


def data(net, size=2):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, *net.input_shape, generator=generator, dtype=torch.float64)
    return x, torch.arange(size) % 2


def agree(prediction, expected):
    mean, variance = expected
    torch.testing.assert_close(exhaustive.flat(prediction.mean), mean, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(exhaustive.flat(prediction.variance), variance, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("options", [{}, {"per_sample": True}], ids=["shared", "per-sample"])
def test_weight_perturbation(law, options):
    net = fully_connected([1, 1, 1], activation="tanh", seed=0).double()
    net = BlockNetwork(net[0], nn.Linear(1, 2).double())
    x, y = torch.tensor([[0.7], [-1.1]], dtype=torch.float64), torch.tensor([0, 1])
    expected = exhaustive.fg_w(net, x, y, 2, perturbation=law, **options)
    agree(predict("fg-w", net, x, y, 2, perturbation=law, **options), expected)


@pytest.mark.parametrize("law", LAWS)
def test_weight_perturbation_with_two_tangents(law):
    net = fully_connected([1, 1, 2], activation="tanh", seed=0).double()
    x, y = torch.tensor([[0.7], [-1.1]], dtype=torch.float64), torch.tensor([0, 1])
    expected = exhaustive.fg_w(net, x, y, 1, perturbation=law, tangents=2)
    agree(predict("fg-w", net, x, y, 1, perturbation=law, tangents=2), expected)


@pytest.mark.parametrize(
    "rank, hidden, outputs, bias, options",
    [
        (1, (2, 2), 1, False, {}),
        (1, (1, 1), 2, True, {}),
        (2, (1, 1), 2, False, {}),
        (1, (1, 1), 2, False, {"per_sample": True}),
    ],
)
def test_weight_perturbation_of_low_rank(rank, hidden, outputs, bias, options):
    inputs, units = hidden
    with torch.random.fork_rng():
        torch.manual_seed(4)
        first = Block(nn.Linear(inputs, units, bias=bias), nn.Tanh())
        net = BlockNetwork(first, nn.Linear(units, outputs, bias=False), input_shape=(inputs,)).double()
    x, y = data(net)
    y, loss = (y, "cross_entropy") if outputs > 1 else (y[:, None].double(), "mse")
    size = 1 if options else 2
    expected = exhaustive.fg_w(net, x, y, size, perturbation=f"low-rank-{rank}", loss=loss, **options)
    agree(predict("fg-w", net, x, y, size, loss, perturbation=f"low-rank-{rank}", **options), expected)


def test_low_rank_directions_add_two_times_rows_and_columns_and_one_over_the_rank():
    """Of one matrix (m, n): total variance ÷ ‖∇‖² is mn + 1 + 2 (m + n + 1)/r, whatever its spectrum."""
    net = BlockNetwork(Block(nn.Linear(4, 3, bias=False), nn.Tanh()), nn.Linear(3, 2, bias=False), input_shape=(4,)).double()
    net[1].weight.data.zero_()  # so that all of the gradient is the readout's
    x, y = data(net, 5)
    found = predict("fg-w", net, x, y, 5, sampling="given_batch", perturbation="low-rank-2")
    relative = float(found.variance["1.weight"].sum()) / found.total("target")
    assert relative == pytest.approx(2 * 3 + 1 + 2 * (2 + 3 + 1) / 2, rel=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("options", [{}, {"joint": False}, {"readout": "perturbed"}, {"tangents": 2}], ids=str)
def test_activity_perturbation_of_active_units(law, options):
    net = dense("relu", (2, 3, 2))
    x, y = data(net, 3)
    options = options | {"site": "pre", "mask": "active", "perturbation": law}
    idle = sum(int((units == 0).sum()) for s in exhaustive.samples(net, x, y, site="pre") for units in s.active(net))
    assert 0 < idle < 9  # some units are idle, and not all
    agree(predict("fg-a", net, x, y, 1, **options), exhaustive.fg_a(net, x, y, 1, **options))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"joint": False}], ids=["joint", "single"])
def test_activity_perturbation(network, law, options):
    net = NETWORKS[network]()
    x, y = data(net)
    expected = exhaustive.fg_a(net, x, y, 1, site="post", perturbation=law, **options)
    agree(predict("fg-a", net, x, y, 1, site="post", perturbation=law, **options), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"readout": "perturbed"},
        {"readout": "perturbed", "joint": False},
        {"tangents": 2},
        {"loss": "mse", "perturbation": "rademacher"},
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["tanh", "batch-norm"])
def test_activity_perturbation_before_the_activation(network, options):
    net = NETWORKS[network]()
    x, y = data(net)
    expected = exhaustive.fg_a(net, x, y, 1, **{"site": "pre", **options})
    agree(predict("fg-a", net, x, y, 1, **options), expected)


def test_activity_perturbation_of_a_batch_of_two():
    net = dense()
    x, y = data(net)
    expected = exhaustive.fg_a(net, x, y, 2, site="pre", perturbation="rademacher")
    agree(predict("fg-a", net, x, y, 2, perturbation="rademacher"), expected)


def behind_maps(net, seed=8):
    """The network with a map that is not symmetric before each linear layer, and these maps by the name of the weight."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: p.shape[1] for name, p in net.named_parameters() if p.dim() == 2}
    noise = {name: torch.randn(n, n, generator=generator, dtype=torch.float64) for name, n in sizes.items()}
    matrices = {name: torch.eye(len(v)) + 0.5 * v for name, v in noise.items()}
    return decorrelated(net, 0.1, matrices), matrices


def behind(name):
    """The name of a parameter of a linear layer that stands behind a map now."""
    return ".1.".join(name.rsplit(".", 1))


DECORRELATED = [{}, {"joint": False, "perturbation": "sphere"}, {"tangents": 2}, {"site": "post", "perturbation": "rademacher"}]


@pytest.mark.parametrize("options", DECORRELATED, ids=str)
def test_activity_perturbation_behind_decorrelated_inputs(options):
    """In training mode too: the closed form is of the maps as they are, and does not move them."""
    net, _ = behind_maps(dense())
    net.train()
    before = [m.clone() for m in net.buffers()]
    x, y = data(net)
    found = predict("fg-a", net, x, y, 1, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    net.eval()  # the sum over outcomes calls the network
    agree(found, exhaustive.fg_a(net, x, y, 1, **{"site": "pre", **options}))


@pytest.mark.parametrize("options", DECORRELATED, ids=str)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_decorrelated_inputs_change_the_variance_of_their_own_weights_alone_and_by_a_quadratic_form(options, batch_norm):
    plain = dense("tanh", (4, 3, 3, 2), batch_norm=batch_norm)
    net, matrices = behind_maps(plain)
    x, y = data(plain, 7)
    before, after = (predict("fg-a", each, x, y, 3, **options) for each in (plain, net))
    forms = input_forms(plain, x, y, 3, **options)
    names = dict(zip(before.mean, after.mean, strict=True))
    assert forms.keys() == matrices.keys()
    for name, other in names.items():
        was, now = before.variance[name], after.variance[other]
        if name not in forms:  # biases, and what normalises
            torch.testing.assert_close(now, was, rtol=1e-12, atol=1e-15)
            continue
        assert forms[name].total() == pytest.approx(float(was.sum()), rel=1e-12)
        assert forms[name].total(matrices[name]) == pytest.approx(float(now.sum()), rel=1e-12)
        assert forms[name].total(matrices[name]) != pytest.approx(float(was.sum()), rel=0.05)
        relative = float(now.sum() / after.target[other].square().sum())
        assert forms[name].relative(matrices[name]) == pytest.approx(relative, rel=1e-12)


def test_an_estimate_behind_a_map_is_the_estimate_without_it_times_the_map():
    """Draw by draw, from the same directions: g becomes g Rᵀ for weights, and stays for biases."""
    plain = dense("tanh", (4, 3, 3, 2))
    net, matrices = behind_maps(plain)
    x, y = data(plain, 5)
    before, after = (make_estimator("fg-a", each, seed=4).sample(x, y, 3) for each in (plain, net))
    for name, g in before.items():
        expected = g @ matrices[name].mT if name in matrices else g
        torch.testing.assert_close(after[behind(name)], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("site", ["pre", "post"])
def test_no_map_of_the_inputs_changes_the_relative_variance_of_one_sample_and_one_block(site):
    plain = dense("tanh", (4, 5, 3))
    _, matrices = behind_maps(plain)
    x, y = data(plain, 1)
    form = input_forms(plain, x, y, 1, site=site)["0.affine.weight"]
    assert form.relative(matrices["0.affine.weight"]) == pytest.approx(form.relative(), rel=1e-12)
    if site == "pre":
        assert form.relative() == pytest.approx(5 + 3 - 2, rel=1e-12)  # the units and κ, whatever the inputs


def test_weight_perturbation_keeps_its_relative_variance_behind_maps():
    plain = dense("tanh", (4, 3, 3, 2))
    net, _ = behind_maps(plain)
    x, y = data(plain, 5)
    found = [predict("fg-w", each, x, y, 5, sampling="given_batch") for each in (plain, net)]
    relative = [each.total("variance") / each.total("target") for each in found]
    assert relative[0] == pytest.approx(relative[1], rel=1e-12)
    assert found[0].total() != pytest.approx(found[1].total(), rel=0.05)


def test_input_forms_refuse_what_they_have_no_form_for():
    with pytest.raises(Unsupported, match="no block is a linear layer"):
        net = BlockNetwork(nn.Conv2d(1, 1, 1), nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2)))
        input_forms(net, torch.ones(1, 1, 2, 2), torch.zeros(1).long(), 1, site="post")
    with pytest.raises(InvalidInput, match="batch_size: got 0"):
        input_forms(dense(), *data(dense()), 0)
    with pytest.raises(InvalidInput, match="the mean gradient of the weights: got 0.0"):
        input_forms(dense(), torch.zeros(2, 2).double(), torch.arange(2), 1)["0.affine.weight"].relative()
    with pytest.raises(InvalidInput, match="inputs of rank 1"):
        whitening(torch.ones(3, 2))
    with pytest.raises(InvalidInput, match=r"h: shape: got \(3,\); accepted: a matrix \(M, n\)"):
        whitening(torch.ones(3))
    with pytest.raises(InvalidInput, match=r"matrix: shape: got \(3, 3\)"):
        input_forms(dense(), *data(dense()), 1)["0.affine.weight"].total(torch.eye(3))


MASKED = {"site": "pre", "mask": "active"}


@pytest.mark.parametrize("options", [{}, {"joint": False}, {"sampling": "given_batch"}, MASKED], ids=str)
@pytest.mark.parametrize("law", ["gaussian", "rademacher"])
def test_activity_perturbation_with_the_batchs_slope(law, options):
    net = dense("relu", (2, 3, 2)) if options == MASKED else NETWORKS["layer-norm"]()
    x, y = data(net)
    expected = exhaustive.fg_a_batch_slope(net, x, y, 2, perturbation=law, **options)
    agree(predict("fg-a", net, x, y, 2, slope="batch", perturbation=law, **{"site": "post"} | options), expected)


@pytest.mark.parametrize("joint", [True, False])
def test_projection_on_one_direction_is_a_scaled_sphere(joint):
    net = dense()
    x, y = data(net, 5)
    options = {"joint": joint, "readout": "perturbed"}
    projected = predict("fg-a", net, x, y, 2, combine="projection", **options)
    sphere = predict("fg-a", net, x, y, 2, perturbation="sphere", **options)
    sizes = [5] * 6 if joint else [2, 2, 1, 1, 2, 2]  # units perturbed together with a parameter's own
    units = torch.cat([torch.full((p.numel(),), n) for p, n in zip(net.parameters(), sizes, strict=True)])
    agree(projected, (exhaustive.flat(sphere.mean) / units, exhaustive.flat(sphere.variance) / units**2))


@pytest.mark.parametrize("name", ["bp", "frozen", "dfa", "dkp", "drtp"])
@pytest.mark.parametrize("network", NETWORKS)
def test_estimators_without_perturbations(network, name):
    net = NETWORKS[network]()
    x, y = data(net, 6)
    estimator = make_estimator(name, net)
    options = {"feedback": estimator.feedback} if name not in ("bp", "frozen") else {}
    atoms = torch.stack([exhaustive.flat(estimator.estimate(x[i : i + 1], y[i : i + 1])) for i in range(6)])
    mean, variance = exhaustive.moments(atoms, torch.full((6,), 1 / 6, dtype=torch.float64))
    agree(predict(name, net, x, y, 3, **options), (mean, variance / 3))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"joint": False}], ids=["joint", "single"])
def test_forward_direct_feedback_two_steps_from_zero(network, law, options):
    net = NETWORKS[network]()
    x, y = data(net)
    settings = {"feedback_lr": 0.3, "steps": 1 if network in ("relu", "conv") else 2, "perturbation": law, **options}
    expected = exhaustive.fdfa(net, x, y, 1, **settings)
    agree(predict("fdfa", net, x, y, 1, **settings), expected)


@pytest.mark.parametrize("network", ["tanh", "layer-norm"])
def test_forward_direct_feedback_of_a_batch_of_two(network):
    net = NETWORKS[network]()
    x, y = data(net)
    settings = {"feedback_lr": 0.6, "steps": 2, "perturbation": "rademacher"}
    agree(predict("fdfa", net, x, y, 2, **settings), exhaustive.fdfa(net, x, y, 2, **settings))


@pytest.mark.parametrize("options", [{"site": "pre"}, {"tangents": 2, "steps": 1}], ids=str)
def test_forward_direct_feedback_options(options):
    net = dense()
    x, y = data(net)
    settings = {"feedback_lr": 0.6, "steps": 2, **options}
    agree(predict("fdfa", net, x, y, 1, **settings), exhaustive.fdfa(net, x, y, 1, **settings))


def narrow():
    """A block of one unit whose parameters are no dense layer's, and a dense one."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return BlockNetwork(
            nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 1, 2), nn.Flatten(), nn.Tanh()),
            Block(nn.Linear(1, 1), nn.Tanh()),
            nn.Linear(1, 2),
            input_shape=(2,),
        ).double()


@pytest.mark.parametrize(
    "options",
    [
        {"directions": "orthogonal"},
        {"directions": "antithetic"},
        {"directions": "antithetic", "perturbation": "rademacher"},
        {"directions": "antithetic", "perturbation": "rademacher", "tangents": 2},
        {"directions": "antithetic", "perturbation": "rademacher", "tangents": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("build", [narrow, lambda: dense(widths=(2, 2, 2))], ids=["narrow", "one-hidden"])
def test_arranged_directions(build, options):
    net = build()
    x, y = data(net)
    settings = {"feedback_lr": 0.6, "steps": 1, **options}
    agree(predict("fdfa", net, x, y, 2, **settings), exhaustive.fdfa(net, x, y, 2, **settings))


def test_arranged_directions_of_blocks_that_touch_many_units():
    net = BlockNetwork(attentive()[0], nn.Linear(2, 2).double(), input_shape=(2,))
    x, y = data(net)
    for options in ({"directions": "orthogonal"}, {"directions": "antithetic", "perturbation": "rademacher"}):
        settings = {"feedback_lr": 0.6, "steps": 2, **options}
        agree(predict("fdfa", net, x, y, 2, **settings), exhaustive.fdfa(net, x, y, 2, **settings))


def test_blocks_that_take_turns():
    net = dense()
    x, y = data(net)
    cyclic = predict("fdfa", net, x, y, 2, feedback_lr=0.3, joint="cyclic", steps=5)
    alone = [predict("fdfa", net, x, y, 2, feedback_lr=0.3, joint=False, steps=steps) for steps in (3, 2)]
    for name, variance in cyclic.variance.items():
        torch.testing.assert_close(variance, alone[int(name[0]) if int(name[0]) < 2 else 0].variance[name])


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("law", LAWS)
def test_feedback_step_covariance_between_rows(law, joint):
    net = dense()
    x, y = data(net)
    atoms, weights = exhaustive.feedback_steps(exhaustive.samples(net, x, y), 2, perturbation=law, joint=joint)
    found = feedback_law(net, x, 2, feedback_lr=1.0, perturbation=law, joint=joint)
    start = 0
    for mean, covariance in zip(found.mean(), found.covariance(), strict=True):
        block = atoms[:, start : start + mean.numel()].unflatten(1, mean.shape)
        start += mean.numel()
        expected = torch.einsum("n,nok->ok", weights, block)
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-13)
        centred = block - expected
        torch.testing.assert_close(
            covariance, torch.einsum("n,nok,nvk->kov", weights, centred, centred), rtol=1e-10, atol=1e-13
        )


@pytest.mark.parametrize("steps", [1, 3])
def test_feedback_covariance_after_steps(steps):
    net = fully_connected([1, 1, 1], seed=0, activation="tanh").double()
    net = BlockNetwork(net[0], nn.Linear(1, 2).double())
    x, y = torch.tensor([[0.7], [-1.1]], dtype=torch.float64), torch.tensor([0, 1])
    outcomes = exhaustive.feedback_steps(exhaustive.samples(net, x, y), 1)
    held, weights = exhaustive.feedback(outcomes, 0.4, steps)
    law = feedback_law(net, x, 1, feedback_lr=0.4)
    mean, variance = exhaustive.moments(held, weights)
    torch.testing.assert_close(law.mean(steps)[0].flatten(), mean, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(law.covariance(steps)[0].diagonal(dim1=1, dim2=2).flatten(), variance, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "name, options",
    [
        ("bp", {}),
        ("fg-a", {"perturbation": "rademacher"}),
        ("fg-a", {"perturbation": "sphere", "site": "post", "readout": "perturbed"}),
        ("fdfa", {"feedback_lr": 0.2, "perturbation": "rademacher"}),
        ("fdfa", {"feedback_lr": 0.2, "perturbation": "sphere", "joint": False, "tangents": 3}),
    ],
    ids=str,
)
def test_dense_and_general_path_agree(name, options, monkeypatch):
    net = dense("tanh", (3, 5, 4, 3), batch_norm=True)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 3, generator=generator, dtype=torch.float64), torch.arange(9) % 3
    fast = predict(name, net, x, y, 4, **options)
    monkeypatch.setattr(local_maps, "_dense_factors", lambda *_: None)
    slow = predict(name, net, x, y, 4, **options)
    agree(fast, (exhaustive.flat(slow.mean), exhaustive.flat(slow.variance)))


@pytest.mark.parametrize("network", ["tanh", "layer-norm"])
@pytest.mark.parametrize("name", ["fg-a", "fdfa"])
def test_streaming_in_small_chunks_changes_nothing(network, name, monkeypatch):
    net = NETWORKS[network]()
    x, y = data(net, 11)
    whole = predict(name, net, x, y, 4, perturbation="rademacher", site="post")
    monkeypatch.setattr("analysis.theory.population.MEMORY", 1)
    monkeypatch.setattr("analysis.theory.local_maps.MEMORY", 1)
    monkeypatch.setattr("analysis.theory.feedback_form.MEMORY", 1)
    pieces = predict(name, net, x, y, 4, perturbation="rademacher", site="post")
    agree(pieces, (exhaustive.flat(whole.mean), exhaustive.flat(whole.variance)))
