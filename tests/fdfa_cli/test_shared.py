import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fdfa_cli
from fdfa_cli import shared
from fdfa_core.errors import FdfaError
from places import ROOT


def test_help_lists_the_commands(fdfa):
    lines = fdfa("--help").output
    assert all(name in lines for name in ("analyse", "data", "figures", "list", "sweep", "train"))


@pytest.mark.parametrize("command", ["analyse", "data", "figures", "list", "sweep", "train"])
def test_every_command_has_help(fdfa, command):
    assert "Usage: " in fdfa(command, "--help").output


def test_help_imports_nothing_heavy():
    lines = [line for path in Path(fdfa_cli.__file__).parent.glob("*.py") for line in path.read_text().splitlines()]
    top_level = [line for line in lines if line.startswith(("import ", "from "))]
    assert not [line for line in top_level if any(name in line for name in ("torch", "fdfa_core", "analysis", "pandas"))]


# (arguments, what the one line on standard error must say)
REFUSED = {
    "no such file": (["train", "nowhere.toml"], "got 'nowhere.toml'; accepted: a readable TOML file"),
    "unknown profile": (["sweep", "--profile", "quik"], "profile: got 'quik'; accepted: one of"),
    "unknown profile of figures": (["figures", "--profile", "quik"], "Did you mean 'quick'?"),
    "unknown data set": (["data", "mnits"], "got 'mnits'; accepted: one of"),
    "unknown run": (["train", "experiment.toml", "--run", "zzz"], "--run: got 'zzz'; accepted: one of"),
    "missing logs": (["analyse", "experiment.toml"], "is missing or unfinished (2 of 2 runs of experiment 'experiment')"),
    "unknown device": (["train", "experiment.toml", "--device", "gpu"], "device: got 'gpu'; accepted: one of auto, cpu"),
    "data that are missing": (["data", "mnist", "--no-download"], "mnist"),
}


@pytest.mark.parametrize("arguments, said", REFUSED.values(), ids=REFUSED)
def test_an_error_is_one_line_and_exit_code_two(fdfa, file, arguments, said):
    result = fdfa(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and said in result.stderr


def test_debug_shows_where_an_error_comes_from(fdfa):
    assert isinstance(fdfa("--debug", "sweep", "--profile", "quik").exception, FdfaError)


def test_help_and_lists_load_no_torch():
    """Torch takes seconds, and neither needs it."""
    for arguments in (["--help"], ["list"], ["data", "--list"], ["sweep", "--help"]):
        code = f"import sys, fdfa_cli; fdfa_cli.main({arguments}, standalone_mode=False); sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr or 'torch was loaded'}"


def test_help_shows_whole_sentences_in_eighty_columns(fdfa):
    lines = fdfa("--help").output.splitlines()
    assert all(len(line) <= 80 for line in lines) and not [line for line in lines if line.endswith(("...", "…"))]
    start = lines.index("Commands:") + 1
    listed = dict(line.split(maxsplit=1) for line in lines[start : lines.index("", start)])
    assert listed.keys() == fdfa_cli.main.commands.keys()
    assert not [text for text in listed.values() if not (text[0].isupper() and text.endswith("."))]


def test_help_says_how_to_complete_commands_in_one_line_that_works(fdfa):
    assert '  eval "$(_FDFA_COMPLETE=bash_source fdfa)"' in [line[2:] for line in fdfa("--help").output.splitlines()]
    code = "import fdfa_cli; fdfa_cli.main(prog_name='fdfa')"
    environment = os.environ | {"_FDFA_COMPLETE": "zsh_source"}  # click asks bash for its version first
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "compdef" in done.stdout and "_FDFA_COMPLETE" in done.stdout


@pytest.fixture
def warned(monkeypatch):
    """Let `fdfa data` warn, in two lines."""
    monkeypatch.setattr("fdfa_core.data.load", lambda *_: warnings.warn("odd\n  file", stacklevel=1))


def test_a_warning_is_one_line(fdfa, warned):
    assert "Warning: odd file\n" in fdfa("data", "digits").stderr


def test_with_debug_a_warning_says_where_it_comes_from(fdfa, warned):
    with pytest.warns(UserWarning, match="odd"):
        fdfa("--debug", "data", "digits")


def test_warnings_are_shown_as_before_after_a_command(fdfa):
    before = warnings.showwarning
    fdfa("data", "--list")
    assert warnings.showwarning is before


def test_sigterm_has_its_own_effect_again_after_a_command(fdfa):
    before = signal.getsignal(signal.SIGTERM)
    fdfa("data", "--list")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (shared.Terminated, 143)])
