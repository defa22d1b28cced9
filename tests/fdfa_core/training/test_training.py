"""Training runs: their numbers, their instruments, and those that are refused since no memory holds them."""

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fdfa_core import Block, BlockNetwork, available_estimators, make_estimator, true_gradient
from fdfa_core.errors import InvalidInput, OutOfMemory, RunError, Unsupported
from fdfa_core.experiments.schedules import build, first
from fdfa_core.experiments.tables import At, Epochs, Every, FirstAndLast, Geometric, RunConfig
from fdfa_core.networks.registry import ARCHITECTURES
from fdfa_core.runs.directory import is_complete, read_provenance, read_summary, read_table
from fdfa_core.seeds import derive
from fdfa_core.training import instruments, size
from fdfa_core.training.check import check
from fdfa_core.training.process import loaded_dataset
from fdfa_core.training.run import train
from fdfa_core.training.session import Session
from fdfa_core.training.size import memory_reported, total_memory
from places import ROOT
from tiny import PROBE, Child, tables, tiny

LONG = {"training": {"epochs": 10}}
ESTIMATORS = {
    "bp": {"name": "bp"},
    "fg-w": {"name": "fg-w"},
    "fdfa": {"name": "fdfa", "feedback_lr": 0.1},
    "fdfa-adam": {"name": "fdfa", "feedback_rule": "adam"},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Forked children must not find half of a thread pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def dropout(monkeypatch):
    """An architecture that draws from torch's global random stream at every forward pass."""

    def with_dropout(input_shape, outputs, *, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            hidden = Block(nn.Linear(64, 16), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
            return BlockNetwork(nn.Flatten(), hidden, nn.Linear(16, outputs), input_shape=input_shape)

    monkeypatch.setitem(ARCHITECTURES, "dropout", with_dropout)
    return {"network": {"architecture": "dropout"}}


def session_of(config) -> Session:
    torch.manual_seed(0)
    return Session(config, loaded_dataset("digits", None, True), torch.device("cpu"))


def weights_after(config) -> dict[str, torch.Tensor]:
    session = session_of(config)
    while not session.done:
        session.advance()
    return session.net.state_dict()


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_equal_seeds_give_equal_bits(estimator, tmp_path):
    config = tiny(estimator=estimator, probe=PROBE)
    assert tables(train(config, tmp_path / "a")) == tables(train(config, tmp_path / "b"))


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_seeds_make_a_difference(estimator):
    first, second = (weights_after(tiny(estimator=estimator, seed=seed)) for seed in (0, 1))
    assert not any(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))


def test_random_numbers_drawn_before_make_no_difference(dropout, tmp_path):
    first = train(tiny(**dropout), tmp_path / "a")
    torch.rand(1)
    assert tables(train(tiny(**dropout), tmp_path / "b")) == tables(first)


def test_training_leaves_the_global_random_stream_alone(dropout, tmp_path):
    before = torch.get_rng_state()
    train(tiny(**dropout, probe=PROBE), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("estimator", [*ESTIMATORS.values(), *({"name": name} for name in available_estimators())], ids=str)
def test_instruments_do_not_change_training(estimator):
    """Nor do they change random feedback that is drawn at the first batch, which a probe meets before training does."""
    estimator = {"site": "post"} | estimator if estimator["name"] in ("fg-a", "lg-fg-a", "fg-a-averaged") else estimator
    assert same(weights_after(tiny(estimator=estimator)), weights_after(tiny(estimator=estimator, probe=PROBE)))


def test_instruments_do_not_change_training_that_draws_from_the_global_stream(dropout):
    assert same(weights_after(tiny(**dropout)), weights_after(tiny(**dropout, probe=PROBE)))


SHARING = PROBE | {
    "common_random_numbers": True,
    "estimators": [
        {"name": "self"},
        {"name": "fg-w"},
        {"name": "fdfa", "feedback_lr": 1.0},
        {"name": "fdfa", "feedback_lr": 0.25},
        {"name": "fdfa", "feedback_lr": 0.25, "perturbation": "rademacher"},
        {"name": "cosine-dfa"},
        {"name": "grape"},
    ],
}


@pytest.mark.parametrize("probe", [PROBE, SHARING], ids=["own numbers", "common numbers"])
def test_an_added_shadow_does_not_change_what_the_others_measure(probe, tmp_path):
    added = {"name": "fdfa", "feedback_rule": "adam"}
    more = probe | {"estimators": [{"name": "dfa"}, added, *probe["estimators"]]}
    few, many = (read_table(train(tiny(probe=table), tmp_path), "probes") for table in (probe, more))
    assert few.equals(many[~many["estimator"].isin(["dfa", "fdfa(feedback_rule=adam)"])].reset_index(drop=True))


def test_with_common_random_numbers_shadows_that_perturb_alike_learn_from_the_same_jacobians():
    """With α = 1 the feedback is the newest estimate D, so the average of these is what another α must hold."""
    session = session_of(tiny(probe=SHARING))
    shadows = session.instruments.shadows
    given = ("1.0", "0.25", "0.25, perturbation=rademacher")
    newest, average, signs = (shadows[f"fdfa(feedback_lr={options})"] for options in given)
    expected, estimates = torch.zeros_like(average.feedback[0]), []
    for _ in range(4):
        session.advance()
        estimates.append(newest.feedback[0].clone())
        expected = 0.75 * expected + 0.25 * estimates[-1]
    torch.testing.assert_close(average.feedback[0], expected)
    assert not torch.allclose(signs.feedback[0], expected, rtol=0.1)
    drawn = torch.stack(estimates).flatten(2)  # (step, replica, numbers): no two alike
    assert torch.cdist(drawn.flatten(0, 1), drawn.flatten(0, 1)).fill_diagonal_(1).min() > 0.01


def test_common_random_numbers_leave_training_and_other_draws_alone(tmp_path):
    own, common = ({**SHARING, "common_random_numbers": value} for value in (None, True))
    assert same(weights_after(tiny(probe=own)), weights_after(tiny(probe=common)))
    own, common = (read_table(train(tiny(probe=probe), tmp_path), "probes") for probe in (own, common))
    others = own["estimator"].isin(["self", "fg-w"])
    assert own[others].equals(common[others]) and not own[~others].equals(common[~others])


def test_common_random_numbers_need_no_state_to_be_resumed():
    unbroken, first, second = (session_of(tiny(probe=SHARING)) for _ in range(3))
    for _ in range(6):
        unbroken.advance()
    for _ in range(3):
        first.advance()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.advance()
    ends = [session.instruments.shadows["fdfa(feedback_lr=0.25)"].feedback[0] for session in (unbroken, second)]
    assert torch.equal(*ends)


def test_runs_without_common_random_numbers_keep_their_ids():
    assert tiny(probe=PROBE | {"common_random_numbers": None}).id == tiny(probe=PROBE).id != tiny(probe=SHARING).id


# --- killed and taken up again ---------------------------------------------------------------------------------------


class Interruption(Exception):
    pass


def interrupt_at(step):
    def progress(done, total):
        if done == step:
            raise Interruption

    return progress


def die_at(step):
    def progress(done, total):
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_a_run_killed_at_several_steps_ends_with_the_bits_of_an_unbroken_one(estimator, tmp_path):
    config = tiny(estimator=estimator, probe=PROBE | {"raw_gradients": True})
    for step in (1, 5, 11):
        child = Child(train, config, tmp_path / "broken", checkpoint_seconds=0, progress=die_at(step))
        assert child.ended() == -signal.SIGKILL
    assert not is_complete(tmp_path / "broken", config.id)
    resumed, unbroken = train(config, tmp_path / "broken"), train(config, tmp_path / "unbroken")
    assert len(read_provenance(resumed)["resumed"]) == 2  # a kill at step 1 comes before the first checkpoint
    assert tables(resumed) == tables(unbroken)


def test_a_run_with_dropout_resumes_its_global_stream(dropout, tmp_path):
    config = tiny(**dropout)
    Child(train, config, tmp_path / "broken", checkpoint_seconds=0, progress=die_at(5)).ended()
    assert tables(train(config, tmp_path / "broken")) == tables(train(config, tmp_path / "unbroken"))


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_an_unbroken_one(kills, tmp_path):
    config = tiny(**LONG, estimator=ESTIMATORS["fdfa"], probe=PROBE)
    unbroken = train(config, tmp_path / "unbroken")
    moments, done = random.Random(0), 0
    while done < kills:
        child = Child(train, config, tmp_path / "broken", checkpoint_seconds=0)
        time.sleep(moments.uniform(0.02, 0.4))
        done += child.kill()
        if is_complete(tmp_path / "broken", config.id):
            assert tables(tmp_path / "broken" / config.id) == tables(unbroken)
            for path in (tmp_path / "broken" / config.id).iterdir():
                path.unlink()
            (tmp_path / "broken" / config.id).rmdir()
    assert tables(train(config, tmp_path / "broken")) == tables(unbroken)


def test_a_run_killed_before_its_last_rename_is_published_as_it_is(tmp_path):
    config = tiny()
    directory = train(config, tmp_path)
    before = tables(directory)
    directory.rename(tmp_path / f"{config.id}.partial")
    assert tables(train(config, tmp_path)) == before


def test_a_finished_run_is_not_repeated(tmp_path):
    started = read_provenance(train(tiny(), tmp_path))
    assert read_provenance(train(tiny(), tmp_path)) == started


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path):
    child = Child(train, tiny(), tmp_path, progress=lambda done, total: time.sleep(10))
    while not list(tmp_path.glob("*.partial")):
        time.sleep(0.01)
    assert train(tiny(), tmp_path, wait=False) is None
    child.kill()


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path):
    config = tiny()
    with pytest.raises(Interruption):
        train(config, tmp_path, checkpoint_seconds=0, threads=2, progress=interrupt_at(5))
    seen = []
    train(config, tmp_path, threads=1, progress=lambda done, total: seen.append(torch.get_num_threads()))
    assert set(seen) == {2} and torch.get_num_threads() == 1


# --- what goes wrong -------------------------------------------------------------------------------------------------


def with_file_limit(size, *arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return train(*arguments, **options)


def test_a_full_disk_is_a_clear_error_and_the_run_is_resumed_when_there_is_room(tmp_path):
    config = tiny(estimator=ESTIMATORS["fdfa"], probe=PROBE)
    error = Child(with_file_limit, 8192, config, tmp_path / "full", checkpoint_seconds=0).result()
    assert isinstance(error, RunError) and "checkpoint.pt: cannot be written (File too large)" in str(error)
    assert not is_complete(tmp_path / "full", config.id)
    assert tables(train(config, tmp_path / "full")) == tables(train(config, tmp_path / "unbroken"))


def test_a_diverging_run_is_recorded_with_its_step_and_its_tables_so_far(tmp_path):
    training = {"optimizer": "sgd", "learning_rate": 1e25}
    directory = train(tiny(training=training, network={"batch_norm": False}, probe=PROBE), tmp_path)
    summary = read_summary(directory)
    assert summary["status"] == "diverged" and 0 < summary["diverged_step"] == summary["steps"] < 12
    assert np.isfinite(read_table(directory, "metrics")["test_loss"]).all() and len(read_table(directory, "probes"))


def test_a_run_that_diverges_before_its_second_evaluation_has_a_summary_in_json(tmp_path):
    training = {"optimizer": "sgd", "learning_rate": 1e25}
    directory = train(tiny(training=training, network={"batch_norm": False}), tmp_path)
    final = json.loads((directory / "summary.json").read_text(), parse_constant=pytest.fail)["final"]
    assert final["step"] == 0 and final["batch_loss"] is None and math.isfinite(final["test_loss"])
    assert math.isnan(read_table(directory, "metrics")["batch_loss"].item())


def test_a_batch_larger_than_the_data_leaves_no_finished_run(tmp_path):
    config = tiny(training={"batch_size": 129})
    with pytest.raises(InvalidInput, match="batch_size: got 129; accepted: 1 to 128"):
        train(config, tmp_path)
    assert not is_complete(tmp_path, config.id)


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="device: got 'gpu'; accepted: one of auto, cpu"):
        train(tiny(), tmp_path, device="gpu")


def test_another_runs_directory_is_not_taken_for_this_one(tmp_path):
    directory = train(tiny(), tmp_path)
    (directory / "config.json").write_text(tiny(seed=1).canonical())
    with pytest.raises(RunError, match="holds another run's configuration"):
        train(tiny(), tmp_path)


# --- what is logged --------------------------------------------------------------------------------------------------


def test_metrics_have_a_row_before_the_first_step_and_after_each_epoch(tmp_path):
    metrics = read_table(train(tiny(), tmp_path), "metrics")
    assert metrics["step"].tolist() == [0, 4, 8, 12] and metrics["epoch"].tolist() == [0, 1, 2, 3]


def test_training_lowers_the_loss(tmp_path):
    metrics = read_table(train(tiny(training={"epochs": 20, "learning_rate": 0.01}), tmp_path), "metrics")
    assert metrics["train_loss"].iloc[-1] < 0.5 * metrics["train_loss"].iloc[0]


def test_metrics_equal_those_computed_by_hand():
    session = session_of(tiny())
    session.evaluate_if_due()
    x, y = session.test.all(flatten=True)
    with torch.no_grad():
        outputs = session.net.eval()(x)
    row = session.final
    assert math.isclose(row["test_loss"], nn.functional.cross_entropy(outputs, y).item(), rel_tol=1e-6)
    assert math.isclose(row["test_accuracy"], (outputs.argmax(1) == y).double().mean().item(), rel_tol=1e-12)


def test_the_batch_loss_is_the_mean_since_the_row_before():
    session = session_of(tiny())
    losses = []
    for _ in range(4):
        x, y = session._batch()
        losses.append(nn.functional.cross_entropy(session.net(x), y).item())
        session.advance()
    session.evaluate_if_due()
    assert math.isclose(session.final["batch_loss"], np.mean(losses), rel_tol=1e-5)


def test_every_sample_is_met_once_an_epoch():
    session = session_of(tiny(training={"batch_size": 48}))
    session._batch()
    assert [len(batch) for batch in session._order] == [48, 48, 32]
    assert sorted(torch.cat(session._order).tolist()) == list(range(128))


def test_epochs_differ_in_their_order():
    session = session_of(tiny())
    session._batch()
    first = session._order
    session.step = session.steps_per_epoch
    session._batch()
    assert not torch.equal(torch.cat(first), torch.cat(session._order))


def test_the_learning_rate_decays_by_the_epoch(tmp_path):
    metrics = read_table(train(tiny(training={"learning_rate": 0.1, "decay": 0.5}), tmp_path), "metrics")
    assert metrics["learning_rate"].tolist() == [0.1, 0.05, 0.025, 0.0125]


def test_the_learning_rate_falls_at_milestones_besides(tmp_path):
    training = {"learning_rate": 0.1, "decay": 0.5, "epochs": 4, "milestones": [1, 3], "gamma": 0.1}
    metrics = read_table(train(tiny(training=training), tmp_path), "metrics")
    assert metrics["learning_rate"].tolist() == pytest.approx([0.1, 0.005, 0.0025, 0.000125, 0.0000625], rel=1e-12)


def test_pepita_trains_at_its_published_setting():
    """Shortened to nine epochs; the digits are few, so that the batch of 64 is one of 16 here."""
    network = {"architecture": "fully_connected", "hidden": [1024], "batch_norm": False, "bias": False, "dropout": 0.1}
    training = {"epochs": 9, "batch_size": 16, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1}
    config = RunConfig.model_validate({
        "data": {"name": "digits", "scale": "unit"},
        "network": {**network, "initialisation": "he_uniform"},
        "estimator": {"name": "pepita"},
        "training": {**training, "milestones": [5, 8], "gamma": 0.1},
    })  # fmt: skip
    session = session_of(config)
    x, _ = session._batch()
    assert 0 <= float(x.min()) and float(x.max()) == 1 and [name for name, _ in session.net.named_parameters()] == [
        "0.affine.weight",
        "1.weight",
    ]
    while not session.done:
        session.advance()
    session.evaluate_if_due()
    assert session.learning_rate == pytest.approx(1e-3)
    assert session.final["test_accuracy"] > 0.93 and session.final["train_accuracy"] > 0.95


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_step_is_the_optimisers_step_along_the_estimate(optimizer):
    training = {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.01}
    session = session_of(tiny(training=training | ({"momentum": 0.9} if optimizer == "sgd" else {})))
    twin = session_of(tiny()).net
    cls = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    moves = cls(twin.parameters(), lr=0.1, weight_decay=0.01, **({"momentum": 0.9} if optimizer == "sgd" else {}))
    for _ in range(3):
        x, y = session._batch()
        for name, gradient in true_gradient(twin, x, y).items():
            twin.get_parameter(name).grad = gradient
        moves.step()
        session.advance()
    for name, parameter in session.net.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(name))


