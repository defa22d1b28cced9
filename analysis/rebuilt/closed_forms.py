"""Closed forms for logged runs: what theory says the probes of a run should have measured.

A run's configuration tells its samples and its initial network (`fdfa_core.training.build`), so that for frozen weights without
batch normalisation every probe has an exact counterpart (`analysis.rebuilt.answers`). Nothing is trained here. Answers are kept
on disk under the hash of the question and of all code that they depend on: drawing a figure again costs nothing. Those of
recorded runs are recorded too (`record`), so that their figures can be drawn where the data set is not.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import logs, options, select, statistics, variance
from analysis.rebuilt import cache
from analysis.rebuilt.answers import COLUMNS, Problem, contest_row, feedback_rows, quotient_rows, rows
from fdfa_core import paths, references
from fdfa_core.errors import InvalidInput, RunError
from fdfa_core.estimators.labels import label
from fdfa_core.runs.recording import write_theory

CACHE = paths.CACHE / "closed_forms"
KEYS = ["run", "step", "estimator", "block"]
ANSWERS = "analysis.rebuilt.answers"  # the module whose code the answers depend on
_SCHEMA = ("fdfa_core.experiments.tables",)  # checks configurations, which are part of the question
_LIBRARIES = ("torch", "numpy", "scipy", "pandas", "scikit-learn")


def of(logs: logs.Logs) -> pd.DataFrame:
    """Return the closed forms of all probes of an experiment that have one.

    That is: fresh batches, frozen weights, no batch normalisation, estimators that `analysis.theory.predict` knows.

    Returns:
        A row per run, probe step, estimator and hidden block with `variance` and its parts, `bias2`, `mse`, `target_norm`, and
        `nsr` = variance / ‖∇‖². Empty, with these columns, where nothing has a closed form.

    Raises:
        RunError: the network rebuilt from a run's configuration is not the one that the run logged.
    """
    frames = []
    _warn_of_other_code(logs.theory)
    for runs, probes, requests in _questions(logs):
        forms = _recorded(logs.theory, _question(runs[0].config, requests))
        forms = kept(rows, runs[0].config, requests) if forms is None else forms
        for run in runs:
            mine = probes[probes["run"] == run.run]
            own = forms.merge(mine[["step", "estimator", "block", "reference_norm"]], on=["step", "estimator", "block"])
            _check(run.run, own)
            frames.append(own.drop(columns="reference_norm").assign(run=run.run))
    empty = pd.DataFrame(columns=["run", *COLUMNS])
    return pd.concat(frames, ignore_index=True) if frames else empty


def record(logs: logs.Logs, root: str | Path) -> int:
    """Write the closed forms of a recorded experiment beside its runs, and return for how many networks they are.

    They are computed by the code as it is, whatever was recorded before.

    Args:
        logs: of the experiment.
        root: the directory of the record.

    Raises:
        RunError: the experiment is not recorded there, or the file cannot be written.
    """
    frames = []
    for runs, _, requests in _questions(logs):
        question = _question(runs[0].config, requests)
        frame = kept(rows, runs[0].config, requests)
        frames.append(frame.assign(run=runs[0].run, question=question, code=made_by())[["run", "question", "code", *COLUMNS]])
    if frames:
        write_theory(root, logs.runs["experiment"].iloc[0], pd.concat(frames, ignore_index=True))
    return len(frames)


def compared(logs: logs.Logs) -> pd.DataFrame:
    """Return the hidden blocks' probes that have a closed form, with `predicted`, `ratio`, `ratio_se`, `z` and `covered`.

    `predicted` is the total variance, `ratio` measured / predicted, `z` standard normal for many draws, and `covered` whether
    the 95 % interval over draws holds the prediction.
    """
    forms = of(logs)[[*KEYS, "variance"]].rename(columns={"variance": "predicted"})
    probes = select.hidden_blocks(logs.probes).merge(forms, on=KEYS)
    probes = probes[(probes["predicted"] > 0) & (probes["variance"] > 0)]
    probes = variance.total(probes)
    return probes.assign(
        ratio=probes["variance"] / probes["predicted"],
        ratio_se=probes["variance_se"] / probes["predicted"],
        z=statistics.variance_z(probes["variance"], probes["variance_se"], probes["predicted"]),
        covered=(probes["low"] <= probes["predicted"]) & (probes["predicted"] <= probes["high"]),
    )


def agreement(logs: Sequence[logs.Logs]) -> pd.DataFrame:
    """Return measured variance over closed form, a row per setting (experiment, network, batch size, hidden block, estimator).

    Returns:
        Columns of `statistics.over_seeds` for the geometric mean over seeds of `ratio`, and `theory` and `measured`: those of
        variance / ‖∇‖². `held` of `of`: how many of the estimator's 95 % intervals over draws, of all settings and seeds, hold
        the closed form; they share batches within a seed, so they are not independent.
    """
    probes = pd.concat([compared(log) for log in logs], ignore_index=True)
    if probes.empty:
        raise InvalidInput("logs", "no probe with a closed form", "frozen weights, fresh batches, no batch normalisation")
    probes = probes.assign(theory=np.log(probes["predicted"] / probes["reference_norm"] ** 2))
    by = ["experiment", "depth", "width", "batch_size", "block", "estimator"]
    ratios = statistics.over_seeds(probes, "ratio", by, se="ratio_se", log=True)
    ratios = ratios.merge(np.exp(probes.groupby(by, sort=False)["theory"].mean()).reset_index(), on=by)
    counts = probes.groupby("estimator")["covered"].agg(held="sum", of="size").reset_index()
    return ratios.merge(counts, on="estimator").assign(measured=lambda f: f["estimate"] * f["theory"])


def curve(logs: logs.Logs, by: Sequence[str], quantity: str = "nsr") -> pd.DataFrame:
    """Return the geometric mean over seeds of a closed form as column `theory`, one row per group.

    Args:
        logs: of an experiment.
        by: columns of runs, and "block", "estimator": what names a group.
        quantity: a positive column of `of`.
    """
    forms = of(logs).merge(logs.runs.drop(columns=["experiment"]), on="run", how="left")
    forms = forms[forms[quantity].astype(float) > 0]
    return forms.groupby(list(by), sort=False)[quantity].agg(theory=lambda v: float(np.exp(np.log(v).mean()))).reset_index()


def with_theory(frame: pd.DataFrame, theory: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the frame with the column `theory`, if every row of it has one; otherwise the frame as it is."""
    joined = frame.merge(theory, on=list(by), how="left") if len(theory) else frame
    return joined if "theory" in joined and joined["theory"].notna().all() else frame


