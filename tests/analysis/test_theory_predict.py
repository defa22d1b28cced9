"""What `predict` accepts, refuses and returns."""

import copy

import pytest
import torch
from torch import nn

from analysis.theory import FORMULAS, feedback_law, predict
from fdfa_core import Block, BlockNetwork, fully_connected
from fdfa_core.errors import InvalidInput, UnknownName, Unsupported
from fdfa_core.gradients import true_gradient


def problem(**options):
    net = fully_connected([4, 5, 3, 2], activation="tanh", seed=0, **options)
    generator = torch.Generator().manual_seed(0)
    return net, torch.randn(10, 4, generator=generator), torch.randint(0, 2, (10,), generator=generator)


OPTIONS = dict.fromkeys(("dfa", "dkp", "drtp"), {"feedback": [torch.ones(2, 5), torch.ones(2, 3)]})


@pytest.mark.parametrize("name", FORMULAS)
def test_keys_shapes_and_types(name):
    net, x, y = problem()
    found = predict(name, net, x, y, 3, **OPTIONS.get(name, {}))
    shapes = {n: p.shape for n, p in net.named_parameters()}
    for values in (found.mean, found.variance, found.bias, found.data, found.feedback, found.cross):
        assert {n: v.shape for n, v in values.items()} == shapes
        assert list(values) == list(shapes)
        assert all(v.dtype == torch.float64 for v in values.values())


