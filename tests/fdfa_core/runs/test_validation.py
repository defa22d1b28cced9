"""Every kind of damage to a run is an error that names the file and what is accepted; a sound run passes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

import fdfa_cli
import synthetic_logs
from fdfa_core.errors import RunError
from fdfa_core.experiments.loading import load_profile
from fdfa_core.runs import schema, seal, validation
from fdfa_core.runs.directory import open_root
from fdfa_core.runs.doctor import examine
from fdfa_core.runs.store import open_store
from tiny import tiny

FEEDBACK = synthetic_logs.METHODS.replace("[[cases]]", "feedback = true\n[[cases]]", 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The directory of a sound run with all four tables, which no test may change."""
    return written(tmp_path_factory.mktemp("sound"))[0]


@pytest.fixture
def run(sound, tmp_path):
    """A copy of the directory of the sound run."""
    return Path(shutil.copytree(sound, tmp_path / "runs" / sound.name))


def written(place, *, diverged=False):
    experiments, root = synthetic_logs.write(place, {"convergence": FEEDBACK}, diverged=[("bp", 0)] if diverged else [])
    config = load_profile("tiny", experiments)["convergence"].runs()[0]
    steps, blocks = np.repeat(synthetic_logs.STEPS[: 2 if diverged else 3], 2), np.tile([0, 1], 2 if diverged else 3)
    rows = {"step": steps, "epoch": steps / 5, "estimator": "fdfa", "method": "fdfa", "options": "{}", "block": blocks}
    rows |= {"replicates": config.probe.replicates} | dict.fromkeys(schema.FEEDBACK_COLUMNS, 0.5)
    pd.DataFrame(rows).to_parquet(root / config.id / "feedback.parquet")
    return root / config.id, config


def check(run):
    config = open_store(run.parent).config(run.name)
    return validation.checked(open_store(run.parent), [config])


def change(name, **columns):
    """Return a damage: other values in one row of a table (or in all, where the value is a function of the column)."""

    def damage(run):
        path = run / f"{name}.parquet"
        frame = pd.read_parquet(path)
        for column, value in columns.items():
            if callable(value):
                frame[column] = value(frame[column])
            else:
                frame.loc[1, column] = value
        frame.to_parquet(path)

    return damage


def replace(name, function):
    def damage(run):
        function(pd.read_parquet(run / f"{name}.parquet")).to_parquet(run / f"{name}.parquet", index=False)

    return damage


def edit(name, **changes):
    """Return a damage: other entries in a JSON file."""

    def damage(run):
        content = json.loads((run / f"{name}.json").read_text())
        (run / f"{name}.json").write_text(json.dumps(content | changes))

    return damage


def without(name, key):
    def damage(run):
        content = json.loads((run / f"{name}.json").read_text())
        content.pop(key)
        (run / f"{name}.json").write_text(json.dumps(content))

    return damage


def longer_final(run):
    content = json.loads((run / "summary.json").read_text())
    content["final"]["test_accuracy"] = 0.5
    (run / "summary.json").write_text(json.dumps(content))


