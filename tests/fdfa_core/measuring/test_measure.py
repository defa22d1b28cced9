"""measure(): estimators on somebody's own network and batch, in one call."""

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fdfa_core import (
    Block,
    BlockNetwork,
    alexnet,
    available_estimators,
    cut,
    fully_connected,
    make_estimator,
    measure,
    true_gradient,
)
from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators import label
from fdfa_core.linearisation.factored import dense
from fdfa_core.measuring import measure as module
from fdfa_core.measuring import probe as probing
from fdfa_core.measuring.activations import activation_rms
from fdfa_core.measuring.cost import operations, peak_memory
from fdfa_core.measuring.plan import CHOICES, Work, announce, choose, notes
from fdfa_core.measuring.probe import probe
from fdfa_core.measuring.reference import Reference
from fdfa_core.networks.residual import residual
from fdfa_core.networks.transformer import transformer

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
FEW = ("bp", "fg-w", "fg-a", "dfa", "fdfa")


def net(**options):
    return fully_connected([4, 5, 3], seed=0, **options)


@pytest.fixture(scope="module")
def frame():
    return measure(net(batch_norm=True), X, Y, FEW, 64, burn_in=20)


def at(frame, estimator, level="network"):
    return frame[(frame["estimator"] == estimator) & (frame["level"] == level)].iloc[0]


def flat(gradients, keep=1):
    return torch.cat([dense(g).flatten(keep) for g in gradients.values()], keep)


# What comes out ------------------------------------------------------------------------------------------------------


def test_frame_has_a_row_for_every_estimator_and_parameter(frame):
    rows = frame[frame["level"] == "parameter"]
    names = [name for name, _ in net(batch_norm=True).named_parameters()]
    assert list(zip(rows["estimator"], rows["parameter"], strict=True)) == [(e, p) for e in FEW for p in names]


@pytest.mark.parametrize("column", ["variance", "bias2", "mse", "cosine_mean", "norm_ratio", "reference_norm", "valid",
                                    "seconds", "peak_memory"])  # fmt: skip
def test_frame_tells_what_was_asked_for(frame, column):
    assert frame.loc[frame["valid"] & (frame["estimator"] != "fdfa"), column].notna().all()


def test_backpropagation_is_measured_as_exact(frame):
    row = at(frame, "bp")
    assert (row["variance"], row["bias2"], row["mse"], row["cosine_mean"]) == pytest.approx((0, 0, 0, 1))


def test_mean_squared_error_is_variance_and_squared_bias(frame):
    # in the expectation; of R draws exactly so for variance · (R − 1)/R and the biased ‖ḡ − τ‖² = bias2 + variance/R
    assert frame["mse"].to_numpy() == pytest.approx((frame["variance"] + frame["bias2"]).to_numpy(), rel=1e-4, abs=1e-9)


def test_variance_of_weight_perturbation_is_that_of_theory():
    network = net()
    row = at(measure(network, X, Y, ["fg-w"], 4000), "fg-w")
    theory = sum(p.numel() for p in network.parameters()) + 1  # (P + 1) ‖∇‖² for a Gaussian law
    assert row["relative_variance"] == pytest.approx(theory, abs=4 * row["variance_se"] / row["target_norm"] ** 2)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("sampling", "coupled"),
    [("given_batch", None), ("fresh_batches", None), ("fresh_batches", "batch_norm"), ("fresh_batches", "hook")],
)
def test_local_methods_are_held_against_their_own_objective(sampling, coupled, at_once, monkeypatch):
    """Each draw against the exact gradient in its own replica's readouts, by hand; BP has no objective but the network's."""
    if not at_once:
        monkeypatch.setattr(probing, "CHUNK_BYTES", 0)  # as where the network is large: one replica after the other
    network, replicas = fully_connected([4, 5, 4, 3], batch_norm=coupled == "batch_norm", seed=0), 6
    if coupled == "hook":
        network.hidden[0].register_forward_hook(lambda block, given, output: output - output.mean(0))
    reference = Reference.compute(network, X, Y, 4)
    local, again = (make_estimator("lg-fg-w", network, seed=1, replicas=replicas) for _ in range(2))
    options = {"replicates": replicas, "sampling": sampling, "generator": torch.Generator().manual_seed(2)}
    estimators = {"local": local, "bp": make_estimator("bp", network)}
    rows = pd.DataFrame(probe(network, X[:4], Y[:4], estimators, reference, **options))
    whole = rows[rows["level"] == "network"].set_index("estimator")
    assert whole.loc["bp", ["own_error", "own_error_se", "own_norm"]].isna().all()
    batches = [(X[:4], Y[:4])]
    if sampling == "fresh_batches":
        batches.append((X[4:], Y[4:]))
        indices = torch.randint(8, (replicas, 4), generator=torch.Generator().manual_seed(2))
        draws = [flat(again.draws(X[i], Y[i], 1, replica=r)) for r, i in enumerate(indices)]
    else:
        draws = flat(again.draws(*batches[0], replicas)).split(1)
    own = [torch.stack([flat(again.own_gradients(*b, replica=r), 0) for b in batches]).mean(0) for r in range(replicas)]
    errors = torch.stack([(g[0] - t).square().sum() for g, t in zip(draws, own, strict=True)])
    expected = torch.stack([errors.mean(), errors.std() / replicas**0.5, torch.stack(own).square().sum(1).mean().sqrt()])
    found = whole.loc["local", ["own_error", "own_error_se", "own_norm"]].tolist()
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