@pytest.mark.parametrize("name", FORMULAS)
def test_network_is_left_alone(name):
    net, x, y = problem(batch_norm=True)
    net.eval()
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    predict(name, net, x, y, 3, **OPTIONS.get(name, {}))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["bp", "fg-w", "fg-a"])
def test_unbiased_estimators_have_the_gradient_as_mean(name):
    net, x, y = problem()
    truth = true_gradient(net.double(), x.double(), y)
    for parameter, mean in predict(name, net, x, y, 3).mean.items():
        torch.testing.assert_close(mean, truth[parameter], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", FORMULAS)
def test_labels_of_any_integer_type_are_the_same_labels(name):
    net, x, y = problem()
    found, expected = (predict(name, net, x, labels, 3, **OPTIONS.get(name, {})) for labels in (y.to(torch.int32), y))
    assert found.total() == expected.total() and found.total("bias") == expected.total("bias")


def test_parts_sum_to_the_variance():
    net, x, y = problem()
    found = predict("fdfa", net, x, y, 3, feedback_lr=0.3)
    assert found.total() == pytest.approx(sum(found.total(part) for part in ("data", "feedback", "cross")), rel=1e-14)
    assert min(found.total(part) for part in ("data", "feedback", "cross")) > 0


def test_long_run_is_the_limit_of_many_steps():
    net, x, y = problem()
    limit, late = (predict("fdfa", net, x, y, 3, feedback_lr=0.3, steps=steps) for steps in (None, 200))
    for name, value in limit.variance.items():
        torch.testing.assert_close(late.variance[name], value, rtol=1e-12, atol=0)
        torch.testing.assert_close(late.mean[name], limit.mean[name], rtol=1e-12, atol=1e-18)


def test_feedback_at_step_zero_teaches_hidden_blocks_nothing():
    net, x, y = problem()
    found = predict("fdfa", net, x, y, 3, steps=0)
    assert found.total("mean", 0) == found.total("variance", 0) == 0
    assert found.total("mean", 2) > 0


def test_given_feedback_is_direct_feedback_alignment():
    net, x, y = problem()
    given = [b.view(2, -1) for b in feedback_law(net, x, 1).mean()]
    a, b = (predict(name, net, x, y, 3, feedback=given) for name in ("dfa", "fdfa"))
    assert a.total() == b.total() and a.total("bias") == b.total("bias")


def test_warm_up_of_the_feedback():
    net, x, _ = problem()
    law = feedback_law(net, x, 3, feedback_lr=0.1, warmup=True)
    factor, held = 0.0, 1.0
    for t in range(1, 60):
        rate = max(0.1, 1 / t)
        factor, held = (1 - rate) ** 2 * factor + rate**2, (1 - rate) * held
        assert law.factor(t) == pytest.approx(factor, rel=1e-12)
        assert law.memory(t) == pytest.approx(held, abs=1e-15)
    assert law.factor(0) == 0 and law.memory(0) == 1


def test_squared_error_of_the_feedback_over_time():
    net, x, _ = problem()
    law = feedback_law(net, x, 3, feedback_lr=0.2)
    times = law.squared_error([0, 5, 1000])
    assert times.shape == (2, 3)
    for block, (mean, covariance) in enumerate(zip(law.mean(5), law.covariance(5), strict=True)):
        trace = float(covariance.diagonal(dim1=1, dim2=2).sum())
        expected = float((mean - law.jacobian[block]).square().sum()) + trace
        assert times[block, 1] == pytest.approx(expected, rel=1e-12)
        assert times[block, 2] == pytest.approx(law.squared_error()[block], rel=1e-12)


def test_one_block_at_a_time_lowers_the_feedbacks_noise():
    net, x, _ = problem()
    joint, alone = (feedback_law(net, x, 3, joint=joint).squared_error() for joint in (True, False))
    assert (alone < joint).all()


@pytest.mark.parametrize("name", ["fg-w", "fg-a", "fdfa"])
def test_a_given_batch_leaves_the_perturbations_alone_random(name):
    net, x, y = problem()
    found = predict(name, net, x, y, 10, sampling="given_batch")
    assert found.total("data") == found.total("cross") == 0
    assert found.total("perturbation" if name != "fdfa" else "feedback") > 0


def test_frame_sums_levels():
    net, x, y = problem()
    frame = predict("fg-a", net, x, y, 3).frame()
    for column in ("size", "variance", "data", "perturbation", "bias2", "mse"):
        sums = frame.groupby("level")[column].sum()
        assert sums["parameter"] == pytest.approx(sums["block"]) == pytest.approx(sums["network"])


def test_population_smaller_than_the_batch_is_fine():
    net, x, y = problem()
    assert predict("bp", net, x[:2], y[:2], 64).total() > 0


def test_population_of_one_sample_has_no_data_noise():
    net, x, y = problem()
    assert predict("bp", net, x[:1], y[:1], 64).total() == pytest.approx(0, abs=1e-16)


def test_activation_with_parameters():
    net = BlockNetwork(Block(nn.Linear(4, 3), nn.PReLU(3)), nn.Linear(3, 2))
    _, x, y = problem()
    assert predict("fg-a", net, x, y, 3, site="post").variance["0.activation.weight"].min() > 0
    with pytest.raises(Unsupported, match='use site="post"'):
        predict("fg-a", net, x, y, 3, site="pre")


def refused(error, match, name="bp", net=None, x=None, y=None, batch_size=3, **options):
    default = problem()
    net, x, y = (d if given is None else given for d, given in zip(default, (net, x, y), strict=True))
    with pytest.raises(error, match=match):
        predict(name, net, x, y, batch_size, **options)


def test_refuses_batch_norm_in_training_mode():
    net, *_ = problem(batch_norm=True)
    refused(Unsupported, r"couples samples.*net\.eval\(\)", net=net)


def test_refuses_dropout_in_training_mode():
    net = BlockNetwork(Block(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.5))), nn.Linear(3, 2))
    refused(Unsupported, "random in training mode", net=net)


def test_refuses_any_module_that_couples_samples():
    class Centre(nn.Module):
        def forward(self, h):
            return h - h.mean(0)

    net = BlockNetwork(nn.Sequential(nn.Linear(4, 3), Centre()), nn.Linear(3, 2))
    refused(Unsupported, "depends on the other samples", net=net)