# (damage, what the error says)
DAMAGES = {
    "accuracy above one": (change("metrics", test_accuracy=1.5), "test_accuracy is 1.5 at step 1; accepted: a share"),
    "accuracy that is NaN": (change("metrics", train_accuracy=np.nan), "train_accuracy is nan at step 1"),
    "loss that is not finite": (change("metrics", train_loss=np.inf), "train_loss is inf at step 1; accepted: a finite number"),
    "batch loss that is NaN": (change("metrics", batch_loss=np.nan), "batch_loss is nan at step 1"),
    "rate of zero": (change("metrics", learning_rate=0.0), "learning_rate is 0 at step 1; accepted: a positive"),
    "negative step": (change("metrics", step=-1), "step is -1"),
    "steps out of order": (replace("metrics", lambda f: f.iloc[[0, 2, 1, 3]]), "step is 1 at step 1; accepted: steps in"),
    "step twice": (replace("metrics", lambda f: f.iloc[[0, 1, 1, 2, 3]]), "accepted: one row for each of step"),
    "first row lost": (replace("metrics", lambda f: f.iloc[1:]), "accepted: 0 in the first row, before training"),
    "last row lost": (replace("metrics", lambda f: f.iloc[:-1]), "its steps are not those of the metrics"),
    "row of timing lost": (replace("timing", lambda f: f.iloc[[0, 2, 3]]), "timing.parquet: its steps are not those"),
    "clock that runs backwards": (change("timing", training_seconds=9.0), "seconds since the start, which never fall"),
    "negative seconds": (change("timing", evaluation_seconds=-1.0), "evaluation_seconds is -1 at step 1"),
    "metrics changed": (change("metrics", train_loss=lambda c: c * 2), "its last row is not `final` in the summary"),
    "summary changed": (longer_final, "its last row is not `final` in the summary"),
    "column of another type": (
        replace("metrics", lambda f: f.astype({"step": float})), "column 'step' is of the type double; accepted: int64"
    ),
    "missing text": (change("probes", method=None), "column 'method' has missing values"),
    "column lost": (replace("probes", lambda f: f.drop(columns="bias2_se")), "probes.parquet: lacks the column 'bias2_se'"),
    "column too many": (replace("timing", lambda f: f.assign(price=1.0)), "has the column 'price', which no timing"),
    "cosine above one": (change("probes", cosine_mean=1.01), "probes.parquet: cosine_mean is 1.01"),
    "negative variance": (change("probes", variance=-1.0), "variance is -1 at step"),
    "negative norm": (change("probes", reference_norm=-1.0), "reference_norm is -1 at step"),
    "other number of draws": (change("probes", draws=7), "draws is 7 at step 0; accepted: the replicates"),
    "unknown level": (change("probes", level="galaxy"), "level is 'galaxy' at step 0; accepted: one of"),
    "other sampling": (change("probes", sampling="fresh_batches"), "sampling is 'fresh_batches' at step 0"),
    "no components": (change("probes", size=0), "size is 0 at step 0"),
    "single reference batch": (change("probes", reference_batches=1), "reference_batches is 1 at step 0"),
    "row of a probe lost": (replace("probes", lambda f: f.iloc[:-1]), "equally many rows of every estimator"),
    "row of a probe twice": (replace("probes", lambda f: f.iloc[[0, 0, 1, 2]]), "one row for each of step, estimator"),
    "estimator of a probe lost": (change("probes", estimator="other"), "rows of every probed estimator"),
    "other number of replicates": (change("feedback", replicates=7), "feedback.parquet: replicates is 7"),
    "negative error": (change("feedback", error2=-1.0), "error2 is -1 at step 0"),
    "status unknown": (edit("summary", status="done"), "summary.json: is not the summary of a run .status"),
    "step of divergence of a finished run": (edit("summary", diverged_step=3), "diverged_step is 3 although status is"),
    "summary of other steps": (edit("summary", steps=4), "ends at step 5; accepted: 4, as in the summary"),
    "summary of a foreign kind": (edit("summary", final={"loss": 1.0}), "final has the keys loss, not those of the metrics"),
    "provenance without code": (without("provenance", "code"), "provenance.json: is not the provenance of a run .code"),
    "provenance of another seed": (edit("provenance", seed=5), "its provenance has the seed 5; accepted: 0"),
    "provenance of other data": (
        edit("provenance", data={"name": "mnist", "sha256": "", "notes": []}),
        "its provenance has the data.name 'mnist'; accepted: 'digits'",
    ),
}  # fmt: skip


def test_a_sound_run_passes(run):
    assert set(check(run).tables) == {"metrics", "probes", "timing", "feedback"} and validation.damage(run) == ""


def test_a_sound_run_that_diverged_passes(tmp_path):
    assert check(written(tmp_path, diverged=True)[0]).summaries


