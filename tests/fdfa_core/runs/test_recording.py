"""The record of finished runs: what is recorded, what is refused, what a killed writer leaves, and equal bytes."""

import json
import os
import shutil
import subprocess

import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import fdfa_cli
import recorded
import synthetic_logs
from analysis import logs
from fdfa_core.errors import RunError
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import recording
from fdfa_core.runs.record import Record
from fdfa_core.runs.store import open_store
from fdfa_core.training import provenance

TABLES = ("metrics", "probes", "timing")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    experiments, root = recorded.write(tmp_path_factory.mktemp("written"))
    return load_profile("tiny", experiments)["digits_fc"], root


@pytest.fixture
def made(written, tmp_path):
    """(experiment, directory of runs) to change."""
    shutil.copytree(written[1], tmp_path / "runs")
    return written[0], tmp_path / "runs"


def ids(experiment):
    return [run.id for run in experiment.runs()]


def rewrite(run, **changes):
    path = run / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def move_out(root, run, place):
    place.mkdir(exist_ok=True)
    (root / run).rename(place / run)


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_finished_runs_are_recorded_whole(made, tmp_path):
    experiment, root = made
    assert recording.record(experiment, root, tmp_path / "record").copied == ids(experiment)
    store, source = open_store(tmp_path / "record"), open_store(root)
    for run in ids(experiment):
        for part in ("config", "summary", "provenance"):
            assert getattr(store, part)(run) == getattr(source, part)(run)
    for name in TABLES:
        pd.testing.assert_frame_equal(store.table(name, ids(experiment)), source.table(name, ids(experiment)))


def test_logs_of_a_record_are_those_of_the_runs(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "record")
    before, after = logs.read(root, experiment), logs.read(tmp_path / "record", experiment)
    for name in ("runs", *TABLES, "feedback", "theory"):
        pd.testing.assert_frame_equal(getattr(after, name), getattr(before, name))


def test_raw_gradients_and_checkpoints_stay_out(made, tmp_path):
    experiment, root = made
    (root / ids(experiment)[0] / "gradients").mkdir()
    (root / ids(experiment)[0] / "gradients" / "step=0.safetensors").write_bytes(b"large")
    (root / ids(experiment)[0] / "checkpoint.pt").write_bytes(b"large")
    recording.record(experiment, root, tmp_path / "record")
    assert set(files(tmp_path / "record" / "digits_fc")) == {"runs.parquet", "metrics.parquet", "probes.parquet"}


def test_runs_and_their_rows_stand_in_the_order_of_the_experiment(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "record")
    table = pq.read_table(tmp_path / "record" / "digits_fc" / "metrics.parquet")
    assert list(dict.fromkeys(table["run"].to_pylist())) == ids(experiment) == Record(tmp_path / "record").ids()


def test_some_runs_of_a_record_are_read_in_the_order_asked_for(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "record")
    some = [ids(experiment)[i] for i in (7, 2, 4)]
    found = open_store(tmp_path / "record").table("metrics", some)
    pd.testing.assert_frame_equal(found, open_store(root).table("metrics", some))


def test_equal_records_are_equal_bytes_however_they_came_about(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "at once")
    late = ids(experiment)[3:5]
    for run in late:
        move_out(root, run, tmp_path / "late")
    recording.record(experiment, root, tmp_path / "in parts")
    recording.record(experiment, tmp_path / "late", tmp_path / "in parts")
    assert files(tmp_path / "at once" / "digits_fc") == files(tmp_path / "in parts" / "digits_fc")


def test_recording_again_changes_nothing(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "record")
    (root / ids(experiment)[0] / "summary.json").write_text('{"status": "made again"}')
    before = files(tmp_path / "record" / "digits_fc")
    outcome = recording.record(experiment, root, tmp_path / "record")
    assert (outcome.copied, len(outcome.present)) == ([], len(ids(experiment)))
    assert files(tmp_path / "record" / "digits_fc") == before


def test_closed_forms_outlast_the_recording_of_more_runs(made, tmp_path):
    experiment, root = made
    late = ids(experiment)[5]
    move_out(root, late, tmp_path / "late")
    recording.record(experiment, root, tmp_path / "record")
    forms = pd.DataFrame({"run": [ids(experiment)[0]], "question": ["q"], "code": ["c"], "variance": [2.0]})
    recording.write_theory(tmp_path / "record", "digits_fc", forms)
    recording.record(experiment, tmp_path / "late", tmp_path / "record")
    pd.testing.assert_frame_equal(open_store(tmp_path / "record").theory(ids(experiment)), forms)


# --- what is not -----------------------------------------------------------------------------------------------------


