"""The reference moments: the files are whole and right, others can read them without this project, and a mistake is noticed."""

import ast
import json
import random
import re
import shutil
import subprocess
import sys
from datetime import date

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats

import fdfa_cli
import verification
from fdfa_core.errors import RunError
from places import ROOT
from verification import reference
from verification.reference.cases import CASES, PROBLEMS, problem
from verification.reference.files import formatted

FOLDER = ROOT / "reference"
QUANTITIES = ("mean", "bias", "variance", "data_noise")
SMALL = "grape/tiny-tanh/n-2/perturbation-rademacher/feedback-lr-2.0"
CHAINS = "fdfa/two-tanh/n-2/perturbation-gaussian/feedback-lr-0.3/steps-1"


@pytest.fixture(scope="module")
def files():
    return reference.read(FOLDER)


@pytest.fixture(scope="module")
def table(files):
    return reference.check(files, draws=False)


def entry_of(files, name):
    """Return a copy of a case of the files."""
    return json.loads(json.dumps(next(entry for entry in files["cases"] if entry["name"] == name)))


def case_of(name):
    return next(case for case in CASES if case.name == name)


def scaled(value, factor):
    return (np.array(value) * factor).tolist()


# --- the files are right and whole -----------------------------------------------------------------------------------


def test_files_agree_with_closed_forms_and_with_sums_over_outcomes(table):
    assert reference.passed(table), table[table.verdict != "pass"].to_string()
    assert table.enumeration.notna().sum() >= 56


def test_writing_leaves_files_alone_that_are_right(table, tmp_path, monkeypatch):
    """The numbers that would be written are those that are there, to 1e-12: nothing is drawn, and nothing written."""
    monkeypatch.setattr(reference, "check", lambda *_, **__: pytest.fail("something differs"))
    shutil.copytree(FOLDER, tmp_path / "reference")
    assert reference.write(tmp_path / "reference") == []


def test_a_file_that_was_removed_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("verification.reference.files.provenance", dict)
    shutil.copytree(FOLDER, tmp_path / "reference")
    (tmp_path / "reference" / "problems.json").unlink()
    assert [path.name for path in reference.write(tmp_path / "reference")] == ["problems.json"]
    assert reference.read(tmp_path / "reference")["problems"] == reference.read(FOLDER)["problems"]


def test_every_case_is_whole(files):
    assert len({entry["name"] for entry in files["cases"]}) == len(files["cases"]) == len(CASES) >= 24
    methods = {"bp", "fg-w", "zo", "fg-a", "guess", "lg-fg-w", "lg-fg-a", "fa", "dfa", "drtp", "fdfa", "grape"}
    assert {entry["estimator"] for entry in files["cases"]} == methods
    for entry in files["cases"]:
        parameters = problem(entry["problem"]).parameters
        shapes = {name: {what: value.shape for what in QUANTITIES} for name, value in parameters.items()}
        assert {n: {w: np.shape(v) for w, v in m.items()} for n, m in entry["moments"].items()} == shapes, entry["name"]
        assert case_of(entry["name"]).given.keys() <= entry["options"].keys()
        assert ("feedback" in entry) == ("steps" in entry) == (entry["estimator"] == "fdfa")
        assert entry["checks"]["outcome"] == "pass"
        assert entry["checks"]["enumeration"] is not None or entry["checks"]["monte_carlo"] is not None
        assert all((np.array(m["variance"]) >= 0).all() for m in entry["moments"].values())


def test_draws_would_show_five_percent_in_every_case_that_is_drawn(files):
    drawn = {entry["name"]: entry["checks"]["monte_carlo"] for entry in files["cases"] if entry["checks"]["monte_carlo"]}
    assert {entry["name"] for entry in files["cases"] if entry["checks"]["enumeration"] is None} <= drawn.keys()
    assert max(checks["detectable"] for checks in drawn.values()) <= 0.05


def test_networks_cover_what_the_page_promises():
    layers = [(layer.kind, layer.activation, layer.bias is None) for name in PROBLEMS for layer in problem(name).layers]
    assert {kind for kind, _, _ in layers} == {"dense", "convolution"}
    assert {activation for _, activation, _ in layers} == {"tanh", "relu", "linear"}
    assert {bias for _, _, bias in layers} == {True, False}
    assert {len(problem(name).layers) - 1 for name in PROBLEMS} == {1, 2, 3}


def test_files_are_few_and_small_and_say_where_they_come_from():
    held = [path for path in FOLDER.iterdir() if path.is_file()]
    assert len(held) <= 6 and sum(path.stat().st_size for path in held) <= 5 * 2**20
    for name in reference.FILES:
        file = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert file["licence"] == "MIT" and file["provenance"]["command"] == "fdfa reference write"
        assert file["provenance"].keys() >= {"project", "versions"} and date.fromisoformat(file["provenance"]["date"])
        assert re.fullmatch(r"[0-9a-f]{64}", file["provenance"]["code"])