def test_refuses_parameters_shared_between_blocks():
    linear = nn.Linear(4, 4)
    net = BlockNetwork(Block(linear, nn.Tanh()), Block(linear, nn.Tanh()), nn.Linear(4, 2))
    refused(Unsupported, "shared with block 0", net=net)


def test_refuses_non_finite_inputs():
    _, x, _ = problem()
    refused(InvalidInput, "finite samples", x=x / 0)


def test_refuses_a_diverged_network():
    net, *_ = problem()
    net[2].weight.data.fill_(float("nan"))
    refused(InvalidInput, "finite outputs and losses", net=net)


def test_refuses_a_loss_that_is_no_mean_over_samples():
    refused(InvalidInput, "one loss per sample", loss=lambda outputs, targets: outputs.sum())


def test_refuses_samples_and_targets_of_different_length():
    _, x, _ = problem()
    refused(InvalidInput, "equally many samples", x=x[:4])


def test_refuses_a_site_that_a_block_lacks():
    net = BlockNetwork(nn.Linear(4, 3), nn.Linear(3, 2))
    refused(Unsupported, '"pre" site', name="fg-a", net=net)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_refuses_impossible_batch_sizes(batch_size):
    refused(InvalidInput, "batch_size", batch_size=batch_size)


def test_refuses_a_given_batch_of_another_size():
    refused(InvalidInput, "10, the size of the given batch", sampling="given_batch")


@pytest.mark.parametrize(
    "error, match, name, options",
    [
        (UnknownName, "estimator.*bp, frozen, fg-w", "sgd", {}),
        (UnknownName, "option of fg-w", "fg-w", {"site": "pre"}),
        (InvalidInput, "combine", "fg-w", {"combine": "sum"}),
        (Unsupported, "isotropic", "fg-w", {"combine": "projection", "perturbation": "rademacher"}),
        (InvalidInput, "readout", "fg-a", {"readout": "none"}),
        (InvalidInput, "site", "fg-a", {"site": "middle"}),
        (InvalidInput, "slope", "fg-a", {"slope": "layer"}),
        (Unsupported, "sphere", "fg-a", {"slope": "batch", "perturbation": "sphere"}),
        (InvalidInput, "at most 8", "fg-a", {"combine": "projection", "tangents": 9}),
        (InvalidInput, "tangents", "fg-a", {"tangents": 0}),
        (UnknownName, "perturbation", "fg-a", {"perturbation": "cauchy"}),
        (InvalidInput, "steps", "fdfa", {"steps": -1}),
        (InvalidInput, "joint", "fdfa", {"joint": "all"}),
        (InvalidInput, "directions", "fdfa", {"directions": "parallel"}),
        (InvalidInput, "perturbation", "fdfa", {"directions": "orthogonal", "perturbation": "rademacher"}),
        (InvalidInput, "feedback_lr", "fdfa", {"feedback_lr": 0.0}),
        (InvalidInput, "feedback_lr", "fdfa", {"feedback_lr": 1.5}),
        (Unsupported, "momentum", "fdfa", {"feedback_rule": "adam"}),
        (InvalidInput, r"feedback: shapes.*\(2, 5\), \(2, 3\)", "dfa", {"feedback": [torch.ones(2, 5)]}),
        (InvalidInput, "feedback: shapes", "dfa", {}),
    ],
    ids=str,
)
def test_refuses_impossible_options(error, match, name, options):
    refused(error, match, name=name, **options)


@pytest.mark.parametrize("site", ["pre", "post"])
def test_an_activation_that_works_in_place_changes_nothing(site):
    """It overwrites what the theory differentiates by, unless that is kept apart."""

    def net(inplace):
        torch.manual_seed(0)
        blocks = [Block(nn.Linear(i, o), nn.ReLU(inplace=inplace)) for i, o in ((6, 5), (5, 4))]
        return BlockNetwork(*blocks, nn.Linear(4, 3))

    x, y = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
    found, wanted = (predict("fg-a", net(inplace), x, y, 4, site=site).total() for inplace in (True, False))
    assert found == pytest.approx(wanted)
