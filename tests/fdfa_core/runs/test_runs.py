import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import recorded
from analysis import logs
from fdfa_core.errors import RunError
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import recording, schema
from fdfa_core.runs.directory import MARKER, RunDirectory, claim, is_complete, open_root, read_config, read_table
from fdfa_core.runs.partial import PartialRun, Rows
from fdfa_core.runs.record import Record
from fdfa_core.runs.store import open_store
from fdfa_core.training.run import train
from tiny import Child, tiny

METRICS = [{name: float(i) for name in schema.METRICS} for i in range(3)]


def rows(content):
    table = Rows()
    for row in content:
        table.add([row])
    return table


@pytest.fixture
def root(tmp_path):
    return open_root(tmp_path / "runs")


@pytest.fixture
def partial(root):
    return PartialRun(root, tiny())


@pytest.fixture
def directory(partial):
    """A complete run."""
    partial.write_table("metrics", rows(METRICS))
    partial.write_json("summary.json", {"status": "finished"})
    return partial.publish()


def test_a_new_directory_is_made_with_its_parents(tmp_path):
    assert open_root(tmp_path / "a" / "b").is_dir()


def test_a_directory_of_runs_is_accepted_again(directory, root):
    assert open_root(root) == root


def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"holds files that no run wrote \(such as 'thesis.tex'\); accepted: a new or an empty"):
        open_root(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_lost_marker_is_written_anew_beside_runs_alone(directory, root):
    (root / MARKER).unlink()
    (root / f"{tiny(seed=1).id}.partial").mkdir()
    assert open_root(root) == root and (root / MARKER).exists()
    (root / MARKER).unlink()
    (root / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="such as 'thesis.tex'"):
        open_root(root)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "runs").write_text("precious")
    with pytest.raises(RunError, match="runs: cannot be written"):
        open_root(tmp_path / "runs")


def test_a_directory_without_permission_to_write_is_refused(root, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, whom permissions do not bind
    with pytest.raises(RunError, match="no permission to write"):
        open_root(root)


def test_an_unfinished_run_is_not_complete(partial, root):
    partial.write_table("metrics", rows(METRICS))
    partial.write_json("summary.json", {})
    assert not is_complete(root, tiny().id)


def test_a_published_run_is_complete_and_nothing_partial_is_left(directory, root):
    assert is_complete(root, tiny().id) and not partial_path(root).exists()


def test_the_checkpoint_does_not_outlive_the_run(partial):
    partial.write_checkpoint({"step": 1})
    partial.write_json("summary.json", {})
    assert not list(partial.publish().glob("*.pt"))


def test_a_foreign_directory_with_the_name_of_a_run_is_not_overwritten(root):
    (root / tiny().id).mkdir()
    (root / tiny().id / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="is in the way"):
        PartialRun(root, tiny())


def test_a_partial_directory_of_another_configuration_is_refused(root):
    PartialRun(root, tiny()).write_json("config.json", tiny(seed=1).model_dump(mode="json"))
    with pytest.raises(RunError, match="config.json is not that of run"):
        PartialRun(root, tiny())


def test_what_a_killed_write_left_behind_is_removed(root, partial):
    (partial.path / ".metrics.parquet.1.tmp").write_text("half")
    PartialRun(root, tiny())
    assert not list(partial.path.glob(".*.tmp"))


def test_the_configuration_is_read_back(directory):
    assert read_config(directory) == tiny()


def test_a_table_is_read_back(directory):
    pd.testing.assert_frame_equal(read_table(directory, "metrics"), pd.DataFrame(METRICS))


def test_a_table_without_rows_keeps_its_columns_and_types(partial):
    partial.write_table("probes", Rows())
    table = read_table(partial.path, "probes")
    assert list(table.columns) == list(schema.PROBES) and table["step"].dtype == np.int64


def test_rows_taken_from_a_checkpoint_give_the_same_bytes(partial):
    partial.write_table("metrics", rows(METRICS))
    whole = (partial.path / "metrics.parquet").read_bytes()
    resumed = Rows()
    resumed.load_state_dict(rows(METRICS[:2]).state_dict())
    resumed.add(METRICS[2:])
    partial.write_table("metrics", resumed)
    assert (partial.path / "metrics.parquet").read_bytes() == whole


def test_rows_of_a_checkpoint_that_lacks_a_later_column_go_on_with_it(partial):
    resumed = Rows()
    resumed.load_state_dict(rows([{"step": 0, "loss": 0.5}]).state_dict())
    resumed.add([{"step": 1, "loss": 0.25, "later": 2.0}])
    found = resumed.table().to_pandas()
    assert found["step"].tolist() == [0, 1] and np.isnan(found["later"][0]) and found["later"][1] == 2.0


def test_a_checkpoint_is_read_back(partial):
    state = {"tensors": [torch.arange(3.0)], "nested": {"step": 3, "name": "x", "none": None, "rows": [{"a": 0.5}]}}
    partial.write_checkpoint(state)
    found = partial.read_checkpoint()
    assert torch.equal(found["tensors"][0], state["tensors"][0]) and found["nested"] == state["nested"]


def test_a_damaged_checkpoint_is_reported_with_the_remedy(partial):
    (partial.path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match="not a readable checkpoint; remove .* to start the run anew"):
        partial.read_checkpoint()


def test_a_missing_table_is_named(directory):
    with pytest.raises(RunError, match="probes.parquet: is missing; expected the probes table"):
        read_table(directory, "probes")


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_truncated_table_is_reported(directory, keep):
    path = directory / "metrics.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="metrics.parquet: is truncated or not Parquet .*expected the metrics table of a run"):
        read_table(directory, "metrics")


def test_a_foreign_table_is_reported_with_the_missing_column(directory):
    pd.DataFrame({"step": [1], "price": [2.0]}).to_parquet(directory / "metrics.parquet")
    with pytest.raises(RunError, match="metrics.parquet: lacks the column 'epoch'.*it has step, price"):
        read_table(directory, "metrics")


def test_a_column_that_the_caller_needs_is_reported_when_missing(directory):
    with pytest.raises(RunError, match="lacks the column 'entropy'"):
        read_table(directory, "metrics", ["entropy"])


@pytest.mark.parametrize("content, said", [("{", "is not JSON"), ('{"seed": "x"}', "is not the configuration of a run")])
def test_a_damaged_configuration_is_reported(directory, content, said):
    (directory / "config.json").write_text(content)
    with pytest.raises(RunError, match=f"config.json: {said}"):
        read_config(directory)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_lacks_is_not_written(partial, value):
    with pytest.raises(ValueError, match="JSON"):
        partial.write_json("summary.json", {"final": {"loss": value}})
    assert not partial.is_written


def test_a_failed_write_leaves_the_old_file_and_no_other(partial, monkeypatch):
    partial.write_json("state.json", {"step": 1})
    before = sorted(partial.path.iterdir())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"state.json: cannot be written \(No space left on device\)"):
        partial.write_json("state.json", {"step": 2})
    assert sorted(partial.path.iterdir()) == before and '"step": 1' in (partial.path / "state.json").read_text()


