"""Records of finished runs: what is copied, what is refused, and what a half copy leaves."""

import json
import os
import shutil
import subprocess

import pytest
from click.testing import CliRunner

import fdfa_cli
import recorded
from fdfa_core.errors import RunError
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import record as recording
from fdfa_core.runs.directory import is_complete
from fdfa_core.training import provenance


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    experiments, root = recorded.write(tmp_path_factory.mktemp("written"))
    return load_profile("tiny", experiments)["digits_fc"].runs(), root


@pytest.fixture
def made(written, tmp_path):
    """(runs, directory of runs) to change."""
    shutil.copytree(written[1], tmp_path / "runs")
    return written[0], tmp_path / "runs"


def rewrite(run, **changes):
    path = run / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_finished_runs_are_copied_whole(made, tmp_path):
    runs, root = made
    outcome = recording.record(runs, root, tmp_path / "record")
    assert outcome.copied == [run.id for run in runs]
    for name in ("config.json", "metrics.parquet", "probes.parquet", "timing.parquet", "provenance.json", "summary.json"):
        assert (tmp_path / "record" / runs[0].id / name).read_bytes() == (root / runs[0].id / name).read_bytes()


def test_raw_gradients_and_checkpoints_stay_out(made, tmp_path):
    runs, root = made
    (root / runs[0].id / "gradients").mkdir()
    (root / runs[0].id / "gradients" / "step=0.safetensors").write_bytes(b"large")
    (root / runs[0].id / "checkpoint.pt").write_bytes(b"large")
    recording.record(runs, root, tmp_path / "record")
    assert set(os.listdir(tmp_path / "record" / runs[0].id)) <= set(recording.FILES)


def test_recording_again_changes_nothing(made, tmp_path):
    runs, root = made
    recording.record(runs, root, tmp_path / "record")
    (root / runs[0].id / "summary.json").write_text('{"status": "made again"}')
    before = (tmp_path / "record" / runs[0].id / "summary.json").read_bytes()
    outcome = recording.record(runs, root, tmp_path / "record")
    assert (outcome.copied, len(outcome.present)) == ([], len(runs))
    assert (tmp_path / "record" / runs[0].id / "summary.json").read_bytes() == before


def test_unfinished_runs_are_counted_and_left_for_later(made, tmp_path):
    runs, root = made
    (root / runs[0].id).rename(root / f"{runs[0].id}.partial")
    outcome = recording.record(runs, root, tmp_path / "record")
    assert outcome.missing == [runs[0].id] and not is_complete(tmp_path / "record", runs[0].id)


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
    runs, root = made
    rewrite(root / runs[0].id, **changes)
    assert recording.record(runs, root, tmp_path / "record").refused == [runs[0].id]
    assert recording.record(runs, root, tmp_path / "record", allow_dirty=True).copied == [runs[0].id]


def test_a_run_under_a_wrong_name_is_an_error(made, tmp_path):
    runs, root = made
    shutil.copyfile(root / runs[1].id / "config.json", root / runs[0].id / "config.json")
    with pytest.raises(RunError, match=f"{runs[0].id}.*config.json"):
        recording.record(runs, root, tmp_path / "record")


def test_what_an_interrupted_copy_left_is_replaced(made, tmp_path):
    runs, root = made
    leftover = tmp_path / "record" / f"{runs[0].id}.partial"
    recording.record([], root, tmp_path / "record")
    leftover.mkdir()
    (leftover / "half").write_bytes(b"half")
    recording.record(runs, root, tmp_path / "record")
    assert is_complete(tmp_path / "record", runs[0].id) and not leftover.exists()


def test_a_full_disk_is_an_error_and_leaves_no_half_run(made, tmp_path, monkeypatch):
    runs, root = made

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="No space left"):
        recording.record(runs, root, tmp_path / "record")
    assert [name for name in os.listdir(tmp_path / "record") if not name.startswith(".")] == []


def test_command_records_a_file_and_says_how_much_there_is(made, tmp_path):
    root = made[1]
    (tmp_path / "digits_fc.toml").write_text(recorded.EXPERIMENTS["digits_fc"])
    arguments = ["record", str(tmp_path / "digits_fc.toml"), "--runs", str(root), "--out", str(tmp_path / "record")]
    result = CliRunner().invoke(fdfa_cli.main, arguments)
    assert result.exit_code == 0 and "digits_fc: 12 runs recorded, 0 were there already, 0 not finished" in result.output


def test_command_fails_where_a_run_is_refused(made, tmp_path):
    runs, root = made
    rewrite(root / runs[0].id, code={"commit": recorded.COMMIT, "dirty": True})
    (tmp_path / "digits_fc.toml").write_text(recorded.EXPERIMENTS["digits_fc"])
    arguments = ["record", str(tmp_path / "digits_fc.toml"), "--runs", str(root), "--out", str(tmp_path / "record")]
    result = CliRunner().invoke(fdfa_cli.main, arguments)
    assert result.exit_code == 1 and "1 refused" in result.output and "--allow-dirty" in result.output


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