def test_variance_of_a_local_method_about_its_own_gradient_is_that_of_theory():
    """P + 1 times its squared norm for one Gaussian direction over P parameters, whatever the readouts."""
    network, replicas = fully_connected([4, 5, 4, 3], seed=0), 1000
    local = make_estimator("lg-fg-w", network, seed=1, replicas=replicas)
    rows = pd.DataFrame(probe(network, X, Y, {"local": local}, Reference.on_batch(network, X, Y), replicates=replicas))
    blocks = rows[rows["level"] == "block"].set_index("block")
    for block, size in ((0, 25), (1, 24)):
        row = blocks.loc[block]
        spread = row["own_error_se"] / row["own_norm"] ** 2
        assert spread < 0.1 * size and abs(row["own_error"] / row["own_norm"] ** 2 - (size + 1)) < 4 * spread
    assert blocks.loc[1, "own_error"] == pytest.approx(blocks.loc[1, "error_mean"])  # the last block's loss is the network's


@pytest.mark.parametrize("training", [True, False])
def test_activations_are_the_root_mean_square_of_what_each_hidden_block_gives(training):
    """By hand, in float64, over the reference's batches as they pass; nothing of the network or of a random stream moves."""
    blocks = [nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU()), nn.Sequential(nn.Linear(5, 6), nn.Tanh())]
    network = BlockNetwork(*blocks, nn.Linear(6, 3)).train(training)
    with torch.no_grad():
        network[0][1].running_mean.uniform_(-1, 1)
    before, stream = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    reference = Reference.compute(network, X, Y, 4)
    rows = pd.DataFrame(probe(network, X[:2], Y[:2], {"bp": make_estimator("bp", network)}, reference, replicates=2))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream) and network.training == network[0].training == training
    held = {name: value.double().numpy() for name, value in before.items()}
    squares = [[], []]
    for x in np.split(X.double().numpy(), 2):
        z = x @ held["0.0.weight"].T + held["0.0.bias"]
        mean, var = (z.mean(0), z.var(0)) if training else (held["0.1.running_mean"], held["0.1.running_var"])
        h = np.maximum((z - mean) / np.sqrt(var + 1e-5), 0)
        squares[0].append(h**2)
        squares[1].append(np.tanh(h @ held["1.0.weight"].T + held["1.0.bias"]) ** 2)
    whole = rows[(rows["level"] == "block") & (rows["role"] == "hidden")]
    expected = [float(np.mean(each)) ** 0.5 for each in squares]
    assert whole["activation_rms"].tolist() == pytest.approx(expected, rel=1e-5)
    assert rows.drop(index=whole.index)["activation_rms"].isna().all()


