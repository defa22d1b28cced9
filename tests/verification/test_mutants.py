"""Every planted mistake is noticed by the light verification (whose own pass, unmutated, is tested beside it)."""

from unittest.mock import patch

import pandas as pd
import pytest

from fdfa_core import perturbations
from verification import mutants, planting
from verification.cases import suite


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
