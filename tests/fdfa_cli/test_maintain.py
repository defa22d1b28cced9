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