def test_activations_under_dropout_are_those_that_training_sees_and_move_no_stream():
    blocks = [nn.Sequential(nn.Linear(4, 400), nn.Dropout(0.75)), nn.Identity()]
    network, stream = BlockNetwork(*blocks, nn.Linear(400, 3)), torch.get_rng_state()
    dropped, same = activation_rms(network, [X])
    assert torch.equal(torch.get_rng_state(), stream) and dropped == same
    (kept, _), plain = activation_rms(network.eval(), [X]), blocks[0][0](X).double().square().mean().sqrt().item()
    assert kept == pytest.approx(plain, rel=1e-6)
    assert dropped / kept == pytest.approx(2, rel=0.15)  # a quarter is left, each four times as large
    with pytest.raises(InvalidInput, match="batches: got .*at least one batch"):
        activation_rms(network, [])


def test_draws_that_are_made_twice_are_the_same_also_before_the_state_has_its_shapes(monkeypatch):
    """A convolution's readouts get their shapes, and their beginning, from the first batch."""
    monkeypatch.setattr("fdfa_core.measuring.scalars.KEPT_NUMBERS", 0)
    network = BlockNetwork(Block(nn.Linear(4, 5), nn.Tanh()), Block(nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 3))
    estimator = make_estimator("lg-fg-w", network, seed=1, replicas=8)
    rows = probe(network, X, Y, {"local": estimator}, Reference.on_batch(network, X, Y), replicates=8)
    row = pd.DataFrame(rows).query("level == 'network'").iloc[0]
    # ‖g‖² = ‖g − ḡ‖² + ‖ḡ‖² on average, if the draws that give the mean are those that give the deviations
    assert row["norm2_mean"] == pytest.approx(row["deviation_mean"] + row["mean_norm2"], rel=1e-4)


def test_parameter_without_gradient_is_marked_invalid(frame):
    bias_below_normalisation = frame[frame["parameter"] == "0.affine.0.bias"]
    assert not bias_below_normalisation["valid"].any()


def test_state_is_taken_towards_its_stationary_distribution():
    before, after = (at(measure(net(), X, Y, ["fdfa"], 8, burn_in=steps), "fdfa", "block") for steps in (0, 20))
    assert before["norm_ratio"] == 0 < after["norm_ratio"]


@pytest.mark.parametrize("options", [{"feedback_lr": 0.5}, {"feedback_lr": 0.2, "warmup": True}, {"feedback_lr": 1.0}], ids=str)
def test_feedback_that_learns_is_unbiased_in_a_linear_network_without_further_ado(options):
    network = fully_connected([4, 5, 5, 3], activation="identity", seed=0)
    row = at(measure(network, X, Y, [("fdfa", options)], 256), label("fdfa", options))
    assert abs(row["bias2"]) < 4 * row["bias2_se"]


def test_equal_seeds_give_equal_numbers():
    one, two = (measure(net(), X, Y, FEW, 4, burn_in=3, seed=7).drop(columns="seconds") for _ in range(2))
    pd.testing.assert_frame_equal(one, two)


def test_numbers_of_an_estimator_do_not_depend_on_what_else_is_measured():
    both, one = measure(net(), X, Y, ["fg-w", "fg-a"], 4), measure(net(), X, Y, ["fg-a"], 4)
    assert at(both, "fg-a")["mse"] == at(one, "fg-a")["mse"]


def test_fresh_batches_are_compared_to_the_gradient_on_all_samples():
    network = net()
    row = at(measure(network, X, Y, ["bp"], 4, sampling="fresh_batches", batch_size=2), "bp")
    norm2 = sum(g.square().sum() for g in true_gradient(network, X, Y).values())
    assert row["target_norm"] ** 2 == pytest.approx(float(norm2), rel=1e-5)


def test_samples_that_fill_no_batch_are_no_bias_of_backpropagation():
    """Batches of samples left out of the reference gradient would differ from it by more than by chance."""
    network = net()
    x = torch.cat([X, 100 + X[:3]])  # three that would stand out
    reference = Reference.compute(network, x, torch.cat([Y, Y[:3]]), 4)
    bp = {"bp": make_estimator("bp", network)}
    rows = probe(network, X[:4], Y[:4], bp, reference, replicates=400, sampling="fresh_batches")
    row = next(row for row in rows if row["level"] == "network")
    assert len(reference.x) == len(reference.y) == 8
    assert abs(row["bias2"]) < 4 * row["bias2_se"] < 0.1 * row["variance"]


