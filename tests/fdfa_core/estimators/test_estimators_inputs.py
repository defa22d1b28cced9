"""What cannot be used is refused with a message that names the input, the value and what would be accepted."""

import pytest
import torch
from torch import nn

from fdfa_core.errors import InvalidInput, UnknownName, Unsupported
from fdfa_core.estimators import available_estimators, make_estimator
from fdfa_core.estimators.tangents import Tangents
from fdfa_core.networks.blocks import BlockNetwork
from toys import make_batch, make_toy


@pytest.fixture
def net():
    return make_toy("fc")


BAD_OPTIONS = [
    ("fg-w", {"tangents": 0}, r"tangents: got 0; accepted: a positive integer"),
    ("fg-w", {"tangents": 2.0}, r"tangents: got 2\.0; accepted: a positive integer"),
    ("fg-w", {"tangents": True}, r"tangents: got True"),
    ("fg-w", {"combine": "sum"}, r"combine: got 'sum'; accepted: 'mean' or 'projection'"),
    ("fg-w", {"tangents": 80, "combine": "projection"}, r"tangents: got 80; accepted: at most 79"),
    ("fg-w", {"perturbation": "cauchy"}, r"perturbation: got 'cauchy'; accepted: one of gaussian, rademacher, sphere"),
    ("fg-w", {"perturbation": 3}, r"perturbation: got 3; accepted: a name"),
    ("fg-a", {"slope": "mean"}, r"slope: got 'mean'; accepted: 'sample' or 'batch'"),
    ("fg-a", {"readout": "none"}, r"readout: got 'none'; accepted: 'exact' or 'perturbed'"),
    ("fg-a", {"site": "middle"}, r'site: got .middle.; accepted: "pre" or "post"'),
    ("dfa", {"site": "middle"}, r'site: got .middle.; accepted: "pre" or "post"'),
    ("fdfa", {"feedback_lr": 0}, r"feedback_lr: got 0; accepted: a finite positive number"),
    ("fdfa", {"feedback_lr": -0.1}, r"feedback_lr: got -0\.1"),
    ("fdfa", {"feedback_lr": 1.5}, r"feedback_lr: got 1\.5; accepted: a number in \(0, 1\]"),
    ("fdfa", {"feedback_lr": float("nan")}, r"feedback_lr: got nan"),
    ("fdfa", {"feedback_lr": float("inf"), "feedback_rule": "adam"}, r"feedback_lr: got inf"),
    ("fdfa", {"feedback_lr": "fast"}, r"feedback_lr: got 'fast'"),
    ("fdfa", {"feedback_rule": "sgd"}, r"feedback_rule: got 'sgd'; accepted: 'momentum' or 'adam'"),
    ("fdfa", {"joint": "sometimes"}, r"joint: got 'sometimes'; accepted: True or False or 'cyclic'"),
    ("fdfa", {"joint": 1}, r"joint: got 1; accepted: True or False"),
    ("fdfa", {"directions": "diagonal"}, r"directions: got 'diagonal'; accepted: 'independent'"),
    ("fdfa", {"warmup": True, "feedback_rule": "adam"}, r"warmup: got True"),
    ("fg-w", {"per_sample": "no"}, r"per_sample: got 'no'; accepted: True or False"),
    ("fg-a", {"joint": "false"}, r"joint: got 'false'; accepted: True or False"),
    ("fdfa", {"warmup": "yes"}, r"warmup: got 'yes'; accepted: True or False"),
    ("dkp", {"feedback_optimizer": "lbfgs"}, r"feedback_optimizer: got 'lbfgs'; accepted: 'sgd' or 'adam'"),
    ("dkp", {"feedback_decay": -1}, r"feedback_decay: got -1; accepted: a finite number of at least 0"),
    ("cosine-dfa", {"feedback_lr": 0}, r"feedback_lr: got 0"),
    ("grape", {"feedback_lr": 0}, r"feedback_lr: got 0"),
    ("grape", {"order": "during"}, r"order: got 'during'; accepted: 'before' or 'after'"),
    ("grape", {"cosine": "rows"}, r"cosine: got 'rows'; accepted: 'columns' or 'frobenius'"),
    ("grape", {"normalise": 1}, r"normalise: got 1; accepted: True or False"),
    ("grape", {"calibrate_every": 0}, r"calibrate_every: got 0; accepted: a positive integer"),
    ("grape", {"calibrate_every": True}, r"calibrate_every: got True; accepted: a positive integer"),
    ("grape", {"space": "outputs"}, r"space: got 'outputs'; accepted: 'activations' or 'smaller'"),
    ("lg-fg-w", {"readout_lr": 0}, r"readout_lr: got 0"),
    ("lg-fg-w", {"readout_optimizer": "no"}, r"readout_optimizer: got 'no'"),
    ("lg-fg-w", {"tangents": 29, "combine": "projection"}, r"tangents: got 29; accepted: at most 28"),
    ("pepita", {"scale": -1}, r"scale: got -1"),
    ("fdfa", {"replicas": 0}, r"replicas: got 0; accepted: a positive integer"),
    ("fdfa", {"replicas": True}, r"replicas: got True"),
]


