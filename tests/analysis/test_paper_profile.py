"""The experiments at the paper's scale: all can run, all are fair, cost what is counted, and agree with the released code."""

import re
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import fdfa_core.data
import recorded
from analysis import effort, inventory, logs, released, tuning
from analysis.rebuilt import flops
from analysis.verdicts import plan, protocol
from benchmarks import released_code
from fdfa_core.data import Dataset
from fdfa_core.errors import RunError
from fdfa_core.estimators import label, make_estimator
from fdfa_core.experiments.loading import EXPERIMENTS, load_experiment, load_profile, merge
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.networks.registry import build
from fdfa_core.runs import validation
from fdfa_core.runs.store import open_store
from fdfa_core.training.check import check
from places import ROOT

PROFILES = {name: load_profile(name) for name in ("paper", "protocol", "tuning", "alexnet")}
# Of the paper's experiments on training those that the protocol does not judge: their rates are of earlier grids. One that it
# judges is tuned by it, and moves here from the profile "protocol".
OLDER = [n for n in plan.departures(PROFILES["paper"].values(), protocol.SETTINGS) if n in PROFILES["paper"]]
FILES = {f"{profile}/{name}": e for profile, found in PROFILES.items() for name, e in found.items() if name != "digits"}


def small(config: RunConfig) -> RunConfig:
    """The same run on little data and with little to compute, every name and option as it is."""
    table = config.model_dump(exclude_none=True)
    table = merge(table, {"seed": 0, "data": {"train_size": 260}, "training": {"learning_rate": 1e-3}})
    if config.network.architecture == "alexnet":
        table["network"]["width"] = 1 / 32
    return RunConfig.model_validate(table)


def blank(name: str, *_) -> Dataset:
    """A data set of black images with the shape and the classes of the real one."""
    (channels, height, width), classes = flops.IMAGES[name]
    images, labels = torch.zeros(1, channels, height, width, dtype=torch.uint8), torch.arange(1000) % classes
    return Dataset(name, images.expand(1000, -1, -1, -1), labels, images.expand(2 * classes, -1, -1, -1), labels[: 2 * classes],
                   tuple(map(str, range(classes))), "0" * 64)  # fmt: skip


# --- the experiment files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_experiment_could_run(name, monkeypatch):
    """All that a run builds is built, for every estimator, on blank images of the right shape."""
    monkeypatch.setattr("fdfa_core.training.check.loaded_dataset", blank)
    for config in {
        small(c).id: small(c) for c in FILES[name].runs() if max(c.network.options.get("hidden", [0])) <= 1600
    }.values():
        check(config)


@pytest.mark.parametrize("name", FILES)
def test_all_estimators_of_an_experiment_have_the_same_seeds_and_grid(name):
    judged = FILES[name].role == "convergence" and FILES[name].name not in OLDER
    if FILES[name].role in tuning.ROLES or name.startswith("protocol/") or judged:
        return  # tests/analysis/test_tuning.py holds them to the protocol
    budget = {}
    for run in FILES[name].runs():
        estimator = run.estimator.model_dump()
        if name == "paper/depth":  # each depth chose its own
            estimator.pop("feedback_lr", None)
        key = (str(estimator), run.probe and run.probe.model_dump_json())
        free = run.training.learning_rate if name.startswith("tuning") else None
        budget.setdefault(key, []).append(str((run.seed, free, run.network.model_dump_json(), run.training.epochs)))
    if name == "paper/width":  # the slowest feedback is measured in the narrower networks alone; the file says why
        slow = [key for key in budget if '"feedback_lr":0.001' in key[1]]
        widths = {50, 100, 200, 400, 800}
        narrow = [str((run.seed, None, run.network.model_dump_json(), None)) for run in FILES[name].runs()
                  if run.network.options["hidden"][0] in widths]  # fmt: skip
        assert [sorted(budget.pop(key)) for key in slow] == [sorted(set(narrow))]
    assert len({tuple(sorted(runs)) for runs in budget.values()}) == 1


def test_tuning_never_looks_at_the_test_set_nor_uses_the_seeds_of_the_results():
    results = {run.seed for profile in ("paper", "protocol") for e in PROFILES[profile].values() for run in e.runs()}
    for experiment in PROFILES["tuning"].values():
        assert all(run.data.evaluate_on == "validation" and run.seed not in results for run in experiment.runs())


