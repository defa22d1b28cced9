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
