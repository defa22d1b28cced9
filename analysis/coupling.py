"""Which estimators of some logs are biased because batch normalisation couples the samples of a batch.

FG-A gives a sample's perturbation the slope of that sample's own loss (``slope="sample"``). Where batch normalisation in
training mode stands above the perturbed site, in all but the last hidden block, the perturbation moves the other samples'
losses too, which this slope does not see. A slope of the whole batch's loss (``slope="batch"``) sees all of it.
docs/estimators.md says more.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

import pandas as pd

from analysis import options
from analysis.logs import Logs
from fdfa_core.networks.registry import architecture_options, available_architectures

ENDING = ".biased_slope"
HOLDERS = (*options.LABELS, "component")  # columns of a figure's frame that hold labels and nothing else


def coupled(config: str) -> bool:
    """Return whether a run's network has batch normalisation, given or by default, from its configuration as JSON.

    Of an architecture that is not registered here, only what was given is known.
    """
    network = json.loads(config)["network"]
    if "batch_norm" not in network and network["architecture"] in available_architectures():
        network = architecture_options(network["architecture"]) | network
    return bool(network.get("batch_norm", False))


def biased_slopes(sources: Iterable[Logs]) -> set[str]:
    """Return the labels of estimators that were run with each sample's own slope on a network that couples its samples.

    Args:
        sources: logs whose runs have trained or probed them.
    """
    found: set[str] = set()
    for log in sources:
        for frame, label in ((log.runs, "trained_with"), (log.probes, "estimator")):
            if len(frame):
                rows = frame[options.column(frame, "slope").eq("sample")][[label, "run"]].drop_duplicates()
                configs = log.runs.set_index("run")["config"].reindex(rows["run"].unique())
                mixed = {run for run, config in configs.items() if coupled(config)}
                found |= set(rows.loc[rows["run"].isin(mixed), label])
    return found


def marked(frame: pd.DataFrame, labels: Collection[str]) -> pd.DataFrame:
    """Return what a figure shows with ``<column>.biased_slope`` beside each column that holds one of these labels.

    Examples:
        >>> import pandas as pd
        >>> from analysis import coupling
        >>> coupling.marked(pd.DataFrame({"estimator": ["bp", "fg-a"]}), {"fg-a"})["estimator.biased_slope"].tolist()
        [False, True]
    """
    flags = {column + ENDING: frame[column].isin(labels) for column in HOLDERS if column in frame}
    return frame.assign(**{name: flag for name, flag in flags.items() if flag.any()})


def labels_of(frame: pd.DataFrame) -> set[str]:
    """Return the labels that `marked` has flagged in a frame."""
    flags = {column: frame[column + ENDING].astype(bool) for column in HOLDERS if column + ENDING in frame}
    return {label for column, flag in flags.items() for label in frame.loc[flag, column]}
