"""Checks of runs to come, so that an impossible run is refused before any starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from fdfa_core.data import available_datasets
from fdfa_core.errors import InvalidInput, UnknownKey
from fdfa_core.estimators import available_estimators, estimator_options
from fdfa_core.experiments.loading import Experiment
from fdfa_core.experiments.tables import EstimatorConfig, RunConfig, located, require_known, suggest
from fdfa_core.losses import LOSSES
from fdfa_core.networks.registry import architecture_options, available_architectures, builder, signature_of
from fdfa_core.references import is_reference
from fdfa_core.signatures import REQUIRED, check_options
from fdfa_core.training.instruments import SELF
from fdfa_core.training.process import loaded_dataset, one_at_a_time, restored_globals
from fdfa_core.training.session import Session
from fdfa_core.training.size import memory_reported


def check_experiment(experiment: Experiment, skip: Collection[str] = (), data_directory: str | Path | None = None) -> None:
    """Refuse what cannot run before anything runs, for all runs of an experiment but those whose ids are in `skip`.

    This loads the data (and downloads what is missing), so that no two runs of a sweep begin with a download.

    Raises:
        FdfaError: an unknown name or option, or a value that its owner refuses; names file and key.
    """
    seen = set()
    for config, origin in experiment.planned():
        signature = config.model_copy(update={"seed": 0}).canonical()
        if config.id not in skip and signature not in seen:
            check(config, origin.locate, data_directory=data_directory)
            seen.add(signature)


def check(
    config: RunConfig,
    locate: Callable[[str], str] = str,
    *,
    data_directory: str | Path | None = None,
    download: bool = True,
) -> None:
    """Build what a run would build, so that an impossible run is refused before any starts.

    Raises:
        FdfaError: an unknown name or option, an impossible value, missing data; `locate` turns a key into the place named.
    """
    _check_name(locate, "data.name", config.data.name, available_datasets())
    require_known(locate("training.loss"), config.training.loss, LOSSES)
    _check_name(locate, "network.architecture", config.network.architecture, available_architectures())
    with located(locate, "network.architecture"):
        builder(config.network.architecture)
    _check_names(config.network.options, architecture_options(config.network.architecture), locate, "network")
    with located(locate, "network", config.network):
        check_options(signature_of(config.network.architecture), config.network.options)
    _check_estimator(config.estimator, locate, "estimator")
    for i, estimator in enumerate(config.probe.estimators if config.probe else []):
        if estimator.name != SELF:
            _check_estimator(estimator, locate, f"probe.estimators[{i}]")
    with located(locate, "data.name"):
        dataset = loaded_dataset(config.data.name, data_directory, download)
    with one_at_a_time, restored_globals(), memory_reported(locate("run")):
        Session(config, dataset, torch.device("cpu"), locate)


def _check_name(locate: Callable[[str], str], key: str, name: str, known: list[str]) -> None:
    """Check a name that is either registered, or says where a function of the user's is."""
    if not is_reference(name):
        require_known(locate(key), name, known)


def _check_estimator(estimator: EstimatorConfig, locate: Callable[[str], str], key: str) -> None:
    require_known(locate(f"{key}.name"), estimator.name, available_estimators())
    _check_names(estimator.options, estimator_options(estimator.name), locate, key)


def _check_names(given: Mapping[str, Any], known: Mapping[str, Any], locate: Callable[[str], str], key: str) -> None:
    """Check that options exist and that none is missing; their owner checks the values."""
    for name, value in given.items():
        if name not in known:
            raise UnknownKey(locate(f"{key}.{name}"), value, known, "option", suggest(name, known))
    for name, default in known.items():
        if default is REQUIRED and name not in given:
            raise InvalidInput(locate(f"{key}.{name}"), "nothing", f"a value for {name}; it has no default")
