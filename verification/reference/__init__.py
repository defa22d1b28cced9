"""Reference moments: frozen cases with exact means and variances, that other implementations can test against.

The files are in `reference/` of the source tree; its README.md says what they hold and how they were checked. `write` makes
them. `verify` holds them against two derivations that share no code (`closed`, `enumeration`) and against draws of estimators.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

import verification
from analysis.theory import Prediction
from fdfa_core import paths
from fdfa_core.errors import InvalidInput, RunError
from fdfa_core.files import make_directory
from fdfa_core.workers import worker_processes
from verification.checks import Row
from verification.reference.cases import CASES, ReferenceCase, problem
from verification.reference.closed import closed, measure, tensor
from verification.reference.enumeration import enumerate_case, feasible
from verification.reference.files import (
    FILES,
    MOMENTS,
    REMEDY,
    case_frame,
    difference,
    moments_of,
    problem_entries,
    read,
    same,
    save,
)

TOLERANCE = 1e-10  # of two exact derivations, see `difference`
COLUMNS = {
    "case": "its name in cases.json, or a file",
    "closed form": "largest difference from `closed`, relative (see `difference`)",
    "enumeration": "largest difference from the sum over outcomes, relative",
    "draws": "draws of the estimator, or chains of its feedback",
    "largest z": "of their means, variances and feedback against the file",
    "p": "smallest p of these, corrected for all cases (Holm)",
    "detectable": "relative mistake in mean or total variance that the draws would show with 90 % power",
    "verdict": "`pass`, or what is wrong",
}


def contents() -> dict[str, object]:
    """Return the problems and the cases as the files hold them, without provenance and without outcomes of checks."""
    return {"problems": problem_entries(), "cases": [case_frame(case) | moments_of(case, closed(case)) for case in CASES]}


def write(directory: Path = paths.REFERENCE, jobs: int | None = None) -> list[Path]:
    """Make the files; return those that were written. One whose content is still right is left alone, with its provenance.

    Args:
        directory: where they go.
        jobs: processes that take draws; None takes one per core.

    Raises:
        RunError: a case fails a check; no file is written.
    """
    make_directory(directory)
    made, outcomes = contents(), None
    written = []
    for name in FILES:
        path = directory / f"{name}.json"
        if path.exists() and same(_without_checks(read(directory, [name])[name]), made[name]):
            continue
        if name == "cases":
            outcomes = check(made, jobs=jobs)
            if not passed(outcomes):
                failed = outcomes[outcomes.verdict != "pass"]
                raise RunError(f"{path} was not written, for checks fail: " + "; ".join(failed.case + ": " + failed.verdict))
            for entry, outcome in zip(made["cases"], outcomes.to_dict("records")[-len(made["cases"]) :], strict=True):
                entry["checks"] = _recorded(outcome)
        written.append(save(directory, name, made[name]))
    return written


def _without_checks(content: object) -> object:
    if not isinstance(content, list):
        return content
    return [{key: value for key, value in entry.items() if key != "checks"} for entry in content]


def _recorded(outcome: dict[str, object]) -> dict[str, object]:
    """Return the outcome of a case's checks as the file holds it; None for a check that does not exist for the case."""
    off = outcome["enumeration"]
    entry: dict[str, object] = {"enumeration": None if pd.isna(off) else _power_of_ten(off)}
    if pd.isna(outcome["draws"]):
        return entry | {"monte_carlo": None, "outcome": outcome["verdict"]}
    numbers = {"draws": int(outcome["draws"]), "seed": outcome["seed"], "largest_z": round(outcome["largest z"], 2)}
    numbers |= {"p": float(f"{outcome['p']:.2g}"), "detectable": float(f"{outcome['detectable']:.2g}")}
    return entry | {"monte_carlo": numbers, "outcome": outcome["verdict"]}


def _power_of_ten(value: float) -> float:
    """Return the next power of ten above a rounding error, which differs between machines; at least 1e-16."""
    return 10.0 ** max(-16, math.ceil(math.log10(max(value, 1e-300))))


