"""Whatever an experiment file or the directory of a run holds: a clear error of this project, or the right result."""

import json
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import synthetic_logs
from fdfa_core.errors import FdfaError, RunError
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs import recording, validation
from fdfa_core.runs.directory import open_root
from fdfa_core.runs.doctor import examine
from fdfa_core.runs.store import open_store
from tiny import TOML

TOML = TOML.replace("steps = 6", "steps = 5")  # as the synthetic logs have it
LINES = TOML.splitlines()
VALUES = ["-1", "0", "1e400", "nan", "true", '"x"', '""', "[]"]
VALUES += ["{}", "[[[]]]", "1979-05-27", str(2**63), "[1, 'a']", "'''", "{ name = 3 }"]
RATE = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}
PARTS = st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["value", "drop", "twice", "swap"]), st.sampled_from(VALUES))


def altered(changes):
    lines = list(LINES)
    for number, how, value in changes:
        number %= max(1, len(lines))
        if how == "value":
            lines[number] = f"{lines[number].split('=')[0]}= {value}"
        elif how == "drop":
            lines[number] = ""
        elif how == "twice":
            lines.insert(number, lines[number])
        else:
            lines[number], lines[0] = lines[0], lines[number]
    return "\n".join(lines)


def check_experiment_text(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.toml"
        path.write_bytes(content)
        try:
            runs = load_experiment(path).runs()
        except FdfaError as error:
            assert str(error) and "Traceback" not in str(error)
            return
    assert runs and all(RunConfig.from_json(run.canonical()) == run for run in runs)


@settings(max_examples=60, **RATE)
@given(st.lists(PARTS, min_size=1, max_size=3))
def test_an_altered_experiment_is_refused_or_read(changes):
    check_experiment_text(altered(changes).encode())


@settings(max_examples=30, **RATE)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read_as_an_experiment(content):
    check_experiment_text(content)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=10_000, **RATE)
@given(st.lists(PARTS, min_size=1, max_size=5))
def test_many_altered_experiments_are_refused_or_read(changes):
    check_experiment_text(altered(changes).encode())


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=10_000, **RATE)
@given(st.binary(max_size=200))
def test_many_bytes_are_refused_or_read_as_an_experiment(content):
    check_experiment_text(content)


def read(root, runs):
    """Return all that is kept of some runs, closed forms included."""
    store = open_store(root)
    return validation.checked(store, [store.config(run) for run in runs]), store.theory(runs)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Kind → (directory of runs or record of two sound runs, what is read from it)."""
    place = tmp_path_factory.mktemp("fuzz")
    (place / "e.toml").write_text(TOML)
    experiment, root = load_experiment(place / "e.toml"), open_root(place / "runs")
    runs = experiment.runs()
    for run in runs:
        synthetic_logs.write_run(root, run)
        synthetic_logs.seal_run(root / run.id)
    recording.record(experiment, root, place / "record")
    theory = pd.DataFrame({"run": [run.id for run in runs], "question": "q", "code": "c", "value": [0.5, 0.25]})
    recording.write_theory(place / "record", "e", theory)
    return {kind: (place / kind, [run.id for run in runs], read(place / kind, [run.id for run in runs])) for kind in KINDS}


KINDS = {"runs": ("config.json", "summary.json", "provenance.json", "metrics.parquet", "timing.parquet", "probes.parquet"),
         "record": ("runs.parquet", "metrics.parquet", "probes.parquet", "theory.parquet")}  # fmt: skip
HOW = st.sampled_from(["flip", "flips", "cut", "empty", "json", "twice"])
ALTERATIONS = {
    kind: st.tuples(st.just(kind), st.sampled_from(files), HOW, st.integers(0, 10**6), st.integers(1, 255))
    for kind, files in KINDS.items()
}


def altered_bytes(content, how, place, mask):
    content, place = bytearray(content), place % len(content)
    if how == "flip":
        content[place] ^= mask
    elif how == "flips":
        for i in range(place, min(place + mask, len(content)), 7):
            content[i] ^= mask
    elif how == "cut":
        content = content[:place]
    elif how == "empty":
        content = bytearray()
    elif how == "twice":
        content = content[:place] + content[max(0, place - mask) :]
    else:
        content = json.dumps([None, [], {"status": [place]}, place, "x"][mask % 5]).encode()
    return bytes(content)


def check_store(places, alteration, doctor):
    """Alter a file of a run or a record: it is named, or all is read as it was. The file is put back."""
    kind, file, *how = alteration
    root, runs, before = places[kind]
    path = root / (runs[0] if kind == "runs" else "e") / file
    content = path.read_bytes()
    changed = altered_bytes(content, *how)
    path.write_bytes(changed)
    try:
        fault = validation.damage(path.parent) if kind == "runs" else "not looked for"
        try:
            after, theory = read(root, runs)
        except RunError as error:
            assert path.parent.name in str(error) and str(error).count("\n") == 0 and changed != content
            assert fault and (not doctor or examine(root).damaged)
            return
    finally:
        path.write_bytes(content)
    texts = [(contents.configs, contents.summaries, contents.provenances) for contents in (after, before[0])]
    assert texts[0] == texts[1] and theory.equals(before[1])
    assert all(after.tables[name].equals(table) for name, table in before[0].tables.items())


@settings(max_examples=25, **RATE)
@given(alteration=ALTERATIONS["runs"])
def test_an_altered_run_is_refused_or_reads_the_same(places, alteration):
    check_store(places, alteration, doctor=True)


@settings(max_examples=25, **RATE)
@given(alteration=ALTERATIONS["record"])
def test_an_altered_record_is_refused_or_reads_the_same(places, alteration):
    check_store(places, alteration, doctor=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5_000, **RATE)
@given(data=st.data())
def test_many_altered_runs_and_records_are_refused_or_read_the_same(places, kind, data):
    check_store(places, data.draw(ALTERATIONS[kind]), doctor=False)
