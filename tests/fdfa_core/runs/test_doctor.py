"""The doctor finds what is damaged, names what mends it, and changes nothing."""

import pandas as pd
import pytest

import fdfa_cli
import synthetic_logs
from fdfa_core.errors import RunError
from fdfa_core.runs.directory import open_root
from fdfa_core.runs.doctor import examine
from tiny import tiny


@pytest.fixture
def root(tmp_path):
    root = open_root(tmp_path / "runs")
    for seed in range(2):
        synthetic_logs.write_run(root, tiny(seed=seed))
    return root


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_sound_runs_are_counted(root):
    report = examine(root)
    assert sorted(report.sound) == sorted(tiny(seed=seed).id for seed in range(2)) and not report.damaged


def lost(run):
    (run / "metrics.parquet").unlink()


def changed(run):
    frame = pd.read_parquet(run / "metrics.parquet")
    frame.loc[1, "test_accuracy"] = 1.5
    frame.to_parquet(run / "metrics.parquet")


DAMAGES = {
    "a file lost": (lost, "metrics.parquet is missing", "fdfa sweep FILE --runs"),
    "a number that cannot be": (changed, "test_accuracy is 1.5 at step", "mv "),
}


@pytest.mark.parametrize("damage, said, remedy", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_with_what_mends_it_and_nothing_is_changed(root, damage, said, remedy):
    run = root / tiny(seed=0).id
    damage(run)
    before = contents(root)
    (finding,) = examine(root).damaged
    assert finding.place == str(run) and said in finding.fault and finding.remedy.startswith(remedy)
    assert contents(root) == before


def test_unfinished_runs_are_no_damage_and_links_in_their_place_are(root, tmp_path):
    (root / "0123456789abcdef.partial").mkdir()
    assert examine(root).unfinished == ["0123456789abcdef.partial"] and not examine(root).damaged
    (root / "0123456789abcde0.partial").symlink_to(tmp_path)
    assert "is a link to" in examine(root).damaged[0].fault


def test_what_is_no_directory_of_runs_is_refused(tmp_path):
    with pytest.raises(RunError, match="nowhere: is no directory"):
        examine(tmp_path / "nowhere")


def test_the_command_exits_with_one_where_something_is_damaged(root):
    from click.testing import CliRunner

    assert CliRunner().invoke(fdfa_cli.main, ["doctor", str(root)]).exit_code == 0
    lost(root / tiny(seed=0).id)
    result = CliRunner().invoke(fdfa_cli.main, ["doctor", str(root)])
    assert result.exit_code == 1 and "mend it with: fdfa sweep" in result.output and "1 are damaged" in result.output