def test_make_reproduce_covers_the_profile():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    names = re.search(r"^PAPER .*addsuffix \.toml,([^)]*)", text, re.MULTILINE)[1].split()
    assert sorted(names) == sorted(PROFILES["paper"])


def test_every_experiment_of_the_profile_is_documented():
    text = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in PROFILES["paper"])


def test_recorded_results_are_small_and_complete():
    """Thirty megabytes in all, in few files; every recorded run can be read whole and belongs to an experiment."""
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    known = {run.id for profile in PROFILES.values() for experiment in profile.values() for run in experiment.runs()}
    stores = [open_store(ROOT / "results" / profile) for profile in ("paper", "tuning")]
    runs = {run for store in stores for run in store.ids()}
    assert len(runs) >= 676 and runs <= known and len(files) <= 100
    for store in stores:
        contents = validation.checked(store, [store.config(run) for run in store.ids()])
        assert contents.provenances.keys() == contents.summaries.keys() == set(store.ids())
        assert set(contents.tables["metrics"]["run"]) == set(store.ids())


@pytest.mark.parametrize("case", PROFILES["alexnet"]["cifar100"].runs()[::3], ids=lambda run: run.estimator.name)
def test_alexnet_for_small_images_trains_a_step(case):
    net = build("alexnet", (3, 32, 32), 100, width=1 / 32, seed=0)
    estimator = make_estimator(case.estimator.name, net, **case.estimator.options)
    x, y = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 17, 42, 99])
    assert torch.isfinite(estimator.backward(x, y))
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


# --- choosing rates --------------------------------------------------------------------------------------------------