@pytest.mark.parametrize("damage, said", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(run, damage, said):
    damage(run)
    with pytest.raises(RunError, match=said) as error:
        check(run)
    assert run.name in str(error.value)


def test_fewer_steps_than_planned_are_named(run):
    for name in ("metrics", "timing"):
        synthetic_logs.rewrite(run, name, lambda frame: frame.iloc[:-1])
    edit("summary", steps=4)(run)
    with pytest.raises(RunError, match="its summary has 4 steps; accepted: 5, as in its configuration"):
        check(run)


def test_a_run_without_rows_has_to_have_diverged(run):
    for name in ("metrics", "timing"):
        replace(name, lambda frame: frame.iloc[:0])(run)
    edit("summary", final={})(run)
    with pytest.raises(RunError, match="metrics.parquet: has no rows"):
        check(run)
    edit("summary", status="diverged", diverged_step=0, steps=0)(run)
    assert len(check(run).tables["metrics"]) == 0


# --- what was altered within what is plausible, which the seal of a run shows -------------------------------------------

PLAUSIBLE = {
    "metrics": change("metrics", test_accuracy=0.7),
    "probes": change("probes", bias2=0.25),
    "feedback": change("feedback", error2=0.25),
    "timing": change("timing", training_seconds=0.11),
    "summary": edit("summary", parameters=7),
    "provenance": edit("provenance", code={"commit": "f" * 40, "dirty": False}),
}


@pytest.fixture
def sealed_run(run):
    synthetic_logs.seal_run(run)
    return run


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_what_was_altered_within_what_is_plausible_is_named(sealed_run, name):
    check(sealed_run)
    PLAUSIBLE[name](sealed_run)
    with pytest.raises(RunError, match=f"{name}.*was altered after the run wrote it") as error:
        check(sealed_run)
    assert sealed_run.name in str(error.value)
    assert name in validation.damage(sealed_run) and "was altered" in validation.damage(sealed_run)
    assert "was altered" in examine(sealed_run.parent).damaged[0].fault


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_a_run_without_a_seal_is_read_as_before(run, name):
    PLAUSIBLE[name](run)
    assert check(run).summaries and validation.damage(run) == ""


def test_a_seal_under_another_name_is_none(sealed_run):
    content = (sealed_run / "provenance.json").read_text()
    (sealed_run / "provenance.json").write_text(content.replace('"seal"', '"seam"'))
    assert "(seam: got " in validation.damage(sealed_run) and "accepted: no such key" in validation.damage(sealed_run)


def test_altered_raw_gradients_are_not_read(run):
    (run / "gradients").mkdir()
    path = run / "gradients" / "step=3.safetensors"
    save_file({"bp/1.bias": np.arange(3.0)}, path)
    synthetic_logs.seal_run(run)
    assert open_store(run.parent).gradients(run.name, 3)["bp/1.bias"].tolist() == [0, 1, 2]
    save_file({"bp/1.bias": np.arange(1.0, 4.0)}, path)
    with pytest.raises(RunError, match="step=3.safetensors: was altered"):
        open_store(run.parent).gradients(run.name, 3)
    assert "step=3.safetensors: was altered" in examine(run.parent).damaged[0].fault


def test_the_seal_is_of_values_and_not_of_how_a_table_holds_them(run):
    table = validation.conform(pq.read_table(run / "probes.parquet"), "probes", run)
    pieces = pa.concat_tables([table.slice(0, 5), table.slice(5)])
    without = table.set_column(table.column_names.index("own_norm"), "own_norm", pa.nulls(len(table), "float64"))
    hashes = {seal.table_sha256(each) for each in (table, pieces, without, without.drop_columns("own_norm"))}
    assert len(hashes) == 1 and seal.table_sha256(table.slice(1)) not in hashes
    assert seal.table_sha256(table.slice(3, 2)) == seal.table_sha256(pieces.slice(3, 2))


@pytest.mark.parametrize("lost", [schema.ACTIVATION_COLUMNS, schema.LATER_COLUMNS])
def test_a_table_from_before_a_column_was_added_reads_as_not_a_number(run, lost):
    old = pq.read_table(run / "probes.parquet")
    table = old.drop_columns([column for column in schema.LATER_COLUMNS if column in old.column_names])
    for column in schema.LATER_COLUMNS:
        table = table.append_column(column, pa.repeat(0.5, len(table)))
    pq.write_table(table.drop_columns(list(lost)), run / "probes.parquet")
    frame = check(run).tables["probes"]
    assert frame[list(lost)].isna().all(axis=None)
    assert (frame[[column for column in schema.LATER_COLUMNS if column not in lost]] == 0.5).all(axis=None)


def test_a_table_that_lost_one_of_the_columns_added_together_is_refused(run):
    table = validation.conform(pq.read_table(run / "probes.parquet"), "probes", run)
    pq.write_table(table.drop_columns("own_norm"), run / "probes.parquet")
    with pytest.raises(RunError, match="lacks the column 'own_norm' of a probes table"):
        check(run)


def test_a_negative_size_of_activations_is_refused(run):
    table = pd.read_parquet(run / "probes.parquet").assign(activation_rms=-0.5)
    table.to_parquet(run / "probes.parquet")
    with pytest.raises(RunError, match="activation_rms is -0.5 .*not negative"):
        check(run)


# --- what a sweep sees without reading a table -----------------------------------------------------------------------

SEEN = {
    "summary lost": (lambda run: (run / "summary.json").unlink(), "summary.json is missing"),
    "provenance lost": (lambda run: (run / "provenance.json").unlink(), "provenance.json is missing"),
    "configuration lost": (lambda run: (run / "config.json").unlink(), "config.json is missing"),
    "table lost": (lambda run: (run / "feedback.parquet").unlink(), "feedback.parquet is missing"),
    "table truncated": (
        lambda run: (run / "probes.parquet").write_bytes((run / "probes.parquet").read_bytes()[:-9]),
        "probes.parquet is truncated",
    ),
    "table empty": (lambda run: (run / "timing.parquet").write_bytes(b""), "timing.parquet is truncated"),
    "configuration of another run": (edit("config", seed=77), "its config.json is that of another run"),
    "summary truncated": (lambda run: (run / "summary.json").write_text('{"status"'), "that should be JSON cannot be read"),
    "summary of a foreign kind": (lambda run: (run / "summary.json").write_text("[]"), "summary.json: is not the summary"),
}


@pytest.mark.parametrize("damage, said", SEEN.values(), ids=SEEN)
def test_damage_is_seen_without_reading_a_table(run, damage, said):
    damage(run)
    assert said in validation.damage(run)


@pytest.mark.parametrize("reader", [validation.damage, check], ids=["seen", "checked"])
def test_a_link_to_another_run_is_damage(run, reader):
    other = Path(shutil.copytree(run, run.with_name("0123456789ab")))
    run.rename(run.with_name("elsewhere"))
    run.symlink_to(other)
    try:
        said = reader(run)
    except RunError as error:
        said = str(error)
    assert f"is a link to {other.name}, another run" in said


def test_a_link_to_the_same_run_elsewhere_is_none(run, tmp_path):
    (tmp_path / "large disk").mkdir()
    run.rename(tmp_path / "large disk" / run.name)
    run.symlink_to(tmp_path / "large disk" / run.name)
    assert validation.damage(run) == "" and check(run).summaries


# --- what the doctor says about directories and records --------------------------------------------------------------


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


FINDINGS = {
    "a file lost": (lost, "metrics.parquet is missing", "fdfa sweep FILE --runs"),
    "a number that cannot be": (changed, "test_accuracy is 1.5 at step", "mv "),
}


@pytest.mark.parametrize("damage, said, remedy", FINDINGS.values(), ids=FINDINGS)
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
