"""Which hypotheses a profile plans, each with its seeds, from its experiment files and, for the paper profile, the protocol."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from analysis.logs import Logs
from analysis.verdicts import protocol
from analysis.verdicts.protocol import KEYS
from fdfa_core.errors import InvalidInput
from fdfa_core.estimators.registry import label
from fdfa_core.experiments.loading import Experiment
from fdfa_core.experiments.tables import EstimatorConfig, RunConfig


def settings_of(experiments: Iterable[Experiment]) -> tuple[protocol.Setting, ...]:
    """Return what the protocol asks of these experiments: its settings for the paper profile, nothing for any other."""
    return protocol.SETTINGS if any(e.path.parent.name in protocol.PROFILES for e in experiments) else ()


def hypotheses(experiments: Iterable[Experiment], settings: Iterable[protocol.Setting] = ()) -> pd.DataFrame:
    """Return one row per hypothesis: `KEYS` and `planned`, the tuple of its seeds.

    Args:
        experiments: of a profile.
        settings: what the protocol asks of training experiments. If there are any, its competitors and seeds count, and not
            those of the files; experiments that it does not name plan nothing. Without, every experiment plans what its file
            holds.
    """
    settings = tuple(settings)
    by_name = {setting.experiment: setting for setting in settings}
    rows: list[tuple] = []
    for experiment in experiments:
        runs = experiment.runs()
        if experiment.role == "convergence" and (experiment.name in by_name or not settings):
            rows += _training(experiment.name, runs, by_name.pop(experiment.name, None))
        elif experiment.role in ("width", "trajectory"):
            rows += _estimates(experiment.name, runs, protocol.VARIANCE_EXPERIMENTS.get(experiment.role) if settings else None)
    for setting in by_name.values():  # the protocol names what the profile has no file of
        rows += _training(setting.experiment, [], setting)
    return pd.DataFrame(rows, columns=[*KEYS, "planned"])


def departures(experiments: Iterable[Experiment], settings: Iterable[protocol.Setting]) -> dict[str, str]:
    """Return what keeps a file's runs from answering the protocol, by experiment: another length, a missing method or seed.

    Without settings nothing is asked, and nothing departs.
    """
    settings = tuple(settings)
    files = {experiment.name: experiment for experiment in experiments}
    asked = {setting.experiment for setting in settings}
    unasked = [e.name for e in files.values() if settings and e.role == "convergence" and e.name not in asked]
    found = dict.fromkeys(unasked, "the protocol does not ask for it")
    for setting in settings:
        if setting.experiment not in files:
            found[setting.experiment] = "the profile has no such experiment"
            continue
        runs = files[setting.experiment].runs()
        lengths = {f"{t.epochs} epochs" if t.epochs else f"{t.steps} steps" for t in (run.training for run in runs)}
        if lengths != {f"{setting.epochs} epochs"}:
            said = " or ".join(sorted(lengths))
            found[setting.experiment] = f"its runs take {said}, the protocol asks for {setting.epochs} epochs"
            continue
        seeds = _seeds_by_method(runs)
        missing = [m for m, planned in setting.seeds.items() if not set(planned) <= seeds.get(m, set())]
        if missing:
            found[setting.experiment] = f"it lacks seeds of {', '.join(missing)}"
    return found


def without(log: Logs, gone: Collection[str]) -> Logs:
    """Return the logs without the experiments of these names, such as those that depart from the protocol (`departures`)."""
    frames = {name: frame[~frame["experiment"].isin(gone)] if len(frame) else frame for name, frame in vars(log).items()}
    return Logs(**frames)


def datasets(experiments: Iterable[Experiment]) -> dict[str, str]:
    """Return the data set of every experiment.

    Raises:
        InvalidInput: an experiment pools several data sets, which no verdict can tell apart.
    """
    found = {}
    for experiment in experiments:
        names = sorted({run.data.name for run in experiment.runs()})
        if len(names) > 1 and experiment.role == "convergence":
            raise InvalidInput(f"{experiment.path}: data.name", names, "one data set in an experiment that verdicts rest on")
        found[experiment.name] = names[0]
    return found


def variant_of(estimator: EstimatorConfig) -> str:
    """Return which FDFA a configuration is: "momentum", "adam", "alpha = 1", or "" where it is another method."""
    if estimator.name != "fdfa":
        return ""
    if estimator.options.get("feedback_rule", protocol.ON_TRIAL) == protocol.BESIDE:
        return protocol.BESIDE
    return "alpha = 1" if estimator.options.get("feedback_lr") == 1 else protocol.ON_TRIAL


def _training(name: str, runs: list[RunConfig], setting: protocol.Setting | None) -> list[tuple]:
    seeds: Mapping[str, Iterable[int]] = _seeds_by_method(runs) if setting is None else setting.seeds
    kinds = [k for k in (protocol.ON_TRIAL, protocol.BESIDE) if setting or any(variant_of(r.estimator) == k for r in runs)]
    rows = []
    for kind in kinds:
        mine = {r.seed for r in runs if variant_of(r.estimator) == kind}
        for method, planned in seeds.items():
            shared = tuple(sorted(planned if setting else set(planned) & mine))
            if method == "bp":
                rows.append(("Q3 parity", name, method, kind, shared))
            elif method in protocol.LOCAL:
                rows += [(question, name, method, kind, shared) for question in protocol.TRAINING]
    return rows


def _seeds_by_method(runs: list[RunConfig]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for run in runs:
        found.setdefault(run.estimator.name, set()).add(run.seed)
    return found


def _estimates(name: str, runs: list[RunConfig], asked: tuple[int, ...] | None) -> list[tuple]:
    """Return the hypotheses on variance and error that an experiment's probes can answer, block by block.

    The seeds are those that are asked for, or else those of the file.
    """
    probed = {e.name if e.name != "self" else r.estimator.name for r in runs if r.probe for e in r.probe.estimators}
    variants = {variant_of(e) for r in runs if r.probe for e in [r.estimator, *r.probe.estimators]}
    seeds = tuple(sorted({r.seed for r in runs})) if asked is None else asked
    blocks = range(1, 1 + max((len(r.network.options.get("hidden", ())) for r in runs), default=0))
    # with one path of weights the component does not name it; shadows follow every path
    paths = list(dict.fromkeys(_label(r.estimator) for r in runs))
    ends = [f", weights of `{path}`" for path in paths] if len(paths) > 1 else [""]
    widths = {tuple(r.network.options.get("hidden", ())) for r in runs}
    rows: list[tuple] = []

    def add(question: str, component: str, variant: str = protocol.ON_TRIAL) -> None:
        rows.extend((question, name, f"{component}, hidden block {b}{end}", variant, seeds) for end in ends for b in blocks)

    for kind in (protocol.ON_TRIAL, protocol.BESIDE):
        for other in protocol.FORWARD:
            if kind in variants and other in probed:
                add("Q1 variance", other, kind)
                add("Q1 error", other, kind)
    if {"fg-w", "fg-a"} <= probed:
        add("M1", "fg-w, fg-a")
    if len(widths) > 1:
        if {"fg-w", "fg-a"} <= probed:
            add("M2", "fg-w, fg-a")
        if "fg-a" in probed and protocol.ON_TRIAL in variants:
            add("M2", "fg-a, fdfa")
    if "alpha = 1" in variants:
        if protocol.ON_TRIAL in variants:
            add("M3", "fdfa")
        if "fg-a" in probed:
            add("M4", "fdfa, fg-a")
    return rows


def _label(estimator: EstimatorConfig) -> str:
    return label(estimator.name, estimator.options)
