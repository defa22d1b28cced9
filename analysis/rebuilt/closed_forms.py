"""Closed forms for logged runs: what theory says the probes of a run should have measured.

A run's configuration tells its samples and its initial network (`fdfa_core.training.build`), so that for frozen weights without
batch normalisation every probe has an exact counterpart. Nothing is trained here. Rows are kept on disk under the hash of the
configuration and of all code that they depend on: drawing a figure again costs nothing. Those of recorded runs are recorded too
(`record`), so that their figures can be drawn where the data set is not.

Two populations matter: fresh batches are drawn from the reference set, with replacement, as the theory assumes; the feedback
follows the training batches, which go through the training set epoch by epoch and are the same for all replicas. The draw of
batches adds little to the feedback's spread (the data part of `FeedbackLaw`, below 1 % of it here), so that the difference is
far below the standard errors.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fdfa_core
from analysis import logs, options, select, statistics, variance
from analysis import theory as theory_package
from fdfa_core import paths
from fdfa_core.errors import InvalidInput, RunError, Unsupported
from fdfa_core.files import write_atomically

CACHE = paths.CACHE / "closed_forms"
RECORDS = paths.RESULTS
KEYS = ["run", "step", "estimator", "block"]
PARTS = ["data", "perturbation", "feedback", "cross"]
FOLDER = "closed_forms"  # of those that are recorded, within a directory of recorded runs
LAW = ("site", "joint", "perturbation", "tangents", "directions")  # options of FDFA that its feedback's law depends on


class Problem:
    """A run's initial network with the reference set and the training set, as float tensors on the CPU.

    Args:
        text: the run's configuration as canonical JSON (column `config` of `Logs.runs`).

    Attributes:
        config: the configuration.
        net: the network before the first step, in training mode.
        reference: the samples (x, y) of the probes' reference set that fill a batch of training.
        train: the training set (x, y).
    """

    def __init__(self, text: str):
        from fdfa_core import data
        from fdfa_core.experiments.tables import RunConfig
        from fdfa_core.training import build

        self.config = RunConfig.from_json(text)
        dataset = data.load(self.config.data.name)
        train, _ = build.splits(self.config, dataset)
        self.net = build.network(self.config, train, dataset).train()
        self.train = build.samples(train, self.net)
        x, y = build.samples(build.reference(train, self.config.probe.reference_size), self.net)
        whole = len(x) - len(x) % self.config.training.batch_size
        self.reference = x[:whole], y[:whole]

    @property
    def estimators(self) -> dict[str, Any]:
        """The probed estimators' configurations by label."""
        from fdfa_core.estimators import label

        own = [self.config.estimator if e.name == "self" else e for e in self.config.probe.estimators]
        return {label(e.name, e.options): e for e in own}


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
    for runs, probes, requests in _questions(logs):
        rows = kept(_rows, runs[0].config, requests)
        for run in runs:
            mine = probes[probes["run"] == run.run]
            own = rows.merge(mine[["step", "estimator", "block", "reference_norm"]], on=["step", "estimator", "block"])
            _check(run.run, own)
            frames.append(own.drop(columns="reference_norm").assign(run=run.run))
    empty = pd.DataFrame(columns=[*KEYS, "variance", *PARTS, "bias2", "mse", "target_norm", "nsr"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def record(logs: logs.Logs, root: str | Path) -> int:
    """Write the closed forms of an experiment's recorded runs beside these, and return how many files they are.

    Args:
        logs: of the experiment.
        root: a directory of recorded runs, a child of `RECORDS`.

    Raises:
        RunError: they cannot be written.
    """
    place, count = Path(root) / FOLDER, 0
    for runs, _, requests in _questions(logs):
        frame = kept(_rows, runs[0].config, requests, recorded=False)
        place.mkdir(exist_ok=True)
        write_atomically(place / _file(_rows, runs[0].config, (requests,)), _as_bytes(frame))
        count += 1
    return count


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
    rows = pd.concat([compared(log) for log in logs], ignore_index=True)
    if rows.empty:
        raise InvalidInput("logs", "no probe with a closed form", "frozen weights, fresh batches, no batch normalisation")
    rows = rows.assign(theory=np.log(rows["predicted"] / rows["reference_norm"] ** 2))
    by = ["experiment", "depth", "width", "batch_size", "block", "estimator"]
    found = statistics.over_seeds(rows, "ratio", by, se="ratio_se", log=True)
    found = found.merge(np.exp(rows.groupby(by, sort=False)["theory"].mean()).reset_index(), on=by)
    counts = rows.groupby("estimator")["covered"].agg(held="sum", of="size").reset_index()
    return found.merge(counts, on="estimator").assign(measured=lambda f: f["estimate"] * f["theory"])


def curve(logs: logs.Logs, by: Sequence[str], quantity: str = "nsr") -> pd.DataFrame:
    """Return the geometric mean over seeds of a closed form as column `theory`, one row a group.

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
            frames.append(mine.merge(kept(_feedback_rows, run.config, steps), on=["step", "estimator", "block"]))
    if not frames:
        raise InvalidInput("logs", "no feedback of frozen weights", 'runs with optimizer = "none" and feedback = true')
    found = pd.concat(frames, ignore_index=True)
    return found.assign(relative=found["error2"] / found["jacobian_norm"] ** 2)


def contests(logs: logs.Logs) -> pd.DataFrame:
    """Return the coefficients of FDFA against FG-A (post site) of `analysis.theory.laws.Contest`, all hidden blocks together.

    Returns:
        A row per seed and way of perturbing: `seed`, `joint`, `tangents`, the fields of `Contest`, and `batch_limit`.
    """
    rows, configs = {}, logs.runs.set_index("run")["config"]
    probes = logs.probes[(logs.probes["method"] == "fdfa") & (logs.probes["source"] == "shadow")]
    ways = {"joint": options.column(probes, "joint"), "tangents": options.numbers(probes, "tangents")}
    for seed, run, joint, tangents in probes.assign(**ways)[["seed", "run", *ways]].drop_duplicates().itertuples(index=False):
        if joint != "cyclic":  # whose blocks are not perturbed every step
            rows.setdefault((int(seed), bool(joint), int(tangents)), configs[run])
    return pd.concat(
        [
            kept(_contest_row, config, joint, tangents).assign(seed=seed, joint=joint, tangents=tangents)
            for (seed, joint, tangents), config in rows.items()
        ],
        ignore_index=True,
    )


def kept(compute: Callable[..., pd.DataFrame], config: str, *arguments: Any, recorded: bool = True) -> pd.DataFrame:
    """Return ``compute(Problem(config), *arguments)``, from disk if it is recorded or was computed before by the same code.

    Args:
        compute: a function of a `Problem` and of `arguments` that JSON can write.
        config: the run's configuration as canonical JSON.
        arguments: see `compute`.
        recorded: whether what is recorded will do.
    """
    path = CACHE / _file(compute, config, (*arguments, _code()))
    records = sorted(RECORDS.glob(f"*/{FOLDER}/{_file(compute, config, arguments)}")) if recorded else []
    for place in (path, *records):
        try:
            return pd.read_parquet(place)
        except (OSError, ValueError):  # not there, or not whole
            pass
    frame = compute(Problem(config), *arguments)
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _as_bytes(frame))
    except (OSError, RunError):  # a place that cannot be written to: compute it again next time
        pass
    return frame


def _file(compute: Callable[..., pd.DataFrame], config: str, arguments: Sequence[Any]) -> str:
    """Name the file of an answer by the question."""
    module = "analysis.closed_forms" if compute.__module__ == __name__ else compute.__module__  # its name in the records
    question = json.dumps([module, compute.__qualname__, config, arguments])
    return f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.parquet"


def _as_bytes(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def _questions(logs: logs.Logs) -> Iterator[tuple[list, pd.DataFrame, list]]:
    """Yield runs that share samples and network, their hidden blocks' probes, and what `_rows` shall compute for them."""
    probes = select.hidden_blocks(logs.probes) if len(logs.probes) else logs.probes
    for runs in _same_problem(logs.runs).values():
        wanted = probes[probes["run"].isin([run.run for run in runs])]
        requests = wanted[["estimator", "method", "options", "step"]].drop_duplicates().sort_values(["estimator", "step"])
        yield runs, wanted, requests.to_numpy().tolist()


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


def _rows(problem: Problem, requests: Sequence[tuple[str, str, str, int]]) -> pd.DataFrame:
    """Return closed forms for (label, name, options as JSON, step); those that there are none for are left out."""
    frames = []
    forward_feedback = _FeedbackForms(problem)
    for label, name, text, step in requests:
        try:
            if name == "fdfa":
                found = forward_feedback(step, options.filled(name, text))
            else:
                found = _predict(problem, name, **options.given(text)).frame()
        except Unsupported:
            continue
        found = found[(found["level"] == "block") & (found["block"] < len(problem.net) - 1)]
        frames.append(found.assign(step=step, estimator=label))
    columns = ["step", "estimator", "block", "variance", *PARTS, "bias2", "mse", "target_norm", "noise_to_signal"]
    found = pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    return found.rename(columns={"noise_to_signal": "nsr"})


class _FeedbackForms:
    """FDFA's closed forms on one problem, with the law of the feedback and the sums over samples made once."""

    def __init__(self, problem: Problem):
        self.problem, self.laws, self.whole = problem, {}, {}

    def __call__(self, step: int, settings: Mapping[str, Any]) -> pd.DataFrame:
        from analysis.theory import feedback_law

        given = {name: settings[name] for name in LAW}
        rate, warmup = settings["feedback_lr"], settings["warmup"]
        if settings["feedback_rule"] != "momentum":
            raise Unsupported(f"no closed form here for these options: {dict(settings)}")
        key = json.dumps(given, sort_keys=True)
        if key not in self.laws:
            batch_size = self.problem.config.training.batch_size
            self.laws[key] = feedback_law(self.problem.net, self.problem.train[0], batch_size, feedback_lr=1.0, **given)
        law = replace(self.laws[key], feedback_lr=rate, warmup=warmup)
        if not warmup or step < 1 or given.get("joint") == "cyclic":  # whose blocks wait for their first turn
            return self._predict(law, step, given)
        # With warm-up the feedback's mean is J̄ from the first step on, and α scales the two noise parts alone.
        if key not in self.whole:
            self.whole[key] = self._predict(self.laws[key], 1, given)
        whole = self.whole[key]
        noise = (whole[["feedback", "cross"]] * float(law.factor(step))).to_dict("series")
        found = whole.assign(**noise)
        total = found[PARTS].sum(axis=1)
        return found.assign(variance=total, mse=total + found["bias2"], noise_to_signal=total / found["target_norm"] ** 2)

    def _predict(self, law, step: int, given: Mapping[str, Any]) -> pd.DataFrame:
        return _predict(self.problem, "fdfa", feedback_law=law, steps=step, **given).frame()


def _feedback_rows(problem: Problem, steps: Sequence[int]) -> pd.DataFrame:
    """Return E‖B_t − J̄‖² / ‖J̄‖² of FDFA's shadows, a row per step, estimator and hidden block."""
    from analysis.theory import feedback_law

    rows, laws = [], {}
    for label, estimator in problem.estimators.items():
        if estimator.name == "fdfa":
            settings = options.filled("fdfa", estimator.options)
            given = {name: settings[name] for name in LAW}
            key, batch_size = json.dumps(given, sort_keys=True), problem.config.training.batch_size
            laws[key] = laws.get(key) or feedback_law(problem.net, problem.train[0], batch_size, feedback_lr=1.0, **given)
            law = replace(laws[key], feedback_lr=settings["feedback_lr"], warmup=settings["warmup"])
            norms = [float(jacobian.square().sum()) for jacobian in law.jacobian]
            for step in steps:
                errors = law.squared_error(step)
                rows += [
                    {"step": step, "estimator": label, "block": block, "predicted": error / norm}
                    for block, (error, norm) in enumerate(zip(errors, norms, strict=True))
                ]
    return pd.DataFrame(rows)


def _contest_row(problem: Problem, joint: bool, tangents: int) -> pd.DataFrame:
    from analysis.theory.laws import contest

    found = contest(problem.net, *problem.reference, problem.config.training.loss, joint=joint, tangents=tangents)
    return pd.DataFrame([vars(found) | {"batch_limit": found.batch_limit}])


def _predict(problem: Problem, name: str, **given):
    from analysis.theory import FORMULAS, predict

    if name not in FORMULAS or given.keys() - FORMULAS[name][1].keys():
        raise Unsupported(f"no closed form for {name} with these options: {given}")
    training = problem.config.training
    return predict(name, problem.net, *problem.reference, training.batch_size, training.loss, **given)


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


@functools.cache
def _code() -> str:
    """Hash all that a closed form depends on: this module, the theory, and the networks and data of `fdfa_core`."""
    places = [Path(package.__file__).parent for package in (fdfa_core, theory_package)]
    modules = sorted(path for place in places for path in place.rglob("*.py"))
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in modules:
        digest.update(os.fsencode(path.name) + path.read_bytes())
    return digest.hexdigest()