def test_validation_samples_are_held_out_of_training():
    session = session_of(tiny(data={"evaluate_on": "validation", "train_size": None, "name": "digits"}))
    images = {image.numpy().tobytes() for image in session.train.images}
    assert len(session.test) == 216 and len(session.train) == 1437 - 216
    assert sum(image.numpy().tobytes() in images for image in session.test.images) == 0


def test_frozen_weights_do_not_move_while_feedback_does(tmp_path):
    session = session_of(tiny(estimator=ESTIMATORS["fdfa"], training={"optimizer": "none"}))
    before = {name: p.clone() for name, p in session.net.named_parameters()}
    session.advance()
    assert same(before, dict(session.net.named_parameters())) and session.estimator.feedback[0].abs().sum() > 0


def test_provenance_names_code_versions_hardware_and_data(tmp_path):
    origin = read_provenance(train(tiny(), tmp_path, threads=1))
    assert origin["versions"]["torch"] == torch.__version__ and origin["hardware"]["threads"] == 1
    assert origin["data"]["sha256"] == loaded_dataset("digits", None, True).sha256 and origin["started"] <= origin["finished"]


# --- what is measured ------------------------------------------------------------------------------------------------


def test_probes_have_rows_for_every_scheduled_step_and_estimator(tmp_path):
    probes = read_table(train(tiny(probe=PROBE), tmp_path), "probes")
    assert {(s, e) for s, e in zip(probes["step"], probes["estimator"], strict=True)} == {
        (step, estimator) for step in (0, 4, 8, 11) for estimator in ("self", "fg-w", "fdfa(feedback_lr=0.1)")
    }