def test_table_says_that_states_share_one_history_of_batches():
    frame = measure(net(), X, Y, ["fg-w", "fdfa"], 4, sampling="fresh_batches", batch_size=2, burn_in=1)
    assert "given one history of batches: fdfa." in " ".join(frame.summary().split())
    assert "history" not in measure(net(), X, Y, ["fdfa"], 4, burn_in=1).summary()
    assert "history" not in measure(net(), X, Y, ["fg-w"], 4, sampling="fresh_batches", batch_size=2).summary()


def test_own_loss_is_the_one_that_is_differentiated():
    network = net()
    frame = measure(network, X, Y, ["bp"], 2, loss=lambda outputs, _: outputs.square().sum(1))
    norm2 = sum(g.square().sum() for g in true_gradient(network, X, Y, lambda outputs, _: outputs.square().sum(1)).values())
    assert at(frame, "bp")["target_norm"] ** 2 == pytest.approx(float(norm2), rel=1e-5)


def test_sequence_is_measured_as_it_is():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    names = set(measure(model, X, Y, ["dfa"], 2)["parameter"]) - {""}
    assert names == {"0.affine.weight", "0.affine.bias", "1.weight", "1.bias"}


def test_measuring_leaves_network_and_random_stream_as_they_were():
    network = net(batch_norm=True)
    before, stream = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    measure(network, X, Y, FEW, 2, burn_in=2)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(p.grad is None for p in network.parameters())


# Which estimators ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything():
    """All estimators on a network without a "pre" site."""
    return measure(BlockNetwork(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)), X, Y, None, 2, burn_in=1)


def test_without_a_choice_every_estimator_is_measured_or_has_a_reason(everything):
    assert set(everything["method"]) | set(everything.attrs["unsupported"]) == set(available_estimators())


def test_estimator_of_the_pre_site_falls_back_to_post_and_says_so(everything):
    assert "fg-a(site=post)" in set(everything["estimator"])


def test_options_are_named_in_the_label():
    assert set(measure(net(), X, Y, [("fg-a", {"site": "post"})], 2)["estimator"]) == {"fg-a(site=post)"}


def test_estimator_asked_for_by_name_says_why_it_cannot_serve():
    network = BlockNetwork(nn.Linear(4, 5), nn.Linear(5, 3))
    with pytest.raises(Unsupported, match='block 0 .* no "pre" site'):
        measure(network, X, Y, ["fg-a"], 2)


# Printing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["parameter", "block", "network"])
def test_table_fits_into_100_columns(frame, level):
    assert max(map(len, frame.summary(level).splitlines())) <= 100


def test_frame_prints_as_its_summary(frame):
    assert str(frame) == frame.summary()


def test_part_of_the_columns_prints_as_pandas_does(frame):
    part = frame[["estimator", "variance"]]
    assert str(part) == str(pd.DataFrame(part))


def test_table_leaves_out_what_means_nothing(frame):
    row = next(line for line in frame.summary("parameter").splitlines() if "0.affine.0.bias" in line)
    assert row.split().count("–") == 5


def test_table_names_what_could_not_be_measured(frame):
    frame = frame.copy()
    frame.attrs["unsupported"] = {"pepita": "outputs of three dimensions"}
    assert "Not measured: pepita: outputs of three dimensions" in frame.summary()


def test_unknown_level_of_the_table_is_refused(frame):
    with pytest.raises(InvalidInput, match="level: got 'layer'; accepted: 'parameter' or 'block' or 'network'"):
        frame.summary("layer")


# Cost ----------------------------------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_alive_together():
    def work():
        a = torch.ones(1000)  # 4 kB
        b = a + 1  # 8 kB
        del a
        return b * 2  # 8 kB

    assert peak_memory(work) == 8000


def test_peak_memory_does_not_count_what_was_there():
    held = torch.ones(1000)
    assert peak_memory(lambda: held.add_(1).view(10, 100)) == 0


def test_peak_memory_sees_reverse_and_forward_mode_differentiation():
    x = torch.ones(1000)
    value = peak_memory(lambda: torch.func.jvp(lambda v: torch.func.vjp(torch.sin, v)[1](v)[0], (x,), (x,)))
    assert 8000 <= value <= 100_000


