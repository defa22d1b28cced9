"""Every cell of the support matrix is what it is declared to be, and the page shows the declaration."""

import pytest
import torch
from torch import nn

from fdfa_core import BlockNetwork
from places import ROOT
from verification.support import outcomes, table
from verification.support.networks import ROWS, Own, Row, linear
from verification.support.outcomes import fault, outcome
from verification.support.page import page
from verification.support.table import COLUMNS, EXCEPTIONS

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
