"""Which store a directory is, and damaged records."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import recorded
from analysis import logs
from fdfa_core.errors import RunError
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import recording
from fdfa_core.runs.directory import RunDirectory, open_root
from fdfa_core.runs.record import Record
from fdfa_core.runs.store import open_store


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(experiment, runs, record); not to be changed."""
    place = tmp_path_factory.mktemp("written")
    experiments, root = recorded.write(place)
    experiment = load_profile("tiny", experiments)["digits_fc"]
    recording.record(experiment, root, place / "record")
    return experiment, root, place / "record"


@pytest.fixture
def record(written, tmp_path):
    """(experiment, record) to change."""
    shutil.copytree(written[2], tmp_path / "record")
    return written[0], tmp_path / "record"


def test_a_directory_of_runs_is_told_from_a_record(written):
    assert isinstance(open_store(written[1]), RunDirectory) and isinstance(open_store(written[2]), Record)


def test_an_experiments_folder_is_a_record_of_its_own(written):
    assert open_store(written[2] / "digits_fc").ids() == open_store(written[2]).ids()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), open_root], ids=["missing", "empty", "new"])
def test_a_directory_without_anything_holds_no_run(tmp_path, make):
    make(tmp_path / "runs")
    assert open_store(tmp_path / "runs").ids() == []


def test_a_store_is_itself(written):
    store = open_store(written[2])
    assert open_store(store) is store


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match="runs: is a file"):
        open_store(tmp_path / "runs")


def test_a_directory_of_other_files_is_refused_by_name(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds neither runs nor recorded experiments.*such as 'thesis.tex'"):
        open_store(tmp_path)


def test_runs_beside_recorded_experiments_are_refused_by_name(written, record):
    run = written[0].runs()[0].id
    shutil.copytree(written[1] / run, record[1] / run)
    with pytest.raises(RunError, match=f"such as '{run}'.*such as 'digits_fc'.*fdfa record --merge"):
        open_store(record[1])


def test_a_run_that_is_not_there_is_named(written):
    with pytest.raises(RunError, match="does not hold the run 0123"):
        open_store(written[2]).config("0123")


def test_both_stores_have_a_fingerprint_that_changes_with_what_they_hold(written, record, tmp_path):
    experiment, root = record
    ids = [run.id for run in experiment.runs()]
    assert open_store(root).fingerprint(ids) == open_store(written[2]).fingerprint(ids)
    shutil.copyfile(root / "digits_fc" / "metrics.parquet", root / "digits_fc" / "theory.parquet")
    assert open_store(root).fingerprint(ids) != open_store(written[2]).fingerprint(ids)
    shutil.copytree(written[1], tmp_path / "runs")
    before = open_store(tmp_path / "runs").fingerprint(ids)
    (tmp_path / "runs" / ids[0] / "summary.json").write_text("{}")
    assert open_store(tmp_path / "runs").fingerprint(ids) != before


# --- damaged records -------------------------------------------------------------------------------------------------


def rewrite(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def row(table, number, **changes):
    rows = table.to_pylist()
    rows[number] |= changes
    return pa.Table.from_pylist(rows, schema=table.schema)


def other_seed(table):
    config = json.loads(table["config"][0].as_py()) | {"seed": 99}
    return row(table, 0, config=json.dumps(config, sort_keys=True, separators=(",", ":")))


# (file, damage, what the error says)
DAMAGES = {
    "no runs": ("runs", lambda p: p.unlink(), "runs.parquet: is missing; the record of the experiment is damaged"),
    "truncated": ("metrics", lambda p: p.write_bytes(p.read_bytes()[:-20]), "metrics.parquet: is truncated or not Parquet"),
    "lost": ("probes", lambda p: p.unlink(), "probes.parquet: is missing"),
    "another configuration": ("runs", lambda p: rewrite(p, other_seed), "row 0: run is .*as its configuration"),
    "a column that contradicts": ("runs", lambda p: rewrite(p, lambda t: row(t, 1, seed=9)), "row 1: seed is 9; accepted: "),
    "no JSON": ("runs", lambda p: rewrite(p, lambda t: row(t, 1, summary="{")), "row 1: has no config, provenance and summary"),
    "another summary": ("runs", lambda p: rewrite(p, lambda t: row(t, 1, summary="{}")), "row 1, summary: is not the summary"),
    "a run twice": ("runs", lambda p: rewrite(p, lambda t: pa.concat_tables([t, t.slice(0, 1)])), "holds a run twice"),
    "a run too many": ("runs", lambda p: rewrite(p, lambda t: t.slice(1)), "has rows of the run .*, which runs.parquet"),
    "rows of a run lost": ("metrics", lambda p: rewrite(p, lambda t: t.slice(4)), "has no rows; accepted: one row per"),
    "rows out of order": (
        "metrics",
        lambda p: rewrite(p, lambda t: pa.concat_tables([t.slice(4), t.slice(0, 4)])),
        "its rows are not in the order of runs.parquet",
    ),
    "no column of runs": ("metrics", lambda p: rewrite(p, lambda t: t.drop_columns("run")), "lacks the column 'run'"),
    "no seconds": (
        "metrics",
        lambda p: rewrite(p, lambda t: t.drop_columns("training_seconds")),
        "metrics.parquet: lacks the column 'training_seconds' of a timing table",
    ),
    "a clock that runs backwards": (
        "metrics",
        lambda p: rewrite(p, lambda t: row(t, 0, training_seconds=1e9)),
        "metrics.parquet, run .*: .*seconds since the start, which never fall",
    ),
    "a column of no table": (
        "metrics",
        lambda p: rewrite(p, lambda t: t.append_column("price", t["step"])),
        "metrics.parquet: has the column 'price', which no metrics table has",
    ),
    "a wrong number": (
        "metrics",
        lambda p: rewrite(p, lambda t: row(t, 1, test_accuracy=7.0)),
        "metrics.parquet, run .*: test_accuracy is 7 at step 1; accepted: a share",
    ),
}


@pytest.mark.parametrize("name, damage, said", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_named(record, name, damage, said):
    experiment, root = record
    damage(root / "digits_fc" / f"{name}.parquet")
    with pytest.raises(RunError, match=said):
        logs.read(root, experiment, partial=True)