def test_backpropagation_takes_at_least_its_gradients(frame):
    assert at(frame, "bp")["peak_memory"] >= 4 * sum(p.numel() for p in net(batch_norm=True).parameters())


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicates": 1}, "replicates: got 1; accepted: an integer of at least 2"),
        ({"replicates": 2.0}, "replicates: got 2.0"),
        ({"sampling": "fresh"}, "sampling: got 'fresh'; accepted: 'given_batch' or 'fresh_batches'"),
        ({"sampling": "fresh_batches"}, "batch_size: got None; accepted: an integer from 1 to 8"),
        ({"sampling": "fresh_batches", "batch_size": 9}, "batch_size: got 9"),
        ({"batch_size": 4}, 'batch_size: got 4; accepted: None with sampling="given_batch"'),
        ({"estimators": []}, r"estimators: got \[\]; accepted: at least one name"),
        ({"burn_in": -1}, "burn_in: got -1"),
        ({"estimators": ["fdafa"]}, "estimator: got 'fdafa'; accepted: one of bp"),
        ({"estimators": [("fg-a", {"sight": "pre"})]}, "option of fg-a: got 'sight'"),
    ],
)
def test_impossible_request_is_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        measure(net(), X, Y, **options)


def test_module_that_cannot_be_cut_is_refused():
    with pytest.raises(InvalidInput, match="module: got 'Block'"):
        measure(Block(nn.Linear(4, 5), nn.ReLU()), X, Y)


def test_replicas_that_do_not_fit_into_memory_are_refused(monkeypatch):
    # one state is the feedback: 3 × 5 numbers of 4 bytes
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=60 * 10))
    with pytest.raises(InvalidInput, match="replicates: got .11, which is .* of states of fdfa.*accepted: at most 10"):
        measure(net(), X, Y, ["fdfa"], 11)


@pytest.mark.cuda
def test_network_on_a_gpu_is_measured_there():
    row = at(measure(net(batch_norm=True).cuda(), X, Y, ["fdfa"], 4, burn_in=2), "fdfa")
    assert row["peak_memory"] > 0 and row["mse"] > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_holds_no_numbers_is_refused_by_the_name_of_its_parameter(value):
    net = fully_connected([4, 6, 3], seed=0)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    with torch.no_grad():
        net[0].affine.weight[1, 2] = value
    with pytest.raises(InvalidInput, match="net: 0.affine.weight: got '1 of 24 values NaN or infinite'"):
        measure(net, x, y, ["bp"], replicates=8)
    x[0, 0] = value
    with pytest.raises(InvalidInput, match="x: got '1 of 32 values NaN or infinite'"):
        measure(fully_connected([4, 6, 3], seed=0), x, y, ["bp"], replicates=8)


NO_REQUESTS = [3, "bp", [3], [None], [("bp",)], [("bp", {}, 1)], [("bp", [])], [(3, {})], []]


@pytest.mark.parametrize("estimators", NO_REQUESTS, ids=repr)
def test_what_asks_for_no_estimator_is_refused_by_name(estimators):
    with pytest.raises(InvalidInput, match="^estimators: got .*; accepted: "):
        measure(net(), X, Y, estimators, replicates=4)


# --- How many draws and steps a measurement takes where nobody says ------------------------------------------------


XS, YS = torch.randn(6, 4), torch.randint(3, (6,))


def small():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_as_many_draws_as_fit_into_the_budget():
    work = Work("a", draw=0.1)
    assert [choose([work], seconds) for seconds in (26, 25, 12, 1.6)] == [256, 128, 64, 16]


def test_states_get_fewer_steps_where_the_fewest_draws_do_not_fit():
    slow, none = Work("fdfa", draw=0.01, step=0.1, needed=100, steps=100), Work("dfa", draw=0.01)
    assert choose([slow, none], 20) == CHOICES[-1]
    assert 20 <= slow.steps <= 25 and none.steps == 0
    assert slow.seconds(8) + none.seconds(8) <= 20
    assert [note.split(":")[0] for note in notes([slow, none])] == ["fdfa"]


def test_no_more_replicas_than_memory_holds():
    assert choose([Work("a", most=40)], 20) == 32
    assert choose([Work("a", most=5)], 20) == 5


