"""The light verification passes and notices every planted mistake; every cell of the support matrix is as declared."""

import itertools
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import verification
from analysis.theory import predict
from fdfa_core import BlockNetwork, perturbations
from fdfa_core.errors import InvalidInput
from places import ROOT
from verification import mutants, planting
from verification.cases import Case, problem, suite
from verification.checks import Strata, batches
from verification.support import outcomes, table
from verification.support.networks import ROWS, Own, Row, linear
from verification.support.outcomes import fault, outcome
from verification.support.page import page
from verification.support.table import COLUMNS, EXCEPTIONS


@pytest.fixture(scope="module")
def light():
    return verification.run("light", jobs=1)


def test_estimators_agree_with_theory(light):
    failed = light[light.verdict != "pass"]
    assert failed.empty, failed[["case", "quantity", "block", "predicted", "measured", "z"]].to_string()


def test_every_registered_estimator_with_a_closed_form_is_verified(light):
    assert {"bp", "frozen", "fg-w", "fg-a", "dfa", "dkp", "drtp", "fdfa", "grape"} <= set(light.estimator)


def test_z_scores_are_standard(light):
    z = light[(light.se > 0) & np.isfinite(light.z) & ~light.quantity.str.startswith("component")].z
    assert 0.8 < np.sqrt((z**2).mean()) < 1.2  # rows of one case are dependent: wider than 1 ± 2/√(2n)


def test_light_suite_is_small_enough_for_the_threshold_of_mutants(light):
    assert len(light) < 1000


def test_a_wrong_estimator_fails(light):
    rows = verification.rows(next(case for case in suite("light") if case.estimator == "drtp"))
    altered = [row | {"p": 0.0} if row["quantity"] == "component means" else row for row in rows]
    assert not verification.passed(verification.judge(pd.DataFrame(altered)))


def test_report_and_table(light, tmp_path):
    table, report = verification.write(light, tmp_path / "out")
    assert pd.read_csv(table).columns.tolist() == list(verification.COLUMNS)
    text = report.read_text(encoding="utf-8")
    assert "All rows pass" in text and "| fdfa" in text


def test_report_names_failed_rows(light, tmp_path):
    failing = light.assign(verdict=["FAIL", *light.verdict[1:]])
    _, report = verification.write(failing, tmp_path)
    assert "1 rows FAIL" in report.read_text(encoding="utf-8")


def test_same_numbers_in_every_run(light):
    case = next(case for case in suite("light") if case.estimator == "fg-a")
    again = pd.DataFrame(verification.rows(case))
    assert again.measured.tolist() == light[light.case == case.label].measured.tolist()


@pytest.mark.parametrize("profile", ["light", "full"])
def test_cases_are_named_apart(profile):
    labels = [case.label for case in suite(profile)]
    assert len(set(labels)) == len(labels)
    assert len({case.seed for case in suite(profile)}) == len(labels)


def test_full_suite_crosses_what_it_claims():
    crossed = {(c.estimator, c.network, c.options.get("perturbation")) for c in suite("full")}
    for name, network, law in itertools.product(("fg-w", "fg-a", "fdfa"), ("tanh", "relu", "cnn"), ("gaussian", "sphere")):
        assert (name, network, law) in crossed


@pytest.mark.parametrize("network", ["tanh", "relu", "cnn", "small", "small-relu"])
def test_problems_have_gradients_biases_and_jacobians_that_vary(network):
    net, x, y = problem(network, 2)
    found = predict("fdfa", net, x, y, 2)
    for block in range(len(net)):
        assert found.total("target", block) > 1e-4
    assert found.total("bias", 0) > 0.05 * found.total("target", 0)
    assert float(found.feedback_law.data[0].abs().max()) > 1e-3


def test_batches_have_the_chances_of_draws_with_replacement():
    found = {tuple(indices): weight for indices, weight in batches(3, 2)}
    assert found == pytest.approx({(0, 0): 1 / 9, (0, 1): 2 / 9, (0, 2): 2 / 9, (1, 1): 1 / 9, (1, 2): 2 / 9, (2, 2): 1 / 9})