def feedback_errors(logs: logs.Logs) -> pd.DataFrame:
    """Return `feedback.parquet` of frozen runs with `relative` = E‖B − J̄‖² / ‖J̄‖² measured, and `predicted`.

    Raises:
        InvalidInput: no run logged its feedback at frozen weights.
    """
    frames = []
    for run in logs.runs.itertuples():
        mine = logs.feedback[logs.feedback["run"] == run.run] if len(logs.feedback) else logs.feedback
        if len(mine) and json.loads(run.config)["training"]["optimizer"] == "none":
            steps = sorted(int(step) for step in mine["step"].unique())
            predicted = kept(feedback_rows, run.config, _shadows(run.config), steps)
            frames.append(mine.merge(predicted, on=["step", "estimator", "block"]))
    if not frames:
        raise InvalidInput("logs", "no feedback of frozen weights", 'runs with optimizer = "none" and feedback = true')
    rows = pd.concat(frames, ignore_index=True)
    return rows.assign(relative=rows["error2"] / rows["jacobian_norm"] ** 2)


def contests(logs: logs.Logs) -> pd.DataFrame:
    """Return the coefficients of FDFA against FG-A (post site) of `analysis.theory.laws.Contest`, all hidden blocks together.

    Returns:
        A row per seed and way of perturbing: `seed`, `joint`, `tangents`, the fields of `Contest`, and `batch_limit`.
    """
    asked, configs = {}, logs.runs.set_index("run")["config"]
    probes = logs.probes[(logs.probes["method"] == "fdfa") & (logs.probes["source"] == "shadow")]
    ways = {"joint": options.column(probes, "joint"), "tangents": options.numbers(probes, "tangents")}
    for seed, run, joint, tangents in probes.assign(**ways)[["seed", "run", *ways]].drop_duplicates().itertuples(index=False):
        if joint != "cyclic":  # whose blocks are not perturbed every step
            asked.setdefault((int(seed), bool(joint), int(tangents)), configs[run])
    return pd.concat(
        [
            kept(contest_row, config, joint, tangents).assign(seed=seed, joint=joint, tangents=tangents)
            for (seed, joint, tangents), config in asked.items()
        ],
        ignore_index=True,
    )


def quotient_errors(logs: logs.Logs, activations: Sequence[str], epsilons: Sequence[float], most: int) -> pd.DataFrame:
    """Return the errors of difference quotients at the start of an experiment's runs: of the narrowest and the widest network.

    Args:
        logs: of an experiment of several widths and seeds.
        activations: names; each takes the place of the experiment's own in turn.
        epsilons: half the distances between the two points.
        most: parameters; wider networks are left out.

    Returns:
        Columns of `statistics.over_seeds` for the geometric mean of `error`, per `activation`, `width`, `size` (parameters),
        `precision` and `epsilon`, and `leading` (see `analysis.theory.difference.quotient_errors`).

    Raises:
        InvalidInput: no network is small enough.
    """
    sizes = logs.probes.loc[logs.probes["level"] == "network", ["run", "size"]].drop_duplicates()
    runs = logs.runs.merge(sizes, on="run").drop_duplicates(["seed", "width"])
    runs = runs[runs["size"] <= most]
    if runs.empty:
        raise InvalidInput("logs: parameters", int(sizes["size"].min()), f"a network of at most {most}")
    frames = []
    for run in runs[runs["width"].isin([runs["width"].min(), runs["width"].max()])].itertuples():
        for activation in activations:
            config = json.loads(run.config)
            config["network"]["activation"] = activation
            found = kept(quotient_rows, json.dumps(config, sort_keys=True), list(epsilons))
            frames.append(found.assign(seed=run.seed, activation=activation, width=run.width, size=int(run.size)))
    rows = pd.concat(frames, ignore_index=True)
    by = ["activation", "width", "size", "precision", "epsilon"]
    leading = np.exp(rows.assign(leading=np.log(rows["leading"])).groupby(by, sort=False)["leading"].mean()).reset_index()
    return statistics.over_seeds(rows, "error", by, log=True).merge(leading, on=by)


