"""Figures and tables from small logs: what is in the files, when they are made again, and how they fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import pandas as pd
import pytest

import synthetic_logs
from analysis import benches
from fdfa_core.errors import FdfaError, InvalidInput, RunError, UnknownName
from figures import _labels, render, style
from places import ROOT
from tiny import Child

FIGURES = (
    "alignment_angles",
    "bias_variance",
    "convergence",
    "depth_profile",
    "momentum_tradeoff",
    "variance_during_training",
    "variance_vs_width",
)
NAMES = (*FIGURES, "accuracy")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """(experiments, runs, out) with everything rendered; not to be changed."""
    place = tmp_path_factory.mktemp("rendered")
    experiments, root = synthetic_logs.write(place, synthetic_logs.EXPERIMENTS, diverged=[("fg-w", 2)])
    render.render("tiny", root, place / "out", NAMES, experiments=experiments)
    return experiments, root, place / "out"


@pytest.fixture
def place(rendered, tmp_path):
    """Return a copy of `rendered` to change, without what convergence does not need."""
    experiments, root, out = rendered
    for source, name in ((experiments, "experiments"), (root, "runs"), (out, "out")):
        shutil.copytree(source, tmp_path / name)
    return tmp_path / "experiments", tmp_path / "runs", tmp_path / "out"


def again(place, only=("convergence",)):
    """Render once more; returns the names that were drawn."""
    experiments, root, out = place
    drawn = []

    def report(name, new):
        drawn.extend([name] if new else [])

    render.render("tiny", root, out, only, experiments=experiments, report=report)
    return drawn


def run_of(place, experiment="convergence"):
    experiments, root, _ = place
    return root / render.log_frames.find(experiment, "tiny", experiments).runs()[0].id


# --- what is in the files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_csv_is_not_empty_and_finite(rendered, name):
    frame = pd.read_csv(rendered[2] / f"{name}.csv")
    assert len(frame) and np.isfinite(frame.select_dtypes("number").to_numpy()).all()


@pytest.mark.parametrize("name", FIGURES)
def test_picture_is_a_png_of_readable_size(rendered, name):
    from PIL import Image

    with Image.open(rendered[2] / f"{name}.png") as image:
        assert image.format == "PNG" and image.width >= 1000


@pytest.mark.parametrize("name", FIGURES)
def test_pdf_embeds_its_fonts_as_text(rendered, name):
    content = (rendered[2] / f"{name}.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"/FontFile2" in content


def test_estimators_of_a_figure_are_those_of_the_logs(rendered):
    frame = pd.read_csv(rendered[2] / "variance_vs_width.csv")
    assert set(frame["estimator"]) == {"bp", "fg-w", "fdfa(feedback_lr=0.1, warmup=True)"}


def test_measured_slope_of_a_forward_gradient_is_one(rendered):
    """Its noise-to-signal ratio is the number of components plus one, here proportional to the width."""
    frame = pd.read_csv(rendered[2] / "variance_vs_width.csv").query("estimator == 'fg-w'")
    assert (frame["slope_low"] < 1).all() and (frame["slope_high"] > 1).all()


def test_noise_along_training_is_in_units_of_the_batch_gradients_own(rendered):
    """FG-W's variance is n + 1 = 25 times ‖τ‖², and that of the batch gradient was logged as 0.3 ‖τ‖²."""
    frame = pd.read_csv(rendered[2] / "variance_during_training.csv")
    assert (frame.query("estimator == 'bp'")["estimate"] - 1).abs().max() < 1e-12
    assert frame.query("estimator == 'fg-w'")["estimate"].to_numpy() == pytest.approx(25 / 0.3, rel=0.4)


def test_vanished_references_are_flagged_and_have_no_angle(rendered):
    frame = pd.read_csv(rendered[2] / "alignment_angles.csv").query("block == 1 and step == 4 and estimator == 'dfa'")
    assert frame["quantity"].tolist() == ["vanished"]  # neither an angle nor a stable reference