def test_the_page_describes_every_key_and_every_option(files):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    problems, cases = files["problems"].values(), files["cases"]
    keys = {key for entry in [*problems, *cases] for key in entry}
    keys |= {key for entry in problems for layer in entry["layers"] for key in layer}
    for entry in cases:
        checks = entry["checks"]
        keys |= entry["options"].keys() | entry["totals"].keys() | checks.keys() | entry.get("state", {}).keys()
        keys |= {entry["estimator"], entry["source"]} | set((checks["monte_carlo"] or {}).keys())
    assert sorted(key for key in keys | set(QUANTITIES) if f"`{key}`" not in page and f'`"{key}"`' not in page) == []
    drawn = [entry for entry in cases if entry["checks"]["monte_carlo"]]
    comparisons = sum(2 + 2 * sum(np.size(m["mean"]) for m in entry["moments"].values()) for entry in drawn)
    critical = stats.norm.isf(0.01 / 2 / comparisons)
    assert f"{len(cases)} cases" in page
    said = f"{len(drawn)} cases that draw, these are {comparisons:,} comparisons, and the critical value is {critical:.2f}"
    assert said in page


def test_floats_read_back_to_the_same_bits():
    source = random.Random(0)
    numbers = [source.uniform(-1, 1) * 10 ** source.randint(-300, 300) for _ in range(500)]
    assert json.loads(formatted({"numbers": numbers, "nested": [{"a": numbers[:3]}]}))["numbers"] == numbers


# --- others can read them --------------------------------------------------------------------------------------------


def run_reader(folder, *names):
    return subprocess.run(
        [sys.executable, str(folder / "read.py"), *names], cwd=folder, env={"PYTHONPATH": ""}, capture_output=True, text=True
    )