def test_stratified_mean_and_error():
    generator = torch.Generator().manual_seed(0)
    strata, parts = Strata(0.3), []
    for weight, n, shift in ((0.25, 50, 0.0), (0.75, 80, 4.0)):
        strata.open(weight)
        values = shift + torch.randn(n, generator=generator, dtype=torch.float64)
        strata.add(values[: n // 2])
        strata.add(values[n // 2 :])
        parts.append((weight, values))
    mean, se = strata.mean()
    assert float(mean) == pytest.approx(sum(w * float(v.mean()) for w, v in parts), rel=1e-12)
    assert float(se) ** 2 == pytest.approx(sum(w**2 * float(v.var()) / len(v) for w, v in parts), rel=1e-10)


@pytest.mark.parametrize("between_calls", [False, True])
def test_correlation_sees_repeats_and_not_independence(between_calls):
    generator = torch.Generator().manual_seed(1)
    fresh = torch.randn(2, 4000, generator=generator, dtype=torch.float64)
    repeated = fresh[:1].expand(2, -1) if between_calls else fresh.repeat_interleave(2, 1)
    for values, dependent in ((fresh, False), (repeated, True)):
        strata = Strata()
        strata.open(1.0)
        for call in values:
            strata.add(call)
        correlation, se = strata.correlation(between_calls)
        assert (abs(correlation) > 5 * se) == dependent


def test_refuses_an_unknown_profile():
    with pytest.raises(InvalidInput, match="full"):
        verification.run("fast")


def test_label_shows_options_and_steps():
    case = Case("feedback", "fdfa", "tanh", 2, 4, 10, {"feedback_lr": 0.5}, steps=3)
    assert case.label == "fdfa(feedback_lr=0.5, steps=3) on tanh, M=2, N=4"


def test_the_picture_shows_random_comparisons_only():
    from figures import _verification

    row = {"estimator": "fg-a", "case": "c", "quantity": "variance", "predicted": 2.0, "measured": 2.1, "se": 0.1}
    row |= {"low": 1.9, "high": 2.4, "z": 0.5, "verdict": "pass"}
    exact = row | {"measured": 2.0, "se": 0.0, "z": 0.0}
    figure = _verification.draw(pd.DataFrame([row, row | {"z": -0.7}, exact]))
    points = [line for line in figure.axes[1].lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in points) == 2


# --- planted mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_mistake_is_noticed(mutant):
    assert planting.caught_by(mutant, suite("light")) is not None


def test_there_are_enough_of_each_kind():
    kinds = [mutant.where for mutant in mutants.MUTANTS]
    assert kinds.count("estimator") >= 20 and kinds.count("theory") >= 10 and kinds.count("instrument") >= 2
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(kinds)


def test_mistakes_are_taken_out_again():
    before = perturbations.Gaussian.sample
    with next(m for m in mutants.MUTANTS if "1.05" in m.name).plant():
        assert perturbations.Gaussian.sample is not before
    assert perturbations.Gaussian.sample is before


def test_no_mistake_is_noticed_where_there_is_none():
    watch = ("fg-a on small,", "[order]")
    harmless = planting.Mutant("none", "theory", watch, lambda: patch.object(planting, "THRESHOLD", 1e-5))
    assert planting.caught_by(harmless, suite("light")) is None


def test_catch_table(tmp_path):
    drtp = [i for i, m in enumerate(mutants.MUTANTS) if "DRTP" in m.name]
    frame = pd.DataFrame([mutants._row(i) for i in drtp])
    table, report = mutants.write(frame, tmp_path)
    assert f"{len(drtp)} of {len(drtp)} noticed" in report.read_text(encoding="utf-8")
    assert "case" in table.read_text(encoding="utf-8").splitlines()[0]


TELLING = ("bp", "fg-w", "fdfa", "fa")  # of each kind one: exact, by tangents, by state, by other weights
DRAWN = ("batch normalisation", "tied weights", "a loss per token")


@pytest.mark.parametrize("row", ROWS)
def test_telling_cells_and_all_exceptions_are_as_declared(row):
    special = {column for cell in EXCEPTIONS.get(row, ()) for column in cell.columns}
    chosen = [column for column in COLUMNS if column in special or column in TELLING]
    assert [text for column in chosen if (text := fault(row, column, draws=0))] == []


@pytest.mark.parametrize("row", DRAWN)
@pytest.mark.parametrize("column", ["fg-a", "fg-a, slope of the batch"])
def test_the_mean_of_draws_is_as_declared(row, column):
    assert fault(row, column, draws=4000) == ""


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_all_cells_are_as_declared(row):
    assert [text for column in COLUMNS if (text := fault(row, column, draws=4000))] == []


def test_the_page_shows_the_declaration():
    written = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    assert written == page(), "write it anew: make matrix"


def test_the_declaration_names_rows_columns_and_verdicts_that_exist():
    assert EXCEPTIONS.keys() <= ROWS.keys()
    cells = [cell for cells in EXCEPTIONS.values() for cell in cells]
    assert all(set(cell.columns) <= COLUMNS.keys() and cell.verdict in table.VERDICTS for cell in cells)
    assert all(bool(cell.message) == (cell.verdict == "refused") and cell.note for cell in cells)


def test_a_false_declaration_is_noticed(monkeypatch):
    for cell, said in (
        (table.Cell(("bp",), "refused", "no", "never said"), "declared refused 'never said', seen exact"),
        (table.Cell(("bp",), "unbiased", "no"), "declared unbiased '', seen exact"),
    ):
        monkeypatch.setitem(table.EXCEPTIONS, "linear", (cell,))
        assert said in fault("linear", "bp", draws=0)


def test_a_wrong_gradient_is_seen(monkeypatch):
    """An estimate that is off by a hundredth is neither exact nor unbiased."""
    true = outcomes.true_gradient

    def off(*arguments):
        return {name: 1.01 * g for name, g in true(*arguments).items()}

    monkeypatch.setattr(outcomes, "true_gradient", off)
    assert [outcome(ROWS["linear"], column, 0)[0] for column in ("bp", "fg-w", "dfa")] == ["wrong"] * 3


def test_coupled_samples_are_seen():
    def centred(self, x):
        return torch.tanh(self.a(x - x.mean(0)))

    row = Row(lambda: BlockNetwork(nn.Linear(6, 8), Own(centred, a=linear()), nn.Linear(8, 3)))
    assert outcome(row, "fg-a", 4000)[0] == "biased"
    assert outcome(row, "fg-a, slope of the batch", 4000)[0] == "unbiased"
