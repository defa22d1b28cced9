"""Who is biased because batch normalisation couples the samples: told by configuration and options."""

import json

import pandas as pd
import pytest

from analysis import coupling, logs


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