def kept(compute: Callable[..., pd.DataFrame], config: str, *arguments: Any) -> pd.DataFrame:
    """Return ``compute(Problem(config), *arguments)``, from disk if the same code and libraries computed it before.

    Args:
        compute: a function of `analysis.rebuilt.answers`: of a `Problem` and of `arguments` that JSON can write.
        config: the run's configuration as canonical JSON.
        arguments: see `compute`.
    """
    table = json.loads(config)
    named = (table["network"]["architecture"], table["data"]["name"])
    own_code = [references.origin(name) for name in named if references.is_reference(name)]
    question = json.dumps([compute.__qualname__, config, arguments, *own_code])
    key = cache.digest(question, _code_and_libraries())
    return cache.kept(CACHE, key, lambda: compute(Problem(config), *arguments))


@functools.cache
def made_by() -> str:
    """Return the hash of the code that makes closed forms, without its prose: recorded closed forms carry it."""
    return cache.code(ANSWERS, prose=False, without=_SCHEMA)[:32]


def _recorded(theory: pd.DataFrame, question: str) -> pd.DataFrame | None:
    """Return the recorded answer to a question, or None."""
    mine = theory[theory["question"] == question] if len(theory) else theory
    return mine[COLUMNS].reset_index(drop=True) if len(mine) else None


def _warn_of_other_code(theory: pd.DataFrame) -> None:
    """Warn once for each experiment whose recorded closed forms were made by other code than this."""
    stale = theory[theory["code"] != made_by()].drop_duplicates("experiment") if len(theory) else theory
    for row in stale.itertuples():
        warnings.warn(
            f"the recorded closed forms of experiment {row.experiment!r} were made by other code than this; renew them with: "
            f"{row.renewal}",
            stacklevel=3,
        )


def _question(config: str, requests: Sequence) -> str:
    """Name a question to `rows`."""
    return cache.digest(json.dumps([config, requests]))[:32]


@functools.cache
def _code_and_libraries() -> str:
    return cache.code(ANSWERS, without=_SCHEMA) + cache.versions(*_LIBRARIES)


def _asked(text: str) -> dict:
    """Return the options of an FDFA that are asked about; one that is None leaves it as it was before the option existed."""
    return {name: value for name, value in options.filled("fdfa", text).items() if value is not None}


def _questions(logs: logs.Logs) -> Iterator[tuple[list, pd.DataFrame, list]]:
    """Yield runs that share samples and network, their hidden blocks' probes, and what `_rows` shall compute for them."""
    probes = select.hidden_blocks(logs.probes) if len(logs.probes) else logs.probes
    for runs in _same_problem(logs.runs).values():
        wanted = probes[probes["run"].isin([run.run for run in runs])]
        requests = wanted[["estimator", "method", "options", "step"]].drop_duplicates().sort_values(["estimator", "step"])
        rows_asked = [
            [name, method, json.dumps(_asked(text)) if method == "fdfa" else text, step]
            for name, method, text, step in requests.to_numpy().tolist()
        ]
        yield runs, wanted, rows_asked


def _shadows(config: str) -> list[list]:
    """Return label and all options of each estimator of a run's probes that is FDFA."""
    run = json.loads(config)
    probed = [run["estimator"] if e["name"] == "self" else e for e in run["probe"]["estimators"]]
    given = [{name: value for name, value in e.items() if name != "name"} for e in probed if e["name"] == "fdfa"]
    return [[label("fdfa", own), options.filled("fdfa", own)] for own in given]


def _same_problem(runs: pd.DataFrame) -> dict[str, list]:
    """Group the runs that have closed forms, frozen ones with fresh batches, by the network and samples that they share."""
    groups: dict[str, list] = {}
    for run in runs.itertuples():
        config = json.loads(run.config)
        probe, training = config.get("probe") or {}, config["training"]
        if training["optimizer"] == "none" and probe.get("sampling") == "fresh_batches":
            shared = [config["seed"], config["data"], config["network"], training["batch_size"], training["loss"]]
            groups.setdefault(json.dumps([*shared, probe["reference_size"]], sort_keys=True), []).append(run)
    return groups


def _check(run: str, rows: pd.DataFrame) -> None:
    """Refuse a network that is not the run's: its gradient has another norm."""
    off = (rows["reference_norm"] / rows["target_norm"] - 1).abs()
    if (off > 1e-3).any():  # the same in float32, up to rounding on another machine
        worst = rows.loc[off.idxmax()]
        raise RunError(
            f"run {run}: the gradient of the network rebuilt from its configuration has the norm "
            f"{worst['target_norm']:.6g}, and the run logged {worst['reference_norm']:.6g}; it was made by other code or on "
            "other data: remove the run and make it again"
        )