def test_unfinished_runs_are_counted_and_left_for_later(made, tmp_path):
    experiment, root = made
    first = ids(experiment)[0]
    (root / first).rename(root / f"{first}.partial")
    outcome = recording.record(experiment, root, tmp_path / "record")
    assert outcome.missing == [first] and not open_store(tmp_path / "record").holds(first)


@pytest.mark.parametrize(
    "changes",
    [
        {"code": {"commit": recorded.COMMIT, "dirty": True}},
        {"code": {"commit": None, "dirty": None}},
        {"code": {"commit": recorded.COMMIT, "dirty": None}},
        {"resumed": [{"step": 3, "code": {"commit": recorded.COMMIT, "dirty": True}}]},
    ],
    ids=["uncommitted", "unknown commit", "unknown changes", "resumed with uncommitted code"],
)
def test_runs_of_uncommitted_code_are_refused_unless_told(made, tmp_path, changes):
    experiment, root = made
    first = ids(experiment)[0]
    rewrite(root / first, **changes)
    assert recording.record(experiment, root, tmp_path / "record").refused == [first]
    assert recording.record(experiment, root, tmp_path / "record", allow_dirty=True).copied == [first]


def test_a_run_under_a_wrong_name_is_an_error(made, tmp_path):
    experiment, root = made
    first, second = ids(experiment)[:2]
    shutil.copyfile(root / second / "config.json", root / first / "config.json")
    with pytest.raises(RunError, match=f"{first}.*config.json"):
        recording.record(experiment, root, tmp_path / "record")


def test_all_damaged_runs_are_named_and_nothing_is_written(made, tmp_path):
    experiment, root = made
    first, second = ids(experiment)[:2]
    (root / first / "timing.parquet").unlink()
    (root / second / "summary.json").unlink()
    with pytest.raises(RunError, match=f"{first}/timing.parquet.*{second}: summary.json is missing"):
        recording.record(experiment, root, tmp_path / "record")
    assert not (tmp_path / "record" / "digits_fc").exists()


def test_a_directory_of_runs_is_no_place_for_a_record(made):
    with pytest.raises(RunError, match="is a directory of runs; accepted: a record"):
        recording.record(made[0], made[1], made[1])


def test_an_experiments_folder_is_no_place_for_a_record(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "record")
    with pytest.raises(RunError, match="folder of one recorded experiment; accepted: the directory above"):
        recording.record(experiment, root, tmp_path / "record" / "digits_fc")


# --- what a killed writer leaves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("renames", [0, 1], ids=["before the old one makes way", "before the new one takes its place"])
def test_a_killed_writer_leaves_the_old_record(made, tmp_path, monkeypatch, renames):
    experiment, root = made
    late = ids(experiment)[0]
    move_out(root, late, tmp_path / "late")
    recording.record(experiment, root, tmp_path / "record")
    done, rename = [], os.rename

    def dying(source, target):
        if len(done) == renames:
            os._exit(9)
        done.append(target)
        rename(source, target)

    if (child := os.fork()) == 0:
        os.rename = dying
        recording.record(experiment, tmp_path / "late", tmp_path / "record")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert Record(tmp_path / "record").ids() == ids(experiment)[1:]
    assert len(logs.read(tmp_path / "record", experiment, partial=True).runs) == len(ids(experiment)) - 1
    assert recording.record(experiment, tmp_path / "late", tmp_path / "record").copied == [late]
    assert [path.name for path in (tmp_path / "record").iterdir() if path.name != recording.LOCK] == ["digits_fc"]


def test_a_full_disk_is_an_error_and_leaves_the_old_record(made, tmp_path, monkeypatch):
    experiment, root = made
    move_out(root, ids(experiment)[0], tmp_path / "late")
    recording.record(experiment, root, tmp_path / "record")
    before = files(tmp_path / "record" / "digits_fc")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        recording.record(experiment, tmp_path / "late", tmp_path / "record")
    assert files(tmp_path / "record" / "digits_fc") == before
    assert [name for name in os.listdir(tmp_path / "record") if not name.startswith(".")] == ["digits_fc"]
    assert not list((tmp_path / "record").glob(".*.tmp"))


# --- runs made elsewhere ---------------------------------------------------------------------------------------------


def test_runs_made_elsewhere_are_added_and_equal_ones_skipped(made, tmp_path):
    experiment, root = made
    shutil.copytree(root, tmp_path / "elsewhere")
    for run in ids(experiment)[:2]:
        shutil.rmtree(root / run)
    rewrite(tmp_path / "elsewhere" / ids(experiment)[3], started="2020-01-01T00:00:00+00:00")  # another time: equal results
    recording.record(experiment, root, tmp_path / "record")
    outcome = recording.merge(experiment, tmp_path / "elsewhere", tmp_path / "record")
    assert outcome.copied == ids(experiment)[:2] and outcome.present == ids(experiment)[2:] and not outcome.different