def test_the_reader_recomputes_cases_without_this_project():
    tree = ast.parse((FOLDER / "read.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"itertools", "json", "sys", "pathlib", "numpy"}
    result = run_reader(FOLDER)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("agrees") >= 28 and "DIFFERS" not in result.stdout


@pytest.mark.parametrize("what", ["mean", "variance"])
@pytest.mark.parametrize(
    "name", ["fg-a/two-tanh/n-2/perturbation-gaussian/site-post", "guess/two-tanh/n-2/perturbation-gaussian/rank-1/tangents-2"]
)
def test_the_reader_notices_a_mistake_and_names_the_case(tmp_path, files, name, what):
    folder = tmp_path / "reference"
    shutil.copytree(FOLDER, folder)
    entry = entry_of(files, name)
    entry["moments"]["1.weight"][what] = scaled(entry["moments"]["1.weight"][what], 1.05)
    plant(folder, entry)
    result = run_reader(folder, entry["name"])
    assert result.returncode == 1 and "DIFFERS" in result.stdout and entry["name"] in result.stdout


def test_the_reader_refuses_a_case_that_it_cannot_compute():
    result = run_reader(FOLDER, CHAINS)
    assert result.returncode == 1 and f"knows no case {CHAINS}" in result.stderr


# --- a mistake is noticed --------------------------------------------------------------------------------------------


def plant(folder, *entries):
    """Put altered cases in the place of those of the same name."""
    path = folder / "cases.json"
    file = json.loads(path.read_text(encoding="utf-8"))
    altered = {entry["name"]: entry for entry in entries}
    file["cases"] = [altered.get(entry["name"], entry) for entry in file["cases"]]
    path.write_text(json.dumps(file), encoding="utf-8")


@pytest.mark.parametrize("derivation", ["closed form", "enumeration"])
@pytest.mark.parametrize("what", QUANTITIES)
def test_five_percent_of_one_quantity_are_noticed_by_each_derivation(files, derivation, what, monkeypatch):
    case, entry = case_of(CHAINS), entry_of(files, CHAINS)
    other = {"closed form": "enumerate_case", "enumeration": "closed"}[derivation]
    monkeypatch.setattr(reference, other, lambda _: pytest.fail("the other derivation"))
    if derivation == "closed form":
        monkeypatch.setattr(reference, "feasible", lambda _: False)
    else:
        right = reference.enumerate_case(case)
        monkeypatch.setattr(reference, "closed", lambda _: right)
    assert reference.exact_row(case, entry)["verdict"] == "pass"
    entry["moments"]["0.weight"][what][1][2] *= 1.05
    assert f"{what} of 0.weight" in reference.exact_row(case, entry)["verdict"]


@pytest.mark.parametrize("what", ["mean", "variance"])
def test_five_percent_of_the_feedback_or_of_a_total_are_noticed(files, what):
    case, entry = case_of(CHAINS), entry_of(files, CHAINS)
    entry["feedback"][1][what][0][0] *= 1.05
    assert f"feedback {what} of layer 1" in reference.exact_row(case, entry)["verdict"]
    entry = entry_of(files, CHAINS)
    total = {"mean": "mean_squared", "variance": "variance"}[what]
    entry["totals"][total] *= 1.05
    assert f"total {total}" in reference.exact_row(case, entry)["verdict"]


@pytest.mark.parametrize(
    "alter",
    [
        lambda entry: entry["moments"].pop("0.bias"),
        lambda entry: entry["moments"]["0.bias"].update(variance=[1.0]),
        lambda entry: entry["moments"]["0.bias"].update(mean=[float("nan")] * 3),
        lambda entry: entry["moments"]["0.bias"].update(mean="none"),
        lambda entry: entry["options"].update(feedback_lr=0.31),
        lambda entry: entry.update(steps=2),
        lambda entry: entry.update(feedback=[]),
    ],
)
def test_a_case_of_another_form_or_another_question_is_noticed(files, alter):
    entry = entry_of(files, CHAINS)
    alter(entry)
    assert reference.exact_row(case_of(CHAINS), entry)["verdict"] != "pass"


@pytest.mark.parametrize(("name", "what"), [(SMALL, "mean"), (SMALL, "variance"), (CHAINS, "feedback variance")])
def test_draws_notice_five_percent_by_themselves(files, name, what):
    entry = entry_of(files, name)
    assert verification.passed(verification.judge(pd.DataFrame(reference.drawn_rows(case_of(name), entry))))
    if what.startswith("feedback"):
        entry["feedback"] = [{**layer, "variance": scaled(layer["variance"], 1.05)} for layer in entry["feedback"]]
    else:
        entry["moments"] = {n: {**m, what: scaled(m[what], 1.05)} for n, m in entry["moments"].items()}
    judged = verification.judge(pd.DataFrame(reference.drawn_rows(case_of(name), entry)))
    assert what in set(judged.quantity[judged.verdict != "pass"])


def test_nothing_is_written_if_a_check_fails(tmp_path, monkeypatch):
    case, right = case_of("drtp/two-relu/n-3"), reference.closed
    monkeypatch.setattr(reference, "CASES", (case,))
    monkeypatch.setattr(reference, "closed", lambda c: {**right(c), "variance": 1.05 * right(c)["variance"]})
    with pytest.raises(RunError, match="drtp/two-relu/n-3: enumeration: .*variance"):
        reference.write(tmp_path, jobs=1)
    assert not (tmp_path / "cases.json").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def fdfa(*arguments):
    return CliRunner().invoke(fdfa_cli.main, ["reference", *map(str, arguments)])


def test_the_command_tells_right_files_from_wrong_ones(tmp_path, files):
    folder = tmp_path / "reference"
    shutil.copytree(FOLDER, folder)
    asked = ("verify", "--directory", folder, "--only", "drtp/two-relu/n-3", "--no-draws")
    right = fdfa(*asked)
    assert right.exit_code == 0 and "3 of 3 rows pass" in right.stdout
    entry = entry_of(files, "drtp/two-relu/n-3")
    entry["moments"]["0.weight"]["variance"] = scaled(entry["moments"]["0.weight"]["variance"], 1.05)
    plant(folder, entry)
    wrong = fdfa(*asked)
    assert wrong.exit_code == 1 and "variance of 0.weight is off by" in wrong.stdout


def test_altered_problems_missing_and_unknown_cases_are_named(files):
    content = {"problems": json.loads(json.dumps(files["problems"])), "cases": list(files["cases"])}
    content["problems"]["wide-tanh"]["x"][0][0] += 0.001
    del content["cases"][0]
    content["cases"].append({**files["cases"][1], "name": "bp/other"})
    verdicts = reference.check(content, draws=False, only="bp/").set_index("case").verdict
    assert "wide-tanh" in verdicts["problems.json"] and "bp/other" in verdicts["cases.json"]
    assert "missing" in verdicts["bp/tiny-tanh/n-2"] and verdicts["bp/convolution-tanh/n-4"] == "pass"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "fdfa reference write"),
        ("{", "fdfa reference write"),
        ('{"schema": 2, "problems": {}}', "schema: got 2"),
        ('{"schema": 1, "problems": []}', "another form"),
    ],
)
def test_files_that_cannot_be_read_are_refused_with_a_remedy(tmp_path, content, said):
    if content is not None:
        (tmp_path / "problems.json").write_text(content)
    result = fdfa("verify", "--directory", tmp_path)
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.stderr


def test_an_unknown_case_is_refused():
    result = fdfa("verify", "--only", "no such case")
    assert result.exit_code == 2 and "--only: got 'no such case'" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_draws_of_all_cases_agree_with_the_files_and_an_empty_folder_gets_the_same(tmp_path, files):
    result = fdfa("verify", "--jobs", 1)
    assert result.exit_code == 0, result.stdout
    assert len(reference.write(tmp_path / "new", jobs=1)) == len(reference.FILES)
    assert reference.same(reference.read(tmp_path / "new"), files)