def test_bp_has_angle_zero_to_its_batch_and_not_to_the_reference(rendered):
    """The reference was logged as the batch's gradient and noise of 0.1 a component: atan 0.1 = 5.7°."""
    frame = pd.read_csv(rendered[2] / "alignment_angles.csv").query("estimator == 'bp'").set_index("quantity")
    assert frame.loc["angle", "high"].max() < 1e-4
    assert frame.loc["angle_reference", "estimate"].mean() == pytest.approx(5.7, abs=1)


def test_angles_to_a_reference_that_is_mostly_noise_are_marked(place):
    """With 8 batches the threshold is a cosine of 1/9 between two; one seed of DFA is below it at one step."""

    def unstable(frame):
        frame.loc[(frame["step"] == 1) & (frame["block"] == 0), "reference_stability"] = 0.1
        return frame

    run = next(run for run in render.log_frames.find("convergence", "tiny", place[0]).runs() if run.estimator.name == "dfa")
    synthetic_logs.rewrite(place[1] / run.id, "probes", unstable)
    again(place, ["alignment_angles"])
    frame = pd.read_csv(place[2] / "alignment_angles.csv").query("quantity in ['angle', 'angle_reference']")
    marked = frame[~frame["stable"]]
    assert set(zip(marked["estimator"], marked["block"], marked["step"], strict=True)) == {("dfa", 0, 1)}
    assert set(marked["quantity"]) == {"angle", "angle_reference"}
    assert marked["stability"].to_numpy() == pytest.approx((0.6 + 0.6 + 0.1) / 3)
    texts = [text.get_text() for text in render.discover()["alignment_angles"].draw(frame).legends[0].get_texts()]
    assert any("∇ is not stable" in text.replace("\n", " ") for text in texts)


def test_a_depth_profile_shows_how_activations_grew_where_that_was_measured(place):
    """Older logs have no such rows; the accuracies are those of the table."""
    experiments, root, out = place
    old, accuracies = (pd.read_csv(out / f"{name}.csv") for name in ("depth_profile", "accuracy"))
    assert set(old["quantity"]) == {"cosine", "norm", "share", "accuracy"}
    found = old[old["quantity"] == "accuracy"].set_index("trained_with")["estimate"]
    assert found.to_dict() == pytest.approx(accuracies.set_index("trained_with")["accuracy"].to_dict())

    def measured(frame):
        size = (1.0 + frame["step"]) * 3.0 ** frame["block"]
        return frame.assign(activation_rms=size.where(frame["role"] == "hidden"))

    for run in (path for path in root.iterdir() if (path / "probes.parquet").exists()):
        synthetic_logs.rewrite(run, "probes", measured)
    assert again(place, ["depth_profile"]) == ["depth_profile"]
    new = pd.read_csv(out / "depth_profile.csv")
    assert np.isfinite(new.select_dtypes("number").to_numpy()).all()
    last = new[new["trained_with"] == "bp"].set_index(["quantity", "block"])["estimate"]
    assert last["growth"].to_dict() == pytest.approx({0: 5, 1: 5}) and last["amplification"].to_dict() == pytest.approx({1: 3})


def test_bias_of_fdfa_is_seen_in_the_block_that_has_one(rendered):
    frame = pd.read_csv(rendered[2] / "momentum_tradeoff.csv").query("quantity == 'bias2' and alpha == 0.01")
    assert frame.set_index("block")["estimate"].to_dict() == {0: pytest.approx(0.25, abs=0.06), 1: pytest.approx(0, abs=0.02)}


def test_diverged_runs_are_in_the_convergence_figure(rendered):
    frame = pd.read_csv(rendered[2] / "convergence.csv").query("kind == 'diverged'")
    assert set(zip(frame["trained_with"], frame["seed"], strict=True)) == {("fg-w", 2)}


def test_table_is_written_for_readers_and_for_latex(rendered):
    markdown, latex = ((rendered[2] / f"accuracy.{ending}").read_text() for ending in ("md", "tex"))
    assert "2 (1 diverged)" in markdown and r"$\pm$" in latex and "±" not in latex