def grid(*rows):
    """Final metrics of runs: (estimator, rate, accuracy, loss, status)."""
    columns = ["trained_with", "learning_rate", "test_accuracy", "train_loss", "status"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["run"] = [str(i) for i in range(len(frame))]
    return frame.assign(dataset="mnist", architecture="fully_connected", width=800, depth=2, batch_size=64, step=9, seed=100)


def chosen(*rows):
    return tuning.chosen(grid(*rows)).iloc[0]


def test_highest_accuracy_is_chosen():
    best = chosen(("bp", 1e-4, 0.9, 0.1, "finished"), ("bp", 1e-3, 0.95, 0.3, "finished"), ("bp", 1e-2, 0.8, 0.2, "finished"))
    assert best["learning_rate"] == 1e-3 and not best["edge"] and best["rates"] == 3


def test_ties_go_to_the_lower_loss():
    assert chosen(("bp", 1e-4, 0.9, 0.2, "finished"), ("bp", 1e-3, 0.9, 0.1, "finished"))["learning_rate"] == 1e-3


def test_a_rate_that_diverged_is_out():
    assert chosen(("bp", 1e-4, 0.9, 0.2, "finished"), ("bp", 1e-3, 0.99, 0.1, "diverged"))["learning_rate"] == 1e-4


def test_each_network_has_a_best_rate_of_its_own():
    wide = grid(("bp", 1e-4, 0.9, 0.1, "finished"), ("bp", 1e-3, 0.8, 0.1, "finished"))
    narrow = grid(("bp", 1e-4, 0.7, 0.1, "finished"), ("bp", 1e-3, 0.8, 0.1, "finished"))
    both = pd.concat([wide, narrow.assign(run=["2", "3"], width=50)], ignore_index=True)
    assert tuning.chosen(both).set_index("width")["learning_rate"].to_dict() == {800: 1e-4, 50: 1e-3}


def test_a_best_rate_at_the_edge_of_the_grid_is_said_so():
    assert chosen(("bp", 1e-4, 0.9, 0.1, "finished"), ("bp", 1e-3, 0.95, 0.3, "finished"))["edge"]


def rates_in_use(name):
    """Estimator → its rate in an experiment of the paper profile; one each."""
    rates = {}
    for run in PROFILES["paper"][name].runs():
        rates.setdefault(logs.label(run.estimator.name, run.estimator.options), set()).add(run.training.learning_rate)
    return {label: rate for label, (rate,) in rates.items()}


def grid_chose(name):
    """Estimator → the rate that an experiment's own grid chose, or None where it had none."""
    runs = pd.read_csv(ROOT / "results" / "earlier_grids.csv").rename(columns={"validation_accuracy": "test_accuracy"})
    if (own := runs[runs["experiment"] == name]).empty:
        return None
    best = tuning.chosen(own, ["experiment"])
    return dict(zip(best["trained_with"], best["learning_rate"], strict=True))


@pytest.mark.parametrize("name", sorted(OLDER))
def test_rates_in_use_are_those_that_a_recorded_grid_chose(name):
    """The experiment's own grid, where there was one, or else that of the same network on MNIST."""
    if own := grid_chose(name):
        assert rates_in_use(name) == own
        return
    architecture = PROFILES["paper"][name].runs()[0].network.architecture
    source = {"fully_connected": "mnist_fc", "convolutional": "mnist_cnn"}[architecture]
    assert name != source and rates_in_use(name).items() <= grid_chose(source).items()


# --- what training costs ---------------------------------------------------------------------------------------------


def of(estimator: str, **options) -> RunConfig:
    run = next(r for r in PROFILES["paper"]["mnist_fc"].runs() if r.estimator.name == "bp")
    return RunConfig.model_validate(merge(run.model_dump(exclude_none=True), {"estimator": {"name": estimator, **options}}))


def test_operations_of_bp_are_those_of_its_matrix_products():
    """Forward and weight gradients touch every weight, input gradients all but the first layer's; two operations each."""
    weights = np.array([784 * 800, 800 * 800, 800 * 10])
    assert flops.per_step(of("bp")) == 2 * 64 * (2 * weights.sum() + weights[1:].sum())


def test_operations_of_frozen_blocks_are_a_forward_pass_and_the_readout():
    assert flops.per_step(of("frozen")) == 2 * 64 * (784 * 800 + 800 * 800 + 2 * 800 * 10)


@pytest.mark.parametrize("experiment", ["mnist_fc", "cifar_cnn"])
def test_operations_of_fa_are_those_of_bp(experiment):
    """Other weights in the backward pass cost no other products: a comparison per operation must not charge it for our code."""
    run = next(r for r in PROFILES["paper"][experiment].runs() if r.estimator.name == "bp")
    other = RunConfig.model_validate(merge(run.model_dump(exclude_none=True), {"estimator": {"name": "fa"}}))
    assert flops.per_step(other) == flops.per_step(run)


def test_fdfa_adds_only_the_products_of_its_feedback():
    """A tangent pass takes the place of the backward pass; two products (10 × 800) with the feedback of each hidden block."""
    assert flops.per_step(of("fdfa", feedback_lr=0.001)) - flops.per_step(of("bp")) == 2 * 64 * (2 * 2) * 800 * 10


def test_operations_do_not_depend_on_seed_rate_or_length():
    run = of("bp")
    other = merge(run.model_dump(exclude_none=True), {"seed": 3, "training": {"learning_rate": 0.5}})
    assert flops.per_step(RunConfig.model_validate(other)) == flops.per_step(run)


def test_image_shapes_are_those_of_the_data():
    from fdfa_core.data import available_datasets, load

    assert set(flops.IMAGES) == set(available_datasets())
    digits = load("digits")
    assert flops.IMAGES["digits"] == (digits.shape, len(digits.classes))


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    experiments, root = recorded.write(tmp_path_factory.mktemp("record"))
    return load_profile("tiny", experiments), root


def test_effort_counts_steps_times_operations(record):
    experiments, root = record
    curves = effort.curves(logs.read(root, experiments["digits_fc"]), "train_loss")
    run = next(r for r in experiments["digits_fc"].runs() if r.estimator.name == "fdfa")
    mine = curves[curves["trained_with"] == "fdfa(feedback_lr=0.1)"].set_index("epoch")
    assert mine.loc[1.0, "flops"] == 5 * flops.per_step(run) and mine.loc[1.0, "seconds"] == pytest.approx(0.5)


def test_bp_with_checkpoints_trains_as_bp_does_for_more_operations_and_no_more_memory(record):
    experiments, root = record
    log = effort.with_checkpoints(logs.read(root, experiments["digits_fc"]))
    curves = effort.curves(log, "train_loss").set_index(["trained_with", "epoch"])
    plain, twin = curves.loc["bp"], curves.loc["bp(checkpoint=True)"]
    assert twin["estimate"].equals(plain["estimate"]) and twin["seconds"].isna().all() and plain["seconds"].notna().all()
    run = next(r for r in experiments["digits_fc"].runs() if r.estimator.name == "bp")
    forward = 2 * run.training.batch_size * sum(a * b for a, b in pairwise([64, *run.network.options["hidden"]]))
    assert twin.loc[1.0, "flops"] - plain.loc[1.0, "flops"] == 5 * forward  # the hidden blocks, once more
    weights = 4 * sum(p.numel() for p in build("fully_connected", (1, 8, 8), 10, **run.network.options).parameters())
    assert plain["memory"].eq(flops.memory(run)).all() and (weights < plain["memory"]).all()  # all gradients at the end
    assert (twin["memory"] <= plain["memory"]).all()


def test_a_run_takes_no_longer_for_a_process_that_stood_still():
    """Ten steps of 0.1 s, an evaluation of 0.5 s at every second one, and 3 s of instruments at the second."""

    def timing(run, steps, pause=0.0):
        rows = [
            {"run": run, "step": step, "training_seconds": 0.1 * step + pause * (step > 4)}
            | {"instrument_seconds": 3.0 * (step > 0), "evaluation_seconds": 0.5 * (i + 1) + pause * (step > 6)}
            for i, step in enumerate(steps)
        ]
        return pd.DataFrame(rows)

    table = pd.concat([timing("a", range(2, 11, 2)), timing("b", range(0, 11, 2)), timing("c", range(0, 11, 2), pause=500.0)])
    found = inventory._seconds(SimpleNamespace(table=lambda *_: table), ["a", "b", "c"])
    assert found == pytest.approx({"a": 1.0 + 3.0 + 2.5, "b": 1.0 + 3.0 + 3.0, "c": 1.0 + 3.0 + 3.0})


def test_cost_of_missing_runs_is_that_of_their_estimator(record):
    experiments, root = record
    cost = inventory.cost(inventory.inventory(root, experiments.values())).set_index("experiment")
    assert cost.loc["mnist_fc", ["runs", "planned"]].tolist() == [11, 12]
    assert cost.loc["mnist_fc", "hours_all"] == pytest.approx(cost.loc["mnist_fc", "hours"] * 12 / 11)
    assert np.isnan(cost.loc["fashion_fc", "hours_all"])


def test_cost_of_an_experiment_without_runs_is_that_of_the_same_network_elsewhere(record, tmp_path):
    experiments, root = record
    took = inventory.inventory(root, [experiments["mnist_fc"]]).groupby("trained_with")["seconds"].median()
    text = experiments["mnist_fc"].path.read_text().replace("steps = 5", "steps = 15")
    (tmp_path / "longer.toml").write_text(text)
    (tmp_path / "other.toml").write_text(text.replace("[8, 8]", "[9, 9]"))
    longer, other = (load_experiment(tmp_path / f"{name}.toml") for name in ("longer", "other"))
    seconds = sum(took[label(run.estimator.name, run.estimator.options)] for run in experiments["mnist_fc"].runs())
    found = inventory.cost_by_network([longer, other], [root])
    assert found["longer"] == pytest.approx(3 * seconds / 3600) and np.isnan(found["other"])


def test_profiles_lie_where_the_command_looks():
    assert all((EXPERIMENTS / name).is_dir() for name in PROFILES)


# A checkout that uses of torchvision what the released code does, and reports the mean pixel in place of a loss.
MAIN = """
import argparse, csv, torch
from torchvision import datasets, transforms

def main(arguments):
    parser = argparse.ArgumentParser()
    for name in ("--train-mode", "--n-layers", "--dataset", "--epochs", "--seed"):
        parser.add_argument(name)
    args = parser.parse_args(arguments)
    pixels = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    data = getattr(datasets, args.dataset)(root="./data", train=True, download=True, transform=pixels)
    (x, y), = torch.utils.data.DataLoader(data, batch_size=len(data), shuffle=True)
    with open("log.csv", "w", newline="") as file:
        file.write("Namespace()\\n")
        writer = csv.writer(file)
        writer.writerow(["Epoch", "Training Loss", "Test Loss", "Test Accuracy"])
        for epoch in range(1, int(args.epochs) + 1):
            writer.writerow([epoch, 0, x.mean().item(), 10 * y.float().mean().item() + epoch])
"""


def metrics(accuracies, label="bp", epoch=1.0):
    """Rows of metrics.parquet at one epoch, a seed each."""
    rows = {"trained_with": label, "epoch": epoch, "seed": range(len(accuracies)), "test_accuracy": accuracies}
    return pd.DataFrame(rows).assign(test_loss=lambda frame: 1 - frame["test_accuracy"])


def theirs(accuracies, mode="BP", epoch=1):
    return metrics(accuracies, epoch=epoch).assign(mode=mode).drop(columns="trained_with")


def test_released_code_is_run_on_our_data_and_its_report_is_read(tmp_path, monkeypatch):
    images = torch.full((20, 1, 4, 4), 255, dtype=torch.uint8)
    blank = Dataset("mnist", images, torch.arange(20) % 10, images, torch.arange(20) % 10, tuple("0123456789"), "0" * 64)
    monkeypatch.setattr(fdfa_core.data, "load", lambda name: blank)
    for name in ("torchvision", "main"):  # what `run` puts there goes away after the test
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "main.py").write_text(MAIN)
    rows = released_code.run(tmp_path, "FDFA", seed=3, epochs=2, dataset="MNIST")
    assert [(row["mode"], row["seed"], row["epoch"]) for row in rows] == [("FDFA", 3, 1), ("FDFA", 3, 2)]
    assert [row["test_loss"] for row in rows] == [1, 1]  # white pixels are scaled to 1
    assert [row["test_accuracy"] for row in rows] == pytest.approx([0.46, 0.47])


