"""The record of the benches: some rows measured anew take the place of theirs, and the page shows what the record holds."""

from dataclasses import asdict

import pandas as pd
import pytest

from benchmarks import report, timing
from benchmarks.rows import Row
from places import ROOT

ABOUT = {"cores": 2, "cpu": "a processor", "torch": "2", "load": 0.1, "date": "2030-01-01"}


def row(bench, value, threads=1, limit=None, figure="a figure of {}"):
    (found,) = report.pooled([asdict(Row(figure.format(bench), [value], limit, 8.0))], bench, threads)
    return found


@pytest.fixture
def place(tmp_path):
    """A record of three benches with one thread and two."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "performance.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    rows = [row(bench, 1.0, threads, 1.2) for threads in (1, 2) for bench in ("steps-fc", "draws-fc", "probe")]
    report.write(tmp_path, rows, {"cost_scaling": [{"threads": 1}]}, ABOUT)
    return tmp_path


def recorded(place):
    return pd.read_csv(place / "benchmarks" / "results" / "performance.csv")


def test_rows_measured_anew_take_the_place_of_theirs(place):
    new = [row("draws-fc", 1.5, 2, 1.2), row("draws-fc", 3.0, 2, figure="another of {}")]
    report.write(place, new, {}, ABOUT | {"date": "2030-01-02"})
    found = recorded(place)
    assert found[["threads", "bench", "value"]].values.tolist() == [
        [1, "steps-fc", 1.0], [1, "draws-fc", 1.0], [1, "probe", 1.0],
        [2, "steps-fc", 1.0], [2, "draws-fc", 1.5], [2, "draws-fc", 3.0], [2, "probe", 1.0],
    ]  # fmt: skip
    assert found["date"].tolist().count("2030-01-02") == 2
    assert (place / "benchmarks" / "results" / "cost_scaling.csv").exists()


def test_rounds_of_all_processes_count_alike():
    rows = [asdict(Row(figure, samples, 1.2, base)) for figure, samples, base in (
        ("a", [1.0, 1.1, 1.2], 8.0), ("b", [2.0], 8.0), ("a", [1.3, 1.4], 10.0), ("b", [4.0], 10.0)
    )]  # fmt: skip
    a, b = report.pooled(rows, "steps-fc", 2)
    assert (a["value"], a["low"], a["high"], a["met"]) == pytest.approx((1.2, 1.1, 1.3, True))
    assert (b["value"], b["met"], b["baseline_milliseconds"], b["processes"]) == (3.0, False, 9.0, 2)


def test_what_is_called_before_a_turn_is_not_timed(monkeypatch):
    clock = [0.0]

    def works(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    seconds = timing.take_turns({"a": works(1), "b": works(2)}, 3, before={"a": works(10)})
    assert seconds["a"].tolist() == [1, 1, 1] and seconds["b"].tolist() == [2, 2, 2]


def test_page_shows_the_record_and_keeps_its_text(place):
    report.write(place, [row("draws-fc", 1.5, 2, 1.2)], {}, ABOUT | {"date": "2030-01-02"})
    text = (place / "docs" / "performance.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| a figure of draws-fc | ≤ 1.2 | 1.00 | **1.50** | 8 ms | `draws-fc` |" in text
    assert "2030-01-01 to 2030-01-02" in text


def test_projects_page_shows_the_projects_record():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert report.table(recorded(ROOT)) in text


def test_every_recorded_bench_can_be_repeated():
    known = set(report.benches(tables=False))
    assert set(recorded(ROOT)["bench"]) == known, "not recorded: python -m benchmarks --record --only"