def test_a_record_is_merged_as_runs_are(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "theirs")
    assert recording.merge(experiment, tmp_path / "theirs", tmp_path / "ours").copied == ids(experiment)
    assert files(tmp_path / "theirs" / "digits_fc") == files(tmp_path / "ours" / "digits_fc")


def test_a_run_that_differs_from_the_recorded_one_is_named_and_the_record_stays(made, tmp_path):
    experiment, root = made
    recording.record(experiment, root, tmp_path / "record")
    before = files(tmp_path / "record" / "digits_fc")
    synthetic_logs.rewrite(root / ids(experiment)[2], "metrics", lambda f: f.assign(train_loss=f["train_loss"] * 1.01))
    assert recording.merge(experiment, root, tmp_path / "record").different == [ids(experiment)[2]]
    assert files(tmp_path / "record" / "digits_fc") == before


def test_damaged_runs_made_elsewhere_are_named_and_the_others_added(made, tmp_path):
    experiment, root = made
    first = ids(experiment)[0]
    path = root / first / "probes.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    outcome = recording.merge(experiment, root, tmp_path / "record")
    assert outcome.copied == ids(experiment)[1:] and f"{first}/probes.parquet" in outcome.damaged[first]


def test_a_directory_to_merge_that_is_not_there_is_refused(made, tmp_path):
    with pytest.raises(RunError, match="nowhere: is no directory; accepted: a directory of runs, or a record, to be merged"):
        recording.merge(made[0], tmp_path / "nowhere", tmp_path / "record")
    assert not (tmp_path / "record").exists()


def test_runs_of_no_experiment_are_foreign(made):
    experiment, root = made
    assert set(recording.foreign(root, [experiment])) == set(open_store(root).ids()) - set(ids(experiment)) != set()


# --- the command -----------------------------------------------------------------------------------------------------


def command(tmp_path, *arguments):
    (tmp_path / "digits_fc.toml").write_text(recorded.EXPERIMENTS["digits_fc"])
    arguments = ["record", tmp_path / "digits_fc.toml", "--out", tmp_path / "record", *arguments]
    return CliRunner().invoke(fdfa_cli.main, [str(argument) for argument in arguments])


def test_command_records_a_file_and_says_how_much_there_is(made, tmp_path):
    result = command(tmp_path, "--runs", made[1])
    assert result.exit_code == 0 and "digits_fc: 12 runs recorded, 0 were there already, 0 not finished" in result.output


def test_command_fails_where_a_run_is_refused(made, tmp_path):
    experiment, root = made
    rewrite(root / ids(experiment)[0], code={"commit": recorded.COMMIT, "dirty": True})
    result = command(tmp_path, "--runs", root)
    assert result.exit_code == 1 and "1 refused" in result.output and "--allow-dirty" in result.output


def test_command_names_every_run_that_it_could_not_merge(made, tmp_path):
    experiment, root = made
    first, second, *_ = ids(experiment)
    assert command(tmp_path, "--runs", root).exit_code == 0
    synthetic_logs.rewrite(root / first, "metrics", lambda f: f.assign(train_loss=f["train_loss"] * 1.01))
    (root / second / "metrics.parquet").unlink()
    result = command(tmp_path, "--merge", root)
    foreign = recording.foreign(root, [experiment])[0]
    assert result.exit_code == 1
    assert f"differs from the recorded run, which stays: {root / first}" in result.output
    assert f"damaged, not recorded: {root / second}" in result.output
    assert f"belongs to none of these experiments: {root / foreign}" in result.output


# --- code ------------------------------------------------------------------------------------------------------------


def test_modules_never_committed_make_code_dirty_and_a_foreign_repository_is_no_commit(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def code():
        provenance._code.cache_clear()
        return provenance._code()

    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "other.py").write_text("")
    git("init")
    git("add", "other.py")
    git("commit", "-m", "one")
    monkeypatch.setattr(provenance.fdfa_core, "__file__", str(tmp_path / "__init__.py"))
    assert code() == {"commit": None, "dirty": None}
    git("add", "__init__.py")
    git("commit", "-m", "two")
    assert code()["dirty"] is False and len(code()["commit"]) == 40
    (tmp_path / "estimators").mkdir()
    (tmp_path / "estimators" / "new.py").write_text("")
    assert code()["dirty"] is True
    monkeypatch.undo()
    provenance._code.cache_clear()