def test_a_command_without_runs_says_that_it_starts_anew(fdfa, monkeypatch, error, code):
    monkeypatch.setattr("fdfa_core.data.available_datasets", interrupt(error))
    result = fdfa("data", "--list")
    assert result.exit_code == code and result.stderr == "Interrupted. The same command starts anew.\n"


def interrupt(error):
    def function(*_, **__):
        raise error

    return function


@pytest.mark.parametrize("closed", ["2>&-", "2>&- >&-", "<&- 2>&- >&-"])
def test_closed_standard_streams_change_no_exit_code(closed):
    command = f"{sys.executable} -m fdfa_cli sweep --profile quik {closed}"
    assert subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 2


def test_what_a_terminal_cannot_show_is_escaped():
    code = "from fdfa_cli.shared import prepare_streams; prepare_streams(); print('b² ≤')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout == "b² \\u2264\n".encode("latin-1")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_one_line(unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fdfa_cli", "data", "--list"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("Error: No space left") and "Traceback" not in done.stderr


# --- Output


def test_recorded_results_are_drawn_without_training(fdfa, tmp_path, monkeypatch):
    (tmp_path / "results" / "quick").mkdir(parents=True)
    asked = []
    monkeypatch.setattr("figures.render.render", lambda profile, root, out, **_: asked.append(root) or [])
    assert fdfa("figures").exit_code == 0 and asked == [Path("results/quick")]


@pytest.mark.parametrize("place", ["results/quick", "results/other", "results/other/../quick", "linked"])
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_nothing_is_trained_among_recorded_results(fdfa, tmp_path, monkeypatch, place, absolute):
    (tmp_path / "results" / "other").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "results" / "other")
    monkeypatch.setattr("fdfa_cli.output.carry_out_all", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("figures.render.render", lambda *_, **__: [])
    result = fdfa("figures", "--runs", tmp_path / place if absolute else place, "--train")
    assert result.exit_code == 0, result.output


def test_missing_runs_are_trained_elsewhere(fdfa, tmp_path, monkeypatch):
    (tmp_path / "results" / "quick").mkdir(parents=True)
    swept = []
    monkeypatch.setattr("fdfa_cli.output.carry_out_all", lambda experiments, root, *_, **__: swept.append(root))
    monkeypatch.setattr("figures.render.render", lambda *_, **__: [])
    assert fdfa("figures", "--runs", tmp_path / "results-of-mine").exit_code == 0
    assert swept == [tmp_path / "results-of-mine"]


def test_the_record_is_that_of_the_code_and_not_of_the_working_directory(fdfa, tmp_path, monkeypatch):
    swept = []
    monkeypatch.setattr("fdfa_cli.output.carry_out_all", lambda experiments, root, *_, **__: swept.append(root))
    monkeypatch.setattr("figures.render.render", lambda *_, **__: [])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert fdfa("figures", "--runs", "results/quick").exit_code == 0 and swept == [Path("results/quick")]
    assert fdfa("figures", "--runs", tmp_path / "results" / "quick").exit_code == 0 and len(swept) == 1


def test_figures_without_training_report_missing_runs(fdfa, tmp_path):
    result = fdfa("figures", "--profile", "smoke", "--no-train", "--only", "convergence")
    assert result.exit_code == 2 and "smoke/convergence.toml" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--only", "convergense"], "one of accuracy, "), (["--out", "experiment.toml"], "experiment.toml: is a file")],
)
def test_figures_refuses_what_it_could_not_draw_before_it_trains(fdfa, file, monkeypatch, arguments, said):
    monkeypatch.setattr("fdfa_core.sweeps.sweep.sweep", lambda *_, **__: pytest.fail("it trained"))
    result = fdfa("figures", "--profile", "smoke", *arguments)
    assert result.exit_code == 2 and said in result.stderr, result.output


def test_figures_trains_what_the_figures_asked_for_need(fdfa, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fdfa_cli.output.carry_out_all", lambda experiments, *_, **__: asked.extend(e.name for e in experiments)
    )
    fdfa("figures", "--profile", "smoke", "--only", "variance_vs_width")
    assert asked == ["width"]