def test_self_is_the_estimator_that_trains(tmp_path):
    probes = read_table(train(tiny(estimator=ESTIMATORS["fdfa"], probe=PROBE), tmp_path), "probes")
    own = probes[probes["estimator"] == "self"]
    assert set(own["method"]) == {"fdfa"} and set(own["options"]) == {json.dumps({"feedback_lr": 0.1})}


def test_a_shadow_follows_the_weights_of_the_training():
    """Its replicas are what an estimator of the same seed becomes that sees the same weights and batches."""
    session = session_of(tiny(probe=PROBE))
    name = "fdfa(feedback_lr=0.1)"
    twin = make_estimator("fdfa", session.net, seed=derive(0, "shadow", name), replicas=3, feedback_lr=0.1)
    session.instruments.schedule = lambda step: False
    for _ in range(6):
        twin.advance(*session._batch())
        session.advance()
    assert torch.equal(session.instruments.shadows[name].feedback[0], twin.feedback[0])
    assert twin.feedback[0].std(0).min() > 0


def test_raw_gradients_are_stored_beside_the_true_ones(tmp_path):
    probe = PROBE | {"raw_gradients": True, "schedule": {"kind": "at", "steps": [4]}}
    directory = train(tiny(probe=probe), tmp_path)
    stored = load_file(directory / "gradients" / "step=4.safetensors")
    session = session_of(tiny())
    for _ in range(4):
        session.advance()
    truth = true_gradient(session.net, *session._batch())
    for name, gradient in truth.items():
        torch.testing.assert_close(stored[f"bp/{name}"], gradient)
        assert stored[f"fg-w/{name}"].shape == (3, *gradient.shape)