def test_what_latex_and_html_would_misread_is_escaped():
    shown = pd.DataFrame({"a & b": ["50 % of x_1", "−1 ≤ α < 2"], "": ["supported", "✗ refuted\n`b_c` [1, 2]"]})
    latex, page = render._latex(shown, "10 % of mnist_fc", "t"), render._html(shown)
    assert r"\caption{10 \% of mnist\_fc}" in latex and r"a \& b & " in latex and r"50 \% of x\_1 & supported" in latex
    assert r"$-$1 $\le$ $\alpha$ < 2" in latex and r"\label{tab:t}" in latex and r"\begin{tabular}{ll}" in latex
    assert "a &amp; b" in page and ">−1 ≤ α &lt; 2<" in page and ">supported<" in page
    assert 'refuted">✗ refuted</span><br><span class="short"><code>b_c</code> [1,\N{NO-BREAK SPACE}2]<' in page
    assert r"& $\times$ refuted; b\_c [1, 2] \\" in latex and "✗ refuted<br>`b_c` [1, 2]" in render.markdown(shown)


def test_previews_are_small_pictures_from_the_csv_files(rendered, tmp_path):
    paths = render.previews(rendered[2], tmp_path / "images")
    assert [p.stem for p in paths] == sorted(render.PREVIEWS) and all(p.stat().st_size < 150_000 for p in paths)


def test_a_single_seed_is_drawn_without_interval(tmp_path):
    text = synthetic_logs.METHODS.replace("seed = [0, 1, 2]", "seed = [0]")
    experiments, root = synthetic_logs.write(tmp_path, {"convergence": text})
    render.render("tiny", root, tmp_path / "out", ["accuracy", "convergence"], experiments=experiments)
    assert set(pd.read_csv(tmp_path / "out" / "convergence.csv")["interval"]) == {"none"}


def bench(place, name="cost_vs_alignment", **columns):
    """Write what a benchmark of two estimators would record."""
    rows = {
        "estimator": ["bp", "fg-a(tangents=8)", "frozen"],
        "method": ["bp", "fg-a", "frozen"],
        "milliseconds": [0.5, 1.0, 0.2],
        "low": [0.4, 0.9, 0.1],
        "high": [0.6, 1.1, 0.3],
        "mean_cosine": [1.0, 0.2, np.nan],
        "cosine_se": [0.0, 0.01, np.nan],
        "relative_error": [1e-12, 30.0, 1.0],
        "draws": 32,
        "steps": 100,
        "threads": 1,
        "machine": "an abacus",
    }
    place.mkdir(exist_ok=True)
    pd.DataFrame(rows | columns).to_csv(place / f"{name}.csv", index=False)


def no_runs(place):
    """(experiments, runs, out) with an experiment of which nothing has been run."""
    (place / "experiments" / "tiny").mkdir(parents=True)
    (place / "experiments" / "tiny" / "convergence.toml").write_text(synthetic_logs.METHODS)
    return place / "experiments", place / "runs", place / "out"


def test_a_figure_of_cost_is_drawn_from_the_recorded_benchmark_and_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(benches, "RESULTS", tmp_path / "bench")
    bench(tmp_path / "bench")
    assert again(no_runs(tmp_path), ["cost_vs_alignment"]) == ["cost_vs_alignment"]
    frame = pd.read_csv(tmp_path / "out" / "cost_vs_alignment.csv").set_index("estimator")
    assert list(frame.index) == ["bp", "fg-a(tangents=8)"]  # frozen blocks have no gradient, hence no angle
    assert frame.loc["fg-a(tangents=8)", ["low", "high"]].tolist() == pytest.approx([0.2 - 0.0196, 0.2 + 0.0196], abs=1e-5)


def test_a_new_measurement_redraws_a_figure_of_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(benches, "RESULTS", tmp_path / "bench")
    bench(tmp_path / "bench")
    here = no_runs(tmp_path)
    first, second = again(here, ["cost_vs_alignment"]), again(here, ["cost_vs_alignment"])
    bench(tmp_path / "bench", milliseconds=[0.5, 1.2, 0.2])
    assert (first, second, again(here, ["cost_vs_alignment"])) == (["cost_vs_alignment"], [], ["cost_vs_alignment"])


