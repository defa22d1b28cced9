import pytest
from click.testing import CliRunner

import fdfa_cli
from tiny import TOML


@pytest.fixture
def fdfa(tmp_path, monkeypatch):
    """The command, in an empty working directory, with a record of its own (results/ there)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fdfa_core.paths.RESULTS", tmp_path / "results")
    return lambda *arguments: CliRunner().invoke(fdfa_cli.main, [str(a) for a in arguments])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def trained(fdfa, file, tmp_path):
    assert fdfa("train", file).exit_code == 0
    return tmp_path / "runs"
