"""The picture of the grids: from trials and finals with a known best rate to points, rings and files."""

import functools

import numpy as np
import pandas as pd
import pytest

import synthetic_logs
from analysis.tuning import ROLES
from fdfa_core.experiments.loading import load_profile
from figures import plan, render

HEAD = """
role = "{role}"
[data]
name = "digits"
evaluate_on = "validation"
[network]
hidden = [8, 8]
[training]
steps = 5
"""
TRIALS = """
[[cases]]
estimator = { name = "bp" }
[[cases]]
estimator = { name = "fdfa", feedback_rule = "adam" }
grid = { "estimator.feedback_lr" = [1e-4, 1e-3] }
[grid]
"training.learning_rate" = [1e-4, 1e-3, 1e-2]
seed = [100]
"""
FINALS = """
[[cases]]
estimator = { name = "fdfa", feedback_rule = "adam", feedback_lr = 1e-3 }
training = { learning_rate = 1e-3 }
[[cases]]
estimator = { name = "fdfa", feedback_rule = "adam", feedback_lr = 1e-3 }
training = { learning_rate = 1e-2 }
[grid]
seed = [100, 101]
"""


def accuracy(run):
    """Highest at a rate of 1e-3 and a feedback rate of 1e-3; the seed 101 is 0.02 better."""
    off = abs(np.log10(run.training.learning_rate / 1e-3)) + 2 * (run.estimator.options.get("feedback_lr") == 1e-4)
    return 0.9 - 0.05 * off + 0.02 * (run.seed == 101)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("grids")
    folder = root / "experiments" / "tuning"
    folder.mkdir(parents=True)
    for role, text in zip(ROLES, (TRIALS, FINALS), strict=True):
        (folder / f"digits_{role}.toml").write_text(HEAD.format(role=role) + text)
    planned = {run.id: run for experiment in load_profile("tuning", folder.parent).values() for run in experiment.runs()}
    for run in planned.values():  # the two rounds are equally long here, and so share runs
        synthetic_logs.write_run(root / "runs", run)
        change = functools.partial(pd.DataFrame.assign, test_accuracy=accuracy(run))
        synthetic_logs.rewrite(root / "runs" / run.id, "metrics", change)
    return root


@pytest.fixture(scope="module")
def frame(place):
    files = render.render("tuning", place / "runs", place / "out", experiments=place / "experiments")
    assert sorted(file.name for file in files) == [f"rate_robustness.{ending}" for ending in ("csv", "pdf", "png")]
    return pd.read_csv(place / "out" / "rate_robustness.csv", keep_default_na=False, na_values=["nan"])


def test_a_line_has_the_best_second_setting_at_every_rate(frame):
    line = frame[(frame["round"] == 1) & (frame["method"] == "fdfa")]
    assert line["learning_rate"].tolist() == [1e-4, 1e-3, 1e-2] and set(line["value"]) == {1e-3}
    assert line["accuracy"].to_numpy() == pytest.approx([0.85, 0.9, 0.85])
    assert len(frame[(frame["round"] == 1) & (frame["method"] == "bp")]) == 3


def test_finals_have_their_standard_error_and_the_choice(frame):
    """Seeds at m and m + 0.02 have the standard error 0.01; the rate 1e-2 is 0.05 below, so that 1e-3 is chosen."""
    finals = frame[frame["round"] == 2].set_index("learning_rate")
    assert finals["accuracy"].to_dict() == pytest.approx({1e-3: 0.91, 1e-2: 0.86}) and (finals["seeds"] == 2).all()
    assert finals["se"].to_numpy() == pytest.approx([0.01, 0.01])
    assert finals["chosen"].to_dict() == {1e-3: True, 1e-2: False}
    assert np.isfinite(frame.select_dtypes("number").to_numpy()).all()


def test_the_picture_draws_each_method_by_its_own_look_and_one_ring_a_choice(frame):
    from figures import rate_robustness, style

    (ax,) = rate_robustness.draw(frame).axes
    rings = [line for line in ax.get_lines() if line.get_markeredgewidth() == rate_robustness.RING["markeredgewidth"]]
    assert [line.get_xdata().tolist() for line in rings if len(line.get_xdata())] == [[1e-3]]
    lines = [line for line in ax.get_lines() if line.get_linestyle() != "None"]
    looks = [style.look("", "bp"), style.look("", "fdfa", {"feedback_rule": "adam"})]
    assert [line.get_color() for line in lines] == [look.color for look in looks]


def test_grids_have_no_other_figure_and_other_profiles_not_this_one(place):
    jobs, missing = plan.plan("tuning", place / "runs", experiments=place / "experiments")
    assert [job.name for job in jobs] == ["rate_robustness"] and not missing
    assert "rate_robustness" not in {job.name for job in plan.plan("smoke", place / "runs")[0]}