# --- checks ----------------------------------------------------------------------------------------------------------


def verify(directory: Path = paths.REFERENCE, *, draws: bool = True, only: str = "", jobs: int | None = None) -> pd.DataFrame:
    """Hold the files against closed forms, sums over outcomes and draws; return a row per file and case (columns: `COLUMNS`).

    Args:
        directory: where the files are.
        draws: whether estimators are drawn too, which takes minutes.
        only: check only cases whose name contains this.
        jobs: processes that take draws; None takes one per core.

    Raises:
        InvalidInput: the files cannot be read, or no case has such a name.
    """
    if not any(only in case.name for case in CASES):
        raise InvalidInput("--only", only, "a part of the name of a case in cases.json")
    return check(read(directory), draws=draws, only=only, jobs=jobs)[list(COLUMNS)]


def check(content: dict[str, object], *, draws: bool = True, only: str = "", jobs: int | None = None) -> pd.DataFrame:
    """Return the table of `verify` for a content, with a further column `seed`."""
    rows = [_problems_row(content["problems"])]
    entries = {entry.get("name"): entry for entry in content["cases"]}
    surplus = sorted(map(str, entries.keys() - {case.name for case in CASES}))
    if surplus or len(entries) != len(content["cases"]):
        rows.append(_row("cases.json", f"it has cases of an unknown name, or twice the same one: {surplus}"))
    chosen = [case for case in CASES if only in case.name]
    rows += [exact_row(case, entries.get(case.name)) for case in chosen]
    frame = pd.DataFrame(rows)
    sound = [case for case in chosen if draws and case.draws and (frame.verdict[frame.case == case.name] == "pass").all()]
    if not sound:
        return frame
    if jobs == 1:
        results = [drawn_rows(case, entries[case.name]) for case in sound]
    else:
        with worker_processes():
            results = Parallel(n_jobs=jobs or -1)(delayed(drawn_rows)(case, entries[case.name]) for case in sound)
    judged = verification.judge(pd.DataFrame([row for each in results for row in each]))
    for i, name in frame.case.items():
        mine = judged[judged.case == name]
        if len(mine):
            primary = mine[mine.primary & (mine.se > 0)]
            frame.loc[i, ["draws", "largest z", "p"]] = mine.draws.max(), mine.z.abs().max(), mine.p_holm.min()
            frame.loc[i, "detectable"] = primary.detectable.max()
            for _, failed in mine[mine.verdict != "pass"].head(1).iterrows():
                said = f"{failed.quantity} is {failed.measured:.5g}, by the file {failed.predicted:.5g}"
                frame.loc[i, "verdict"] = f"draws: {said}"
    return frame


def passed(frame: pd.DataFrame) -> bool:
    """Return whether every row passes."""
    return bool((frame.verdict == "pass").all())


def table(frame: pd.DataFrame) -> str:
    """Return the table of `verify` as text."""
    shown = frame.rename(columns={"closed form": "closed", "enumeration": "enumerated", "detectable": "shows"}).astype(object)
    forms = {"closed": "{:.0e}", "enumerated": "{:.0e}", "draws": "{:,.0f}"}
    forms |= {"largest z": "{:.2f}", "p": "{:.2g}", "shows": "{:.1%}"}
    for column, form in forms.items():
        shown[column] = ["–" if pd.isna(value) else form.format(value) for value in shown[column]]
    return shown.to_markdown(index=False, disable_numparse=True)


def _row(case: str, verdict: str, **more: object) -> dict[str, object]:
    nothing = {"closed form": math.nan, "enumeration": math.nan, "draws": math.nan, "largest z": math.nan, "p": math.nan}
    return {"case": case} | nothing | {"detectable": math.nan, "verdict": verdict, "seed": 0} | more


def _problems_row(found: dict[str, object]) -> dict[str, object]:
    expected = problem_entries()
    wrong = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    return _row("problems.json", f"other arrays than those of the cases: {', '.join(wrong)}" if wrong else "pass")


