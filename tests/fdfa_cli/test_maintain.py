import pandas as pd
import pytest


def test_verify_names_a_place_that_cannot_be_written_to_before_it_computes(fdfa, file, monkeypatch):
    monkeypatch.setattr("verification.run", lambda *_, **__: pytest.fail("it computed"))
    result = fdfa("verify", "--out", file)
    assert result.exit_code == 2 and "experiment.toml: cannot be made" in result.stderr


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_readme_names_a_file_that_cannot_be_read(fdfa, tmp_path, content):
    if content:
        (tmp_path / "page.md").write_bytes(content)
    result = fdfa("readme", "--file", "page.md")
    assert result.exit_code == 2 and "--file: got 'page.md'" in result.stderr


@pytest.mark.parametrize("content", ["no mark", "<!-- end of results -->\n<!-- results: written by `make readme` -->"])
def test_readme_names_the_file_and_the_mark_that_was_lost(fdfa, tmp_path, content):
    (tmp_path / "page.md").write_text(content)
    result = fdfa("readme", "--file", "page.md")
    assert result.exit_code == 2 and "--file: got 'page.md'; accepted: a file with the lines" in result.stderr
    assert (tmp_path / "page.md").read_text() == content


def test_previews_of_an_unknown_profile_are_refused_as_such(fdfa):
    result = fdfa("previews", "--profile", "quik")
    assert result.exit_code == 2 and "profile: got 'quik'" in result.stderr and "Did you mean 'quick'?" in result.stderr


@pytest.mark.parametrize("honest", [True, False])
def test_audit_makes_recorded_runs_anew_and_names_one_that_was_changed(fdfa, file, trained, tmp_path, monkeypatch, honest):
    monkeypatch.setattr("fdfa_core.paths.RESULTS", tmp_path / "results")
    assert fdfa("record", file, "--profile", "mine", "--allow-dirty").exit_code == 0
    table = tmp_path / "results" / "mine" / "experiment" / "metrics.parquet"
    if not honest:
        frame = pd.read_parquet(table)
        frame.loc[frame["step"] == 0, "train_loss"] += 1e-2
        frame.to_parquet(table, index=False)
    result = fdfa("audit", file, "--profile", "mine", "--sample", "1", "--jobs", "1")
    assert result.exit_code == (0 if honest else 1), result.output
    assert ("1 equal in every bit; 0" if honest else "first: metrics, row 0, train_loss: recorded") in result.output