def test_a_benchmark_that_is_not_there_is_an_error_that_says_how_to_make_it(place, monkeypatch):
    monkeypatch.setattr(benches, "RESULTS", place[2] / "nowhere")
    with pytest.raises(RunError, match="'cost_scaling' needs .*cost_scaling.csv, which `make bench` writes"):
        again(place, ["cost_scaling"])


def test_a_benchmark_that_is_not_there_leaves_its_figures_out_where_all_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(benches, "RESULTS", tmp_path / "nowhere")
    jobs, missing = render.plan("smoke", tmp_path)
    assert set(missing) == {"cost_scaling", "cost_vs_alignment"} and len(jobs) > 10
    assert "cost_vs_alignment.csv, which `make bench` writes" in missing["cost_vs_alignment"]


@pytest.mark.parametrize("content", ["", "estimator\n", "estimator,threads\nbp,1\n"], ids=["empty", "no rows", "no machine"])
def test_a_benchmark_that_cannot_be_used_is_an_error_that_names_the_file(tmp_path, monkeypatch, content):
    monkeypatch.setattr(benches, "RESULTS", tmp_path)
    (tmp_path / "cost_scaling.csv").write_text(content)
    with pytest.raises(RunError, match="cost_scaling.csv"):
        benches.read("cost_scaling")


def test_recorded_benchmarks_feed_the_figures_of_cost():
    for name, module in render.discover().items():
        if hasattr(module, "BENCH"):
            frame = module.compute({name: benches.read(module.BENCH)})
            assert np.isfinite(frame.select_dtypes("number").to_numpy()).all() and module.draw(frame).axes


def test_a_figure_says_that_fg_a_is_biased_under_batch_normalisation_and_only_there(tmp_path, rendered):
    said = "FG-A (post), FG-A (pre): each sample's own slope, biased under batch normalisation"
    text = synthetic_logs.TRAJECTORY.replace("hidden = [8, 8]", "hidden = [8, 8]\nbatch_norm = true")
    experiments, root = synthetic_logs.write(tmp_path, {"trajectory": text})
    render.render("tiny", root, tmp_path / "out", ["variance_during_training"], experiments=experiments)
    for out, expected in ((tmp_path / "out", True), (rendered[2], False)):
        frame = pd.read_csv(out / "variance_during_training.csv")
        note = render.discover()["variance_during_training"].draw(frame).legends[0].get_title().get_text()
        assert (said in note.replace("\n", " ")) == expected


# --- which a profile has ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_a_profile_that_is_run_whole_has_the_experiments_of_all_its_figures(profile, tmp_path):
    jobs, missing = render.plan(profile, tmp_path)
    meant = {name for name, module in render.discover().items() if profile in getattr(module, "PROFILES", {profile})}
    assert {job.name for job in jobs} == meant and not missing


def test_a_figure_of_another_profile_is_unknown(place):
    with pytest.raises(UnknownName, match="released_code"):
        again(place, ["released_code"])


# --- when they are made again ----------------------------------------------------------------------------------------


def test_nothing_is_drawn_twice(place):
    assert again(place, NAMES) == []


def test_a_changed_log_redraws_what_it_feeds_and_nothing_else(place):
    synthetic_logs.rewrite(run_of(place), "metrics", lambda frame: frame.assign(train_loss=frame["train_loss"] * 1.01))
    assert again(place, ["accuracy", "convergence", "momentum_tradeoff"]) == ["accuracy", "convergence"]


def test_a_changed_module_of_the_analysis_redraws_what_imports_it(tmp_path):
    for package in ("analysis", "figures"):
        shutil.copytree(ROOT / package, tmp_path / package)
    modules = {name: ModuleType(f"figures.{name}") for name in ("convergence", "momentum_tradeoff")}
    before = {name: render._sources(module, tmp_path) for name, module in modules.items()}
    with open(tmp_path / "analysis" / "bias.py", "a") as file:
        file.write("# changed\n")
    assert [name for name in modules if render._sources(modules[name], tmp_path) != before[name]] == ["momentum_tradeoff"]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"half a picture")], ids=["deleted", "altered"])
def test_a_lost_or_altered_file_is_made_again(place, change):
    change(place[2] / "convergence.png")
    assert again(place) == ["convergence"]