def test_draws_of_self_come_from_a_stream_of_their_own_at_every_step(monkeypatch):
    """A probe that drew on from where training stands would meet the same perturbations again one step later."""
    streams = []

    def probe(net, x, y, estimators, reference, **options):
        streams.append(estimators["self"].generator.get_state())
        return []

    monkeypatch.setattr(instruments, "probe", probe)
    session = session_of(tiny(estimator={"name": "fg-w"}, probe=PROBE | {"schedule": {"kind": "every", "k": 1}}))
    for _ in range(3):
        streams.append(session.estimator.generator.get_state())
        session.advance()
    assert len(streams) == len({state.numpy().tobytes() for state in streams}) == 6


TOO_LARGE = {
    "hidden": ({"network": {"hidden": [10**6, 10**6]}}, r"network.hidden: got \[1000000, 1000000\]; accepted: what fits into"),
    "hidden beyond any address": ({"network": {"hidden": [2**62, 8]}}, "network.hidden: got .*the weights"),
    "width beyond any address": (
        {"network": {"architecture": "alexnet", "width": 2.0**62}, "data": {"image_size": 32}},
        "network: got .*the weights take",
    ),
    "image_size": ({"data": {"image_size": 10**6}}, "data.image_size: got 1000000; .* images take"),
    "tangents": ({"estimator": {"name": "fg-w", "tangents": 10**9}}, "estimator.tangents: got 1000000000; .*directions take"),
    "tangents of activities": ({"estimator": {"name": "fdfa", "tangents": 10**10}}, "estimator.tangents: got 10000000000"),
    "replicates": ({"probe": PROBE | {"replicates": 10**9}}, "probe.replicates: got 1000000000; .*the states of fdfa take"),
}