def test_small_networks_are_measured_in_full_and_in_silence(capsys):
    frame = measure(small(), XS, YS, ["fg-w", ("fdfa", {"feedback_lr": 0.5})])
    assert set(frame["draws"]) == {256} and frame.attrs["notes"] == []
    assert capsys.readouterr().err == ""


def test_defaults_give_the_numbers_of_the_arguments_they_stand_for():
    few = ["fg-w", ("fdfa", {"feedback_lr": 0.5})]
    net_ = small()
    one, two = (measure(net_, XS, YS, few, **given) for given in ({}, {"replicates": 256}))
    assert one["variance"].tolist() == two["variance"].tolist()


def test_arguments_are_obeyed_however_long_they_take(monkeypatch, capsys):
    monkeypatch.setattr(module, "WORTH_SAYING", 0.0)
    monkeypatch.setattr("fdfa_core.measuring.plan.BUDGET", 0.0)
    frame = measure(small(), XS, YS, ["fdfa"], replicates=4, burn_in=7)
    assert set(frame["draws"]) == {4} and frame.attrs["notes"] == []
    said = capsys.readouterr().err
    assert "1 estimators, 4 draws each, about" in said and "fdfa 7" in said and "8/8" in said


def test_shortened_states_are_said_in_the_table(monkeypatch, capsys):
    monkeypatch.setattr(module, "WORTH_SAYING", 0.0)
    monkeypatch.setattr(module, "choose", lambda works: choose(works, budget=1e-3))
    frame = measure(small(), XS, YS, ["fdfa"])
    assert set(frame["draws"]) == {8}
    assert "steps that bring it close to its stationary" in " ".join(frame.summary().split())
    assert "still remembers its start" in capsys.readouterr().err


def test_progress_off_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(module, "WORTH_SAYING", 0.0)
    measure(small(), XS, YS, ["fdfa"], replicates=4, burn_in=2, progress=False)
    assert capsys.readouterr().err == ""


def test_announcement_is_one_line_with_a_time(capsys):
    announce([Work("fg-w", draw=0.5)], 8)
    assert capsys.readouterr().err == "measure: 1 estimators, 8 draws each, about 4 s\n"


def test_an_estimator_that_refuses_its_targets_does_not_end_the_measurement():
    outputs = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    frame = measure(outputs, XS, torch.randn(6), None, 2, burn_in=1, loss=lambda o, t: (o.mean(1) - t).square())
    assert "y: shape" in frame.attrs["unsupported"]["drtp"] and "dfa" in set(frame["estimator"])


def test_inputs_in_a_dict_are_named():
    with pytest.raises(ValueError, match="inputs: got 'a dict'; accepted: a tensor"):
        measure(small(), {"x": XS}, YS)
    with pytest.raises(ValueError, match="x: got 'a dict'; accepted: a tensor"):
        measure(cut(small()), {"x": XS}, YS)


def test_sparse_buffers_and_scalar_parameters_are_measured():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(5, 5), nn.Parameter(torch.tensor(2.0))
            self.register_buffer("graph", torch.eye(6).to_sparse())

        def forward(self, x):
            return self.scale * torch.sparse.mm(self.graph, self.layer(x))

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Graph(), nn.Tanh(), nn.Linear(5, 3))
    frame = measure(model, XS, YS, ["bp", "dfa", "fg-w"], 3)
    assert (frame["peak_memory"] > 0).all() and frame["variance"].notna().all()


# --- What training needs in memory at its peak, at the size of the paper's largest network, and what a process keeps of it


def test_feedback_update_on_alexnet_holds_little_more_than_activations_and_feedback():
    """The product of every sample's response and perturbation, N × O × n_l numbers, would alone take ten times as much."""
    net = alexnet(100, input_size=224, seed=0)
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 3, 224, 224, generator=stream), torch.randint(100, (32,), generator=stream)
    estimator = make_estimator("fdfa", net)
    activations = []
    layers = [module for module in net.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(lambda *call: activations.append(call[-1].nbytes)) for layer in layers]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    feedback = sum(b.nbytes for b in estimator.feedback)
    assert peak_memory(lambda: estimator.advance(x, y)) < 1.2 * (sum(activations) + feedback)