def test_equal_logs_give_equal_bytes_in_another_process(rendered, tmp_path):
    """In a process of its own: another hash seed, another user's matplotlibrc."""
    experiments, root, out = rendered
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: yellow\n")
    call = "render('tiny', *sys.argv[1:3], ['convergence'], experiments=sys.argv[3])"
    code = f"import sys; from figures.render import render; {call}"
    environment = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "SOURCE_DATE_EPOCH": "0"}
    arguments = [sys.executable, "-c", code, root, tmp_path / "out", experiments]
    subprocess.run(arguments, check=True, env=environment, cwd=ROOT)
    for ending in ("png", "pdf", "csv"):
        assert (tmp_path / "out" / f"convergence.{ending}").read_bytes() == (out / f"convergence.{ending}").read_bytes()


def test_figures_drawn_side_by_side_have_the_same_bytes_and_say_what_is_wrong(place, rendered, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "LEAST", 1)
    experiments, root, _ = place
    drawn = []

    def draw(out):
        told = {"experiments": experiments, "report": lambda *told: drawn.append(told)}
        return render.render("tiny", root, tmp_path / out, ("accuracy", "convergence"), processes=2, **told)

    for path in draw("side by side"):
        assert path.read_bytes() == (rendered[2] / path.name).read_bytes()
    assert drawn == [("accuracy", True), ("convergence", True)]
    path = root / run_of(place) / "metrics.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunError, match=path.parent.name):
        draw("damaged")
    with pytest.raises(InvalidInput, match="processes: got 0; accepted: a positive integer, or None"):
        render.render("tiny", root, tmp_path / "by none", ("accuracy",), processes=0, experiments=experiments)


def test_two_that_draw_for_the_first_time_at_once_both_end_with_whole_files(place, rendered, tmp_path):
    experiments, root, _ = place
    out = tmp_path / "for the first time"
    drawing = [Child(render.render, "tiny", root, out, ["convergence"], experiments=experiments) for _ in range(2)]
    written = {f"convergence.{ending}" for ending in ("png", "pdf", "csv")}
    assert [{path.name for path in child.result()} for child in drawing] == [written, written]
    for path in out.glob("convergence.*"):
        assert path.read_bytes() == (rendered[2] / path.name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [render.MARKER, ".stamps", *sorted(written)]


def test_many_that_open_a_directory_for_the_first_time_at_once_all_may_write_to_it(tmp_path):
    def open_and_write(out, name):
        (render.open_directory(out) / name).write_text("a figure")

    for attempt in range(10):
        opening = [Child(open_and_write, tmp_path / str(attempt), f"{i}.png") for i in range(4)]
        assert [child.result() for child in opening] == [None] * 4


# --- how they fail ---------------------------------------------------------------------------------------------------


def test_a_missing_experiment_is_an_error_where_its_figure_is_asked_for_and_is_named_otherwise(place):
    (place[0] / "tiny" / "momentum.toml").unlink()
    with pytest.raises(RunError, match="figure 'momentum_tradeoff' needs experiment 'momentum'"):
        again(place, NAMES)
    jobs, missing = render.plan("tiny", place[1], experiments=place[0])
    assert "momentum_tradeoff" not in {job.name for job in jobs} and "convergence" in {job.name for job in jobs}
    assert "needs experiment 'momentum', which profile 'tiny' does not have" in missing["momentum_tradeoff"]


def test_a_missing_run_is_an_error_that_says_how_to_make_it(place):
    shutil.rmtree(run_of(place))
    with pytest.raises(RunError, match="fdfa sweep .*tiny/.*toml"):
        again(place)


def test_a_truncated_log_is_an_error_and_leaves_the_picture(place):
    path, before = run_of(place) / "metrics.parquet", (place[2] / "convergence.png").read_bytes()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match="metrics.parquet.*truncated"):
        again(place)
    assert (place[2] / "convergence.png").read_bytes() == before


def test_an_unknown_figure_is_named_with_the_known_ones(place):
    with pytest.raises(UnknownName, match="convergence_curve.*variance_vs_width"):
        again(place, ["convergence_curve"])