def exact_row(case: ReferenceCase, entry: dict[str, object] | None) -> dict[str, object]:
    """Compare a case of the file with its closed form and with the sum over outcomes; return its row of the table."""
    seed = zlib.crc32(f"reference: {case.name}".encode())
    if entry is None:
        return _row(case.name, f"the case is missing: {REMEDY}")
    asked = case_frame(case)
    different = [key for key, value in asked.items() if not same(entry.get(key), value)]
    if different:
        return _row(case.name, f"another case than its name says: {', '.join(different)}")
    derivations = {"closed form": closed(case)} | ({"enumeration": enumerate_case(case)} if feasible(case) else {})
    off, verdict = {}, "pass"
    for derivation, found in derivations.items():
        differences = compare(case, entry, found)
        worst = max(differences, key=differences.get)
        off[derivation] = differences[worst]
        if not off[derivation] <= TOLERANCE:
            verdict = f"{derivation}: {worst} is off by {off[derivation]:.2g}"
    return _row(case.name, verdict, seed=seed, **off)


def compare(case: ReferenceCase, entry: dict, found: dict) -> dict[str, float]:
    """Return the largest relative difference of every quantity of a case between the file and a derivation."""
    moments, totals = entry.get("moments", {}), entry.get("totals", {})
    expected = moments_of(case, found)
    scales = {"mean": np.abs(found["gradient"]).max(), "variance": found["variance"].max()}
    scales |= {"bias": scales["mean"], "data_noise": scales["variance"]}
    off = {f"the set of {name}": math.inf for name in ("moments",) if moments.keys() != expected["moments"].keys()}
    for name, quantities in expected["moments"].items():
        for what, values in quantities.items():
            off[f"{what} of {name}"] = difference(moments.get(name, {}).get(what), values, scales[what])
    for name, value in expected["totals"].items():
        scale = expected["totals"]["variance" if name in ("variance", "data_noise") else "gradient_squared"]
        off[f"total {name}"] = difference(totals.get(name), value, scale)
    for i, layer in enumerate(expected.get("feedback", [])):
        held = entry["feedback"][i] if i < len(entry.get("feedback", [])) else {}
        for what, values in layer.items():
            off[f"feedback {what} of layer {i}"] = difference(held.get(what), values, np.abs(values).max())
    return off


def drawn_rows(case: ReferenceCase, entry: dict) -> list[Row]:
    """Compare draws of a case's estimator with the file; return the rows of `verification.checks`. One thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        moments = [tuple(np.array(layer[what]) for what in ("mean", "variance")) for layer in entry.get("feedback", [])]
        compared = measure(case, prediction_of(case, entry), moments, zlib.crc32(f"reference: {case.name}".encode()))
    finally:
        torch.set_num_threads(threads)
    named = {"case": case.name, "estimator": case.estimator, "network": case.problem, "batch_size": case.batch_size}
    return [named | row for row in compared]


def prediction_of(case: ReferenceCase, entry: dict) -> Prediction:
    """Return the moments of the file as a prediction; only parameters that a perturbation reaches count as random."""
    values = {what: {n: tensor(np.array(m[what])) for n, m in entry["moments"].items()} for what in MOMENTS}
    zeros = {name: 0 * value for name, value in values["mean"].items()}
    last = f"{len(problem(case.problem).layers) - 1}."
    exact = case.estimator not in ("fg-w", "zo") and case.options.get("readout", "exact") == "exact"
    fixed = {name: exact and name.startswith(last) for name in zeros}
    data = {name: value if fixed[name] else zeros[name] for name, value in values["variance"].items()}
    rest = {name: zeros[name] if fixed[name] else value for name, value in values["variance"].items()}
    target = {name: value - values["bias"][name] for name, value in values["mean"].items()}
    return Prediction(case.estimator, case.batch_size, values["mean"], target, data, rest, zeros, zeros)