@pytest.mark.parametrize("change, said", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_no_memory_holds_is_refused_before_it_is_built(change, said):
    with pytest.raises(InvalidInput, match=said):
        check(tiny(**change))


def test_the_limit_is_the_sum_of_what_is_held(monkeypatch):
    """Weights of [64, 8, 8, 10] with batch normalisation: four copies of 714 numbers; 360 images of 64 numbers beside them."""
    config = tiny()
    exact = 4 * (4 * (64 * 8 + 8 + 16 + 8 * 8 + 8 + 16 + 8 * 10 + 10)) + 4 * 360 * 64
    monkeypatch.setattr(size, "total_memory", lambda device: exact)
    check(config)
    monkeypatch.setattr(size, "total_memory", lambda device: exact - 1)
    with pytest.raises(InvalidInput, match="network.hidden"):
        check(config)


LACKS = [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")]
LACKS += [TypeError("empty(): Overflow when unpacking long long")]


@pytest.mark.parametrize("error", LACKS)
def test_a_lack_of_memory_is_named_whatever_torch_calls_it(error):
    with pytest.raises(OutOfMemory, match="run 7: needs more memory than there is; make batch_size"), memory_reported("run 7"):
        raise error


def test_another_error_passes():
    with pytest.raises(RuntimeError, match="^other$"), memory_reported("run 7"):
        raise RuntimeError("other")


def test_a_limit_of_the_shell_counts():
    code = "import resource, torch; resource.setrlimit(resource.RLIMIT_AS, (7 << 30, 7 << 30));"
    code += "from fdfa_core.training.size import total_memory; print(total_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) <= 7 << 30
    assert total_memory(torch.device("cpu")) > 0


def test_more_layers_than_can_be_built_in_minutes_are_refused():
    with pytest.raises(InvalidInput, match="network.hidden: got 'a list of 1001'; accepted: at most 1000"):
        check(tiny(network={"hidden": [8] * 1001}))


@pytest.mark.timeout(20)
def test_a_probe_that_no_step_of_billions_reaches_is_refused_at_once():
    probe = PROBE | {"schedule": {"kind": "at", "steps": [5 * 10**9]}}
    training = {"steps": 4 * 10**9, "epochs": None}
    with pytest.raises(InvalidInput, match="probe.schedule: .*a schedule with a step below 4000000000"):
        check(tiny(probe=probe, training=training))


SCHEDULES = [
    Every(kind="every", k=3),
    Geometric(kind="geometric", first=5, ratio=1.5),
    Geometric(kind="geometric", first=50, ratio=2.0, last=True),
    At(kind="at", steps=[7, 4]),
    At(kind="at", steps=[40], last=True),
    Epochs(kind="epochs", every=2),
    FirstAndLast(kind="first_and_last"),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind} {getattr(s, 'last', '')}")
def test_the_first_step_of_a_schedule_is_the_first_that_is_due(schedule):
    due = build(schedule, steps_per_epoch=4, last=29)
    assert first(schedule, last=29) == next(step for step in range(100) if due(step))


def test_a_watch_of_feedback_without_any_to_watch_is_refused():
    probe = PROBE | {"estimators": [{"name": "fg-w"}], "feedback": True}
    with pytest.raises(Unsupported, match="probe.feedback: feedback = true needs a probed estimator .* such as fdfa"):
        check(tiny(probe=probe, network={"batch_norm": False}))


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, "x", True])
def test_seconds_that_no_clock_passes_are_refused(tmp_path, seconds):
    with pytest.raises(InvalidInput, match="checkpoint_seconds: got .*; accepted: a number of seconds"):
        train(tiny(), tmp_path, checkpoint_seconds=seconds)
