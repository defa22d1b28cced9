"""Our runs beside those of the released code: how its results are recorded, and how the two are compared."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

import fdfa_core.data
from analysis import logs, released
from benchmarks import released_code
from fdfa_core.data.dataset import Dataset
from fdfa_core.errors import RunError
from places import ROOT

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