def test_an_unknown_profile_is_named_with_the_known_ones(place):
    with pytest.raises(UnknownName, match="profile: got 'huge'.*tiny"):
        render.render("huge", place[1], place[2], NAMES, experiments=place[0])


def test_a_directory_of_other_files_is_not_written_to(place, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "convergence.png").write_bytes(b"mine")
    with pytest.raises(RunError, match="thesis.*convergence.png"):
        again((*place[:2], tmp_path / "thesis"))
    assert os.listdir(tmp_path / "thesis") == ["convergence.png"]


def test_a_file_in_the_place_of_the_directory_is_an_error(place, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(RunError, match="is a file"):
        again((*place[:2], tmp_path / "taken"))


def test_a_directory_that_cannot_be_written_to_is_an_error(place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who can write anywhere
    with pytest.raises(RunError, match="no permission"):
        again(place)


def test_a_full_disk_is_an_error_and_leaves_no_half_file(place, monkeypatch):
    (place[2] / "convergence.csv").unlink()
    before = sorted(os.listdir(place[2]))

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="convergence.csv.*No space left"):
        again(place)
    assert sorted(os.listdir(place[2])) == before


def test_a_figure_without_rows_is_an_error_that_names_it(place, monkeypatch):
    monkeypatch.setattr(render.discover()["convergence"], "compute", lambda logs: pd.DataFrame({"a": []}))
    (place[2] / "convergence.csv").unlink()
    with pytest.raises(FdfaError, match="figure 'convergence': nothing to show"):
        again(place)


def test_previews_of_what_was_not_rendered_are_an_error(tmp_path):
    with pytest.raises(RunError, match="render the figures first"):
        render.previews(tmp_path, tmp_path / "images")


# --- style -----------------------------------------------------------------------------------------------------------


def test_drawing_leaves_matplotlibs_settings_as_they_were(rendered):
    before = dict(matplotlib.rcParams)
    render.discover()["convergence"].draw(pd.read_csv(rendered[2] / "convergence.csv"))
    assert dict(matplotlib.rcParams) == before


def test_no_two_methods_of_the_field_look_alike():
    looks = [style.look(label) for label in style._METHODS]
    assert len({look.color for look in looks}) == len({(look.marker, str(look.linestyle)) for look in looks}) == len(looks)


def test_alpha_shades_run_from_light_to_dark():
    def lightness(alpha):
        return sum(matplotlib.colors.to_rgb(style.look("any", "fdfa", {"feedback_lr": alpha}).color))

    shades = [lightness(a) for a in (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)]
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == len(shades)


def test_sites_of_one_method_are_told_apart():
    pre, post = (style.look("any", "fg-a", {"site": site}) for site in ("pre", "post"))
    assert (pre.name, post.name) == ("FG-A (pre)", "FG-A (post)") and pre.hollow != post.hollow


def test_a_method_from_elsewhere_has_a_look_of_its_own():
    assert style.look("my-method") == style.look("my-method") and style.look("my-method").name == "my-method"


def test_legend_order_is_bp_first_and_fdfa_from_fast_to_slow():
    labels = ["zz", "fdfa(feedback_lr=0.01)", "fg-a", "fdfa(feedback_lr=1.0)", "bp"]
    rates = {label: ("fdfa", {"feedback_lr": rate}) for label, rate in ((labels[1], 0.01), (labels[3], 1.0))}
    with _labels.reading(rates):
        assert style.ordered(labels) == ["bp", "fg-a", "fdfa(feedback_lr=1.0)", "fdfa(feedback_lr=0.01)", "zz"]


def test_stamps_hold_no_machine_path(rendered):
    stamps = list((rendered[2] / ".stamps").iterdir())
    assert stamps and all("/" not in json.dumps(json.loads(stamp.read_text())) for stamp in stamps)


def test_a_leftover_of_its_own_does_not_close_a_directory_of_figures(tmp_path):
    (tmp_path / f".{render.MARKER}.123.tmp").write_text("half")
    assert render.open_directory(tmp_path) == tmp_path and (tmp_path / render.MARKER).is_file()
