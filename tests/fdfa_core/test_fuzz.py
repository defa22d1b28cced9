"""Whatever an experiment file or the directory of a run holds: a clear error of this project, or the right result."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import synthetic_logs
from fdfa_core.errors import FdfaError, RunError
from fdfa_core.experiments.loading import load_experiment
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.runs import validation
from fdfa_core.runs.directory import open_root
from fdfa_core.runs.store import open_store
from tiny import TOML, tiny

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
@settings(max_examples=20_000, **RATE)
@given(st.lists(PARTS, min_size=1, max_size=5))
def test_many_altered_experiments_are_refused_or_read(changes):
    check_experiment_text(altered(changes).encode())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The directory of a sound run, and what is read from it."""
    root = open_root(tmp_path_factory.mktemp("fuzz") / "runs")
    synthetic_logs.write_run(root, tiny())
    return root / tiny().id, read(root)


def read(root):
    store = open_store(root)
    return validation.checked(store, [store.config(tiny().id)])


FILES = ("config.json", "summary.json", "metrics.parquet", "timing.parquet")
ALTERATIONS = st.tuples(
    st.sampled_from(FILES), st.sampled_from(["flip", "cut", "empty", "json"]), st.integers(0, 10**6), st.integers(1, 255)
)


def check_run(sound, alteration):
    directory, before = sound
    file, how, place, mask = alteration
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(directory, Path(folder) / "runs" / directory.name))
        content = bytearray((run / file).read_bytes())
        if how == "flip":
            content[place % len(content)] ^= mask
        elif how == "cut":
            content = content[: place % len(content)]
        elif how == "empty":
            content = bytearray()
        else:
            content = bytearray(json.dumps([None, [], {"status": [place]}, place, "x"][mask % 5]).encode())
        (run / file).write_bytes(content)
        assert isinstance(validation.damage(run), str)
        try:
            after = read(run.parent)
        except RunError as error:
            assert str(run.name) in str(error)
            return
    assert after.configs == before.configs
    if file != "timing.parquet":  # seconds are no result, and any that never fall are sound
        same = [name for name in before.tables if after.tables[name].equals(before.tables[name])]
        assert after.summaries == before.summaries and same or how == "flip"


@settings(max_examples=40, **RATE)
@given(alteration=ALTERATIONS)
def test_an_altered_run_is_refused_or_reads_the_same(sound, alteration):
    check_run(sound, alteration)


@pytest.mark.slow
@settings(max_examples=10_000, **RATE)
@given(alteration=ALTERATIONS)
def test_many_altered_runs_are_refused_or_read_the_same(sound, alteration):
    check_run(sound, alteration)