def test_a_claimed_run_is_not_given_to_another_process(root):
    with claim(root, "a") as ours:
        assert ours and Child(claimed, root).result() is False


def test_a_claim_ends_with_its_block(root):
    with claim(root, "a"):
        pass
    assert Child(claimed, root).result() is True


def test_the_claim_of_a_killed_process_is_free(root, tmp_path):
    child = Child(hold_forever, root, tmp_path / "held")
    while not (tmp_path / "held").exists():
        pass
    assert not claimed(root)
    child.kill()
    assert claimed(root)


def claimed(root):
    with claim(root, "a", wait=False) as ours:
        return ours


def hold_forever(root, sign):
    with claim(root, "a"):
        sign.touch()
        while True:
            pass


def partial_path(root):
    return root / f"{tiny().id}.partial"


STATES = {
    "list": [1],
    "number": 3,
    "no session": {"format": 3},
    "session of nothing": {"format": 3, "session": None, "origin": {}},
    "session without a step": {"format": 3, "session": {}, "origin": {}},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_checkpoint_of_another_shape_is_named_with_the_remedy(tmp_path, state):
    config = tiny()
    partial = PartialRun(open_root(tmp_path), config)
    torch.save(state, partial.path / "checkpoint.pt")
    with pytest.raises(RunError, match="checkpoint.pt: .*checkpoint.*; remove .* to start the run anew"):
        train(config, tmp_path, threads=1)


def test_a_checkpoint_of_another_run_of_the_same_shape_is_not_taken_up(tmp_path):
    one, other = tiny(seed=1), tiny(seed=2)
    with pytest.raises(KeyboardInterrupt):
        train(one, tmp_path, threads=1, checkpoint_seconds=0, progress=interrupt)
    partial = PartialRun(tmp_path, other)
    shutil.copy(tmp_path / f"{one.id}.partial" / "checkpoint.pt", partial.path)
    with pytest.raises(RunError, match=f"is the checkpoint of another run, '{one.id}'; remove .*{other.id}.partial"):
        train(other, tmp_path, threads=1)


def interrupt(step, total):
    if step == 3:
        raise KeyboardInterrupt


def test_a_run_that_only_wants_its_name_is_checked_before_it_gets_it(tmp_path):
    config = tiny()
    whole = train(config, tmp_path, threads=1)
    partial = whole.rename(tmp_path / f"{config.id}.partial")
    (partial / "metrics.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="partial: is damaged .metrics.parquet is truncated.*; remove it to start the run anew"):
        train(config, tmp_path, threads=1)
    assert partial.exists() and not whole.exists()


def test_a_link_in_the_place_of_an_unfinished_run_is_not_followed(tmp_path):
    config, elsewhere = tiny(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".precious.tmp").write_text("precious")
    root = open_root(tmp_path / "runs")
    (root / f"{config.id}.partial").symlink_to(elsewhere)
    with pytest.raises(RunError, match="partial: is a link to .*elsewhere, where this run would write; .*Remove the link"):
        train(config, root, threads=1)
    assert [path.name for path in elsewhere.iterdir()] == [".precious.tmp"]


# --- Which store a directory is, and damaged records ---------------------------------------------------------------


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