@pytest.mark.parametrize(("method", "options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_impossible_options_are_refused(net, method, options, message):
    with pytest.raises(InvalidInput, match=message):
        make_estimator(method, net, **options)


def test_more_directions_than_units_are_refused_at_the_first_batch(net):
    estimator = make_estimator("fg-a", net, tangents=11, combine="projection")
    with pytest.raises(InvalidInput, match="tangents: got 11; accepted: at most 10, the dimension perturbed"):
        estimator.estimate(*make_batch(net))


def test_unknown_estimator_is_answered_with_the_known_ones(net):
    with pytest.raises(UnknownName, match="estimator: got 'fdafa'; accepted: one of bp, .*fdfa"):
        make_estimator("fdafa", net)


def test_unknown_option_is_answered_with_the_known_ones(net):
    with pytest.raises(UnknownName, match="option of dkp: got 'rate'; accepted: one of .*feedback_lr"):
        make_estimator("dkp", net, rate=1)


def test_unknown_loss_is_named(net):
    with pytest.raises(UnknownName, match="loss: got 'hinge'"):
        make_estimator("dfa", net, loss="hinge")


def test_a_plain_module_is_no_network():
    with pytest.raises(InvalidInput, match="net: got 'Linear'; accepted: a BlockNetwork"):
        make_estimator("dfa", nn.Linear(2, 2))


def test_one_block_is_no_network():
    with pytest.raises(InvalidInput, match="blocks: got 1; accepted: at least two"):
        BlockNetwork(nn.Linear(2, 2))


@pytest.mark.parametrize("method", available_estimators())
class TestBatch:
    def refuses(self, method, x, y, message, net=None):
        net = net or make_toy("fc")
        site = {"site": "post"} if method.startswith(("fg-a", "lg-fg-a")) else {}
        with pytest.raises(InvalidInput, match=message):
            make_estimator(method, net, **site).estimate(x, y)

    def test_nan(self, method):
        x, y = make_batch(make_toy("fc"))
        x[2, 0] = torch.nan
        self.refuses(method, x, y, "x: got 'NaN or infinity in sample 2'")

    def test_infinity(self, method):
        x, y = make_batch(make_toy("fc"))
        x[1, 0] = -torch.inf
        self.refuses(method, x, y, "x: got 'NaN or infinity in sample 1'")

    def test_nan_in_targets(self, method):
        x, y = make_batch(make_toy("fc"))
        probabilities = torch.nn.functional.one_hot(y, 3).to(x.dtype)
        probabilities[3, 1] = torch.nan
        self.refuses(method, x, probabilities, "y: got 'NaN or infinity in sample 3'")

    @pytest.mark.parametrize("label", [-1, 3])
    def test_label_out_of_range(self, method, label):
        x, y = make_batch(make_toy("fc"))
        y[1] = label
        self.refuses(method, x, y, f"y: label: got {label}; accepted: integers from 0 to 2")

    def test_different_lengths(self, method):
        x, y = make_batch(make_toy("fc"))
        self.refuses(method, x, y[:3], "y: number of samples: got 3; accepted: 4")

    def test_no_samples(self, method):
        x, y = make_batch(make_toy("fc"))
        self.refuses(method, x[:0], y[:0], "x: number of samples: got 0")

    def test_another_type(self, method):
        x, y = make_batch(make_toy("fc"))
        self.refuses(method, x.float(), y, "x: dtype: got torch.float32; accepted: torch.float64")


def test_grape_refuses_to_perturb_weights_and_says_why(net):
    with pytest.raises(Unsupported, match="no unbiased estimate of the Jacobian.*activations"):
        make_estimator("grape", net, space="weights")


def test_grape_takes_the_smaller_space_where_it_is_that_of_activations(net):
    x, y = make_batch(net)
    one, other = (make_estimator("grape", net, space=space).estimate(x, y) for space in ("activations", "smaller"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_grape_refuses_the_smaller_space_where_it_is_that_of_weights():
    net = make_toy("conv")  # 18 weights make 8 activations of the first block after its pooling, 24 make 3 of the second
    make_estimator("grape", net, space="smaller")
    wide = BlockNetwork(nn.Conv2d(1, 2, 3, padding=1), nn.Sequential(nn.Flatten(), nn.Linear(50, 3)), input_shape=(1, 5, 5))
    with pytest.raises(Unsupported, match=r"block 0 \(Conv2d\) has 18 weights and 50 activations"):
        make_estimator("grape", wide, space="smaller")
    unknown = BlockNetwork(*wide)
    with pytest.raises(InvalidInput, match="space: got 'smaller'; accepted: .*input_shape is known"):
        make_estimator("grape", unknown, space="smaller")


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_number_of_draws_must_be_a_positive_integer(net, count):
    with pytest.raises(InvalidInput, match="replicates: got"):
        make_estimator("fg-w", net).sample(*make_batch(net), count)


def test_replicas_fix_the_number_of_draws(net):
    with pytest.raises(InvalidInput, match="replicates: got 3; accepted: 2, the number of replicas"):
        make_estimator("fdfa", net, replicas=2).sample(*make_batch(net), 3)


def test_replicas_cannot_train(net):
    with pytest.raises(InvalidInput, match="replicas: got 2; accepted: None"):
        make_estimator("fdfa", net, replicas=2).backward(*make_batch(net))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 5, dtype=torch.float64), r"feedback\[0\]: shape: got \(3, 5\); accepted: \(3, 6\)"),
        (torch.zeros(3, 6), r"feedback\[0\]: dtype: got torch.float32; accepted: torch.float64"),
        (torch.zeros(3, 6, dtype=torch.float64, device="meta"), r"feedback\[0\]: device: got .*meta.*; accepted: cpu"),
        ([[0.0] * 6] * 3, r"feedback\[0\]: shape: got None"),
    ],
    ids=["shape", "dtype", "device", "no tensor"],
)
@pytest.mark.parametrize("method", ["dfa", "fdfa", "dkp", "cosine-dfa", "grape", "drtp"])
def test_feedback_that_does_not_fit_is_refused(net, method, value, message):
    estimator = make_estimator(method, net)
    with pytest.raises(InvalidInput, match=message):
        estimator.feedback[0] = value