FAULTS = """
import resource, torch
from fdfa_core.memory import keep_freed_memory

KEEP

def step():
    kept = torch.ones(500_000)
    for _ in range(3):
        torch.ones(5_000_000)  # 20 MB, or 4,883 pages

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

[step() for _ in range(6)]  # until the heap has found its shape
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def page_faults(code: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS.replace("KEEP", code)]
    found = subprocess.run(command, env=clean | environment, check=True, capture_output=True, text=True)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_a_process_that_keeps_freed_memory_takes_no_new_pages_for_what_it_needs_next():
    assert page_faults("assert keep_freed_memory()") < 1000
    # what the environment asks for stands: here, that every block of 64 kB and more is handed back
    asked = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    handed_back = page_faults("assert not keep_freed_memory()", **asked)
    large_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if large_pages.exists() and "[always]" not in large_pages.read_text():
        assert handed_back > 5 * 3 * 4000


GROWN = """
import pathlib, torch
from fdfa_core.memory import keep_freed_memory

KEEP
held = []
for _ in range(4):
    total = torch.ones(10_000_000)  # 40 MB
    for _ in range(3):
        total = total + torch.ones(10_000_000)
    held.append(torch.stack([total, total]).double().square().sum(1))  # small, and lives on
# `getrusage` would count what the parent held at the fork
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_a_process_that_keeps_freed_memory_does_not_grow_where_blocks_are_large():
    handed_back, kept, all_kept = (
        int(subprocess.check_output([sys.executable, "-c", GROWN.replace("KEEP", code)], text=True))
        for code in ("", "assert keep_freed_memory()", "assert keep_freed_memory(all_sizes=True)")
    )
    assert kept < 1.2 * handed_back < all_kept


def backward(module, *shape):
    """Return a call that takes the gradients of a module's weights and of its input."""
    x = torch.randn(*shape, requires_grad=True)
    return lambda: module(x).sum().backward()


def attention(**options):
    return F.scaled_dot_product_attention(*(torch.ones(3, 2, n, 4, **options) for n in (7, 9, 9)))


ATTENTION = 2 * 3 * 2 * 7 * 9 * 4  # one product of (3, 2) heads, 7 queries, 9 keys, 4 wide


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: torch.addmm(torch.ones(6), torch.ones(4, 5), torch.ones(5, 6)), 2 * 4 * 5 * 6),
        (lambda: torch.ones(2, 4, 6).baddbmm_(torch.ones(2, 4, 5), torch.ones(2, 5, 6)), 2 * 2 * 4 * 5 * 6),
        (lambda: torch.ones(4, 6).addmm_(torch.ones(4, 5), torch.ones(5, 6)), 2 * 4 * 5 * 6),
        (lambda: torch.randn(1000).sigmoid(), 0),
        (backward(torch.nn.Linear(5, 6), 4, 5), 3 * 2 * 4 * 5 * 6),  # the output, and both gradients
        (backward(torch.nn.Conv2d(4, 8, 3), 2, 4, 6, 6), 3 * 2 * 2 * 8 * 16 * 9 * 4),
        (backward(torch.nn.Conv2d(4, 8, 3, groups=4), 2, 4, 6, 6), 3 * 2 * 2 * 8 * 16 * 9),
        (backward(torch.nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2), 2, 4, 6, 6), 3 * 2 * 2 * 4 * 36 * 4 * 4),
        (lambda: attention(), 2 * ATTENTION),
        (lambda: attention(requires_grad=True).sum().backward(), 7 * ATTENTION),
    ],
    ids=["addmm", "baddbmm_", "addmm_", "elements", "linear", "conv", "grouped", "transposed", "attention", "its gradient"],
)
def test_operations_are_those_of_the_shapes(call, expected):
    assert operations(call) == expected


@pytest.mark.parametrize("make", [lambda: residual((1, 8, 8), 10, seed=0), lambda: transformer((1, 8, 8), 10, seed=0)])
def test_one_forward_gradient_of_the_weights_takes_the_operations_of_backpropagation(make):
    """Values, and tangents of weights and of inputs: as many products as for values and both gradients, in any network."""
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    counts = {}
    for name in ("bp", "fg-w"):
        estimator = make_estimator(name, make())
        estimator.backward(x, y)
        counts[name] = operations(lambda estimator=estimator: estimator.backward(x, y))
    assert counts["fg-w"] == pytest.approx(counts["bp"], rel=0.01)
