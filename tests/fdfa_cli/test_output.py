from pathlib import Path

import pytest


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