def test_feedback_for_another_number_of_blocks_is_refused(net):
    estimator = make_estimator("dfa", net)
    with pytest.raises(InvalidInput, match="feedback: length: got 1; accepted: 2"):
        estimator.feedback = [torch.zeros(3, 6, dtype=torch.float64)]


@pytest.mark.parametrize("method", ["fg-a", "dfa", "fdfa", "lg-fg-a"])
def test_a_site_that_a_block_lacks_is_refused(method):
    with pytest.raises(Unsupported, match='block 0 .Sequential. has no "pre" site'):
        make_estimator(method, make_toy("residual"), site="pre")


def test_a_direction_per_sample_cannot_pass_batch_statistics():
    net = make_toy("fc_bn")
    with pytest.raises(Unsupported, match="cannot serve batch normalisation in training mode .module 0.affine.1"):
        make_estimator("fg-w", net, per_sample=True).estimate(*make_batch(net))


def test_pepita_needs_inputs_it_can_add_to():
    net = BlockNetwork(nn.Sequential(nn.Embedding(4, 3), nn.Flatten()), nn.Linear(6, 3)).double()
    with pytest.raises(Unsupported, match="pepita adds the error to the input"):
        make_estimator("pepita", net).estimate(torch.randint(4, (5, 2)), torch.randint(3, (5,)))


@pytest.mark.parametrize("method", [m for m in available_estimators() if m != "pepita"])
def test_integer_inputs_are_served(method):
    net = BlockNetwork(
        nn.Sequential(nn.Embedding(4, 3), nn.Flatten()), nn.Sequential(nn.Linear(6, 4), nn.Tanh()), nn.Linear(4, 3)
    ).double()
    site = {"site": "post"} if method.startswith(("fg-a", "lg-fg-a")) else {}
    estimator = make_estimator(method, net, **site)
    estimator.backward(torch.randint(4, (5, 2)), torch.randint(3, (5,)))
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_drtp_targets_must_fit_the_outputs():
    net = make_toy("fc")
    x, _ = make_batch(net)
    estimator = make_estimator("drtp", net, loss=lambda out, t: (out.mean(1) - t).square())
    with pytest.raises(InvalidInput, match=r"y: shape: got \(4,\); accepted: class indices \(N,\), or \(4, 3\)"):
        estimator.estimate(x, torch.zeros(4, dtype=torch.float64))


def test_a_projection_of_infinite_slopes_is_no_number_and_no_crash():
    """The solver refuses what is not finite, and a run that diverges would fail in place of saying so."""
    slopes, directions = torch.tensor([[1.0, 2.0], [torch.inf, 1.0]]), torch.eye(3)[:2].expand(2, 2, 3).clone()
    found = Tangents("gaussian", 2, "projection").combine(slopes, directions)
    assert torch.allclose(found[0], torch.tensor([1.0, 2.0, 0.0])) and found[1].isnan().all()


@pytest.mark.parametrize("method", ["bp", "fdfa"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_loss_that_differentiates_the_outputs_is_refused_by_name(method, requires_grad):
    """As the loss of a network that is to solve a differential equation does."""
    net = BlockNetwork(nn.Linear(1, 5), nn.Linear(5, 1))
    times = torch.linspace(0, 1, 4).view(-1, 1).requires_grad_(requires_grad)

    def decay(outputs, targets):
        (slope,) = torch.autograd.grad(outputs.sum(), times, create_graph=True)
        return (slope + outputs).square().squeeze(1)

    with pytest.raises(InvalidInput, match="loss decay: got 'a function that differentiates the outputs.*let its blocks"):
        make_estimator(method, net, loss=decay).backward(times, torch.zeros(4))
