"""Options as columns: what was given, what the registry fills in, and what labels stand for."""

import json

import numpy as np
import pandas as pd
import pytest

import synthetic_logs
from analysis import coupling, logs, options, variance
from fdfa_core.estimators import estimator_options


def frame(*estimators: tuple[str, dict]) -> pd.DataFrame:
    return pd.DataFrame({"method": [m for m, _ in estimators], "options": [json.dumps(o) for _, o in estimators]})


ROWS = frame(
    ("bp", {}),
    ("fg-a", {}),
    ("fg-a", {"site": "post", "tangents": 4}),
    ("fdfa", {"joint": False}),
    ("fdfa", {"joint": "cyclic", "feedback_lr": 0.1, "warmup": True}),
    ("fdfa", {"feedback_rule": "adam"}),
    ("dkp", {}),
    ("from-elsewhere", {"depth": [1, 2], "feedback_lr": 3}),
)


def test_defaults_are_those_of_the_registry_and_what_was_given_stands_before_them():
    found = options.expand(ROWS)
    assert found["option.site"].tolist() == [None, "pre", "post", "post", "post", "post", "post", None]
    assert found["option.joint"].tolist() == [None, True, True, False, "cyclic", True, None, None]
    np.testing.assert_equal(found["option.tangents"].to_numpy(), [np.nan, 1, 4, 1, 1, 1, np.nan, np.nan])
    assert found["option.depth"].tolist() == [None] * 7 + [(1, 2)]


def test_a_default_that_depends_on_another_option_is_the_one_in_force():
    np.testing.assert_equal(
        options.expand(ROWS)["option.feedback_lr"].to_numpy(), [np.nan, np.nan, np.nan, 1e-2, 0.1, 1e-4, 1e-4, 3]
    )


def test_alpha_is_the_rate_of_averaged_feedback_alone():
    np.testing.assert_equal(options.alpha(ROWS).to_numpy(), [np.nan] * 3 + [1e-2, 0.1] + [np.nan] * 3)


def test_rows_and_their_index_stay_and_expanding_twice_is_expanding_once():
    rows = ROWS.set_axis(list("hgfedcba")).assign(value=range(8))
    once = options.expand(rows)
    pd.testing.assert_frame_equal(once[["method", "options", "value"]], rows)
    pd.testing.assert_frame_equal(options.expand(once), once)


def test_columns_made_for_other_options_do_not_stay():
    found = options.relabelled(options.expand(ROWS).assign(estimator="x"), "bp")
    assert [c for c in found if c.startswith(options.PREFIX)] == ["option.checkpoint"]  # the only one that bp has
    assert not found["option.checkpoint"].any() and set(found["estimator"]) == {"bp"}


def test_an_option_that_nobody_has_is_a_column_without_values():
    assert options.column(ROWS, "nothing").isna().all() and options.numbers(ROWS, "nothing").isna().all()


def test_a_value_that_spells_the_default_out_is_at_the_default():
    rows = frame(("fg-a", {}), ("fg-a", {"site": "pre"}), ("fg-a", {"site": "post"}), ("fdfa", {"site": "post"}), ("bp", {}))
    assert options.at_default(rows, "site").tolist() == [True, True, False, True, True]
    assert options.at_default(options.expand(rows), "site", "tangents").tolist() == [True, True, False, True, True]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    experiments, root = synthetic_logs.write(tmp_path_factory.mktemp("logs"), {"convergence": synthetic_logs.METHODS})
    return logs.load(root, "convergence", profile="tiny", experiments=experiments)


def test_every_frame_of_logs_has_the_options_of_its_estimator(log):
    for name in ("runs", "metrics", "probes"):
        rows = getattr(log, name)
        fdfa = rows[(rows["estimator" if name == "probes" else "trained_with"]).isin(labels(log, "fdfa"))]
        assert len(fdfa) and set(fdfa["option.directions"]) == {estimator_options("fdfa")["directions"]}
        assert rows["option.directions"].isna().any()


def labels(log, method):
    return set(log.runs.loc[log.runs["method"] == method, "trained_with"])


def test_noise_of_the_data_has_no_options_but_those_of_bp(log):
    found = variance.data_noise(log.probes)
    assert set(found["method"]) == {"bp"} and [c for c in found if c.startswith(options.PREFIX)] == ["option.checkpoint"]


def test_labels_keep_what_they_stand_for_through_a_csv(tmp_path):
    label = "fdfa(feedback_lr=0.1, joint=False)"
    given = {"joint": False, "feedback_lr": 0.1}
    source = pd.DataFrame({"estimator": [label], "method": ["fdfa"], "options": [json.dumps(given)]})
    known = options.meanings([source, pd.DataFrame()])
    shown = options.described(pd.DataFrame({"estimator": ["bp", label], "component": ["nothing", f"`{label}` first"]}), known)
    shown.to_csv(tmp_path / "frame.csv", index=False)
    read = options.labels_of(pd.read_csv(tmp_path / "frame.csv", keep_default_na=False))
    assert read == {"bp": ("bp", {}), label: ("fdfa", given)}
    texts = options.labels_of(shown.drop(columns="estimator"))
    assert texts == {label: ("fdfa", given)}


# --- who is biased because samples are coupled -----------------------------------------------------------------------


def log_of(network, **options):
    """Logs of one run of FG-A under a label that says nothing, probed beside BP."""
    about = {"run": "r", "method": "fg-a", "options": json.dumps(options)}
    runs = pd.DataFrame([about | {"trained_with": "mine", "config": json.dumps({"network": network})}])
    probes = pd.DataFrame([about | {"estimator": "mine"}, about | {"estimator": "bp", "method": "bp", "options": "{}"}])
    none = pd.DataFrame()
    return logs.Logs(runs=runs, metrics=none, probes=probes, timing=none, feedback=none, theory=none)


@pytest.mark.parametrize(
    "network, options, biased",
    [
        ({"architecture": "fully_connected", "hidden": [8], "batch_norm": True}, {}, {"mine"}),
        ({"architecture": "fully_connected", "hidden": [8]}, {}, set()),
        ({"architecture": "convolutional"}, {}, {"mine"}),
        ({"architecture": "convolutional", "batch_norm": False}, {}, set()),
        ({"architecture": "fully_connected", "hidden": [8], "batch_norm": True}, {"slope": "batch"}, set()),
        ({"architecture": "from_elsewhere"}, {}, set()),
    ],
    ids=["given", "dense default", "convolutional default", "switched off", "slope of the batch", "unknown network"],
)
def test_a_slope_is_biased_where_samples_are_coupled_and_it_is_a_samples_own(network, options, biased):
    assert coupling.biased_slopes([log_of(network, **options)]) == biased


def test_marks_come_back_from_the_columns_that_hold_them():
    frame = pd.DataFrame({"estimator": ["mine", "bp"], "trained_with": ["bp", "bp"]})
    shown = coupling.marked(frame, {"mine"})
    assert coupling.labels_of(shown) == {"mine"} and "trained_with.biased_slope" not in shown
    assert coupling.labels_of(coupling.marked(frame, {"another"})) == set()
