"""Run the released code of the paper on the data of this project, and record what it reports in results/released_code.csv.

    git clone https://github.com/Florian-BACHO/FDFA        (commit 20dd074)
    python -m benchmarks.released_code FDFA --modes BP DFA FDFA --seeds 0 1 2 3 --epochs 2

It runs as it is, `main.main` with the arguments that its README names, but for its data: it asks torchvision for them, in whose
place stands a module that hands out the same pixels from memory. `analysis/released.py` compares with our own runs.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import types
import warnings
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path

import joblib
import torch

NAMES = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}


class _Images(torch.utils.data.Dataset):
    """What torchvision's data sets are to that code; pixels in [-1, 1] already."""

    name: str

    def __init__(self, root: str, train: bool, download: bool, transform: object):
        from fdfa_core.data import load

        data = load(self.name)
        self.x, self.y = (data.train if train else data.test).all()
        self.y = self.y.tolist()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int):
        return self.x[index], self.y[index]


def _stand_in() -> types.ModuleType:
    """A module that offers of torchvision what that code uses."""
    module = types.ModuleType("torchvision")
    datasets = {name: type(name, (_Images,), {"name": ours}) for name, ours in NAMES.items()}
    module.datasets = types.SimpleNamespace(**datasets)
    module.transforms = types.SimpleNamespace(Compose=list, ToTensor=lambda: None, Normalize=lambda *_: None)
    return module


def run(checkout: Path, mode: str, seed: int, epochs: int, dataset: str) -> list[dict[str, object]]:
    """Train once, on one thread; return one row per epoch."""
    torch.set_num_threads(1)
    sys.modules["torchvision"] = _stand_in()
    sys.path.insert(0, str(checkout))
    import main  # of the checkout

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        os.environ.setdefault("FDFA_DATA", str(here / "data"))
        os.chdir(place)
        warnings.simplefilter("ignore")  # it uses a name that torch has deprecated
        try:
            main.main([f"--train-mode={mode}", "--n-layers=2", f"--dataset={dataset}", f"--epochs={epochs}", f"--seed={seed}"])
            (log,) = Path(place).rglob("*.csv")
            rows = list(csv.DictReader(log.read_text().splitlines()[1:]))
        finally:
            os.chdir(here)
    return [
        {
            "dataset": NAMES[dataset],
            "mode": mode,
            "seed": seed,
            "epochs": epochs,
            "epoch": int(row["Epoch"]),
            "test_loss": float(row["Test Loss"]),
            "test_accuracy": float(row["Test Accuracy"]) / 100,
            "torch": torch.__version__.split("+")[0],
        }
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.released_code", description="Run the released code of the paper."
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--modes", nargs="+", default=["BP", "DFA", "FDFA"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--dataset", default="MNIST", choices=list(NAMES))
    options = parser.parse_args()
    if not (options.checkout / "main.py").is_file():
        parser.error(f"{options.checkout}: holds no main.py; accepted: a checkout of the released code")
    from analysis import released

    jobs = product(options.seeds, options.modes)
    checkout = options.checkout.resolve()
    parallel = joblib.Parallel(os.cpu_count())
    results = parallel(joblib.delayed(run)(checkout, mode, seed, options.epochs, options.dataset) for seed, mode in jobs)
    released.write(row for rows in results for row in rows)


if __name__ == "__main__":
    main()