def test_record_is_read_as_it_was_written(tmp_path):
    row = {"mode": "BP", "seed": 0, "epoch": 1, "test_accuracy": 0.97, "test_loss": 0.1}
    released.write([row], tmp_path / "results" / "record.csv")
    assert released.read(tmp_path / "results" / "record.csv").to_dict("list")["test_accuracy"] == [0.97]


def test_a_missing_record_is_an_error_that_says_how_to_make_it(tmp_path):
    with pytest.raises(RunError, match="python -m benchmarks.released_code"):
        released.read(tmp_path / "none.csv")


def test_equal_results_do_not_differ_and_others_do():
    rng = np.random.default_rng(0)
    ours = pd.concat([metrics(0.97 + 0.001 * rng.standard_normal(4), label) for label in ("bp", "dfa")])
    other = pd.concat([theirs(0.97 + 0.001 * rng.standard_normal(4)), theirs(0.93 + 0.001 * rng.standard_normal(4), "DFA")])
    found = released.compare(ours, other).set_index(["trained_with", "quantity"])
    assert found.loc["bp", "p_holm"].min() > 0.05 and found.loc["dfa", "p_holm"].max() < 0.001
    assert found.loc[("dfa", "test_accuracy"), "difference"] == pytest.approx(0.04, abs=0.003)
    assert (found["low"] < found["difference"]).all() and (found["difference"] < found["high"]).all()


def test_only_epochs_and_methods_that_both_have_are_compared():
    ours = pd.concat([metrics([0.9, 0.91]), metrics([0.95, 0.96], epoch=2.0), metrics([0.5, 0.6], "fg-a")])
    found = released.compare(ours, pd.concat([theirs([0.9, 0.92]), theirs([0.9, 0.9], "DFA"), theirs([0.9], epoch=2)]))
    assert set(zip(found["trained_with"], found["epoch"], strict=True)) == {("bp", 1)}


def test_recorded_runs_agree_with_the_released_code():
    """Within the noise of their seeds, of which each side has four."""
    record = ROOT / "results" / "paper"
    found = released.compare(logs.load(record, "released", profile="paper").metrics, released.read())
    assert set(found["trained_with"]) == set(released.LABELS.values()) and found["p_holm"].min() > 0.05


@pytest.mark.parametrize("content, said", [("", "not a CSV"), ("mode,seed\nBP,0\n", "epoch, test_accuracy, test_loss")])
def test_a_damaged_record_is_named_with_what_it_lacks(tmp_path, content, said):
    (path := tmp_path / "record.csv").write_text(content)
    with pytest.raises(RunError, match=f"record.csv.*{said}"):
        released.read(path)
