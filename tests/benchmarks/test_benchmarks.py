"""The record of the benches: some rows measured anew take the place of theirs, and the page shows what the record holds."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis.theory import predict
from benchmarks import __main__ as command
from benchmarks import anchors, check, gallery, report, timing
from benchmarks.networks import make_batch
from benchmarks.rows import box_muller
from benchmarks.timing import Row
from benchmarks.waiting import made_here, waited
from fdfa_core import fully_connected, true_gradient
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


def test_rows_measured_anew_take_the_place_of_theirs(place):
    new = [row("draws-fc", 1.5, 2, 1.2), row("draws-fc", 3.0, 2, figure="another of {}")]
    report.write(place, new, {}, ABOUT | {"date": "2030-01-02"})
    found = report.recorded(place)
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


def test_benches_come_in_the_order_of_the_table():
    known = list(timing.benches())
    assert known[0] == "steps-fc-bn" and known[-1] == "waiting" and known.index("random") < known.index("gallery")


def test_waiting_times_are_those_of_the_copy(tmp_path):
    assert waited(("-c", "import time; time.sleep(0.3)"), tmp_path) >= 0.3
    (tmp_path / "fdfa_core").mkdir()
    (tmp_path / "fdfa_core" / "__init__.py").write_text("raise SystemExit('this is the copy')")
    with pytest.raises(SystemExit, match="-c import fdfa_core: exit code 1\nthis is the copy"):
        waited(("-c", "import fdfa_core"), tmp_path)


def test_waiting_begins_with_what_a_clone_holds():
    assert made_here(str(ROOT), ["runs", ".venv", "figures", "fdfa_core"]) == ["runs", ".venv"]
    assert made_here(str(ROOT / "figures"), ["out", "style.py"]) == ["out"]
    assert made_here(str(ROOT / "fdfa_core"), ["runs", "data", "__pycache__"]) == ["__pycache__"]


def test_normal_numbers_of_random_bits_are_normal():
    """What they are timed against is as good: the Kolmogorov–Smirnov test of 400,000 finds a deviation of 0.4 %."""
    numbers = box_muller(np.random.Generator(np.random.SFC64(1)), 400_000).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert len(box_muller(np.random.Generator(np.random.SFC64(1)), 7)) == 7
    halves = numbers.reshape(2, -1)  # the two of a pair
    assert abs(np.corrcoef(halves)[0, 1]) < 0.01 > abs(np.corrcoef(halves**2)[0, 1])


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
    assert report.table(report.recorded(ROOT)) in text


def test_every_recorded_bench_can_be_repeated():
    known = set(report.benches(tables=False))
    assert set(report.recorded(ROOT)["bench"]) == known, "not recorded: python -m benchmarks --record --only"


# Against the record ------------------------------------------------------------------------------------------------------


def measured(samples, bench="steps-fc", threads=1, figure="a figure"):
    return report.pooled([asdict(Row(figure, samples, None, 8.0))], bench, threads)


def against(samples, now, **where):
    """Compare rows with a record of one row, whose quartiles are 1.1 and 1.3."""
    old = pd.DataFrame(measured([1.0, 1.1, 1.2, 1.3, 1.4])).assign(date="2030-01-01")
    return check.compare(measured(samples, **where), old, now)


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ([1.34] * 3, "worse"),
        ([1.33] * 3, "same"),  # above the upper quartile, within the margin
        ([1.2, 2.0, 2.0, 2.0, 2.1], "worse"),
        ([1.1, 1.3, 1.5, 1.7, 1.9], "same"),  # its median is above the upper quartile, its lower quartile is not
        ([1.2] * 3, "same"),
        ([1.07] * 3, "same"),
        ([1.06] * 3, "better"),
        ([float("nan")] * 3, "worse"),
    ],
)
def test_row_is_worse_or_better_when_its_quartiles_leave_the_recorded_ones(samples, verdict):
    found = against(samples, [("steps-fc", 1)])
    assert {key: len(rows) for key, rows in found.items() if rows} == {verdict: 1}
    counts = ", ".join(f"{int(key == verdict)} {key}" for key in ("worse", "better", "same"))
    assert check.summary(found).endswith(f"1 compared: {counts}.")
    assert "; recorded on 2030-01-01: 1.2 [1.1, 1.3]" in found[verdict][0]
    assert (found[verdict][0] in check.summary(found)) == (verdict != "same")


@pytest.mark.parametrize(
    ("bench", "value", "verdict"),
    [("sweep", 1.24, "same"), ("sweep", 1.26, "worse"), ("theory", 0.79, "better"), ("memory", 1.14, "same")]
    + [("memory", 1.16, "worse"), ("steps-transformers", 1.04, "worse"), ("steps-transformers", 1.02, "same")],
)
def test_benches_that_measure_once_have_margins_of_their_own(bench, value, verdict):
    (old,), (new,) = measured([1.0], bench), measured([value], bench)
    assert check.verdict(new, old) == verdict


def test_margins_are_those_of_benches():
    assert set(check.MARGINS) <= set(report.benches(tables=False))


@pytest.mark.parametrize("where", [{"threads": 2}, {"figure": "another figure"}, {"bench": "probe"}])
def test_rows_that_are_not_recorded_are_named_and_not_compared(where):
    asked = [(where.get("bench", "steps-fc"), where.get("threads", 1))]
    found = against([9.0], asked, **where)
    missed = ["1 thread  a figure (steps-fc)"] if "figure" in where else []  # the record has it, and it was asked for
    assert {key: len(rows) for key, rows in found.items()} == {
        "worse": 0, "better": 0, "same": 0, "not recorded": 1, "not found": len(missed)
    }  # fmt: skip
    assert found["not found"] == missed
    text = check.summary(found)
    assert where.get("figure", "a figure") in text and text.endswith("0 compared: 0 worse, 0 better, 0 same.")


def test_check_measures_what_is_recorded_with_each_number_of_threads():
    old = pd.DataFrame([*measured([1.0]), *measured([1.0], "probe"), *measured([1.0], "probe", 2)])
    assert check.plan(old, None, [1, 2, 4]) == {1: ["steps-fc", "probe"], 2: ["probe"]}
    assert check.plan(old, ["monitor"], [1, 2]) == {1: ["monitor"], 2: ["monitor"]}


@pytest.fixture
def checked(place, monkeypatch, capsys):
    """Call `python -m benchmarks --check` on a record in which every row is 1.0, and give what it finds all of one value."""

    def call(value, *arguments):
        def found(benches, threads):
            for name in benches:
                yield "row", name, asdict(Row(f"a figure of {name}", [value], None, 8.0))

        monkeypatch.setattr(command, "ROOT", place)
        monkeypatch.setattr(command, "_in_child", found)
        monkeypatch.setattr(report, "machine", lambda: ABOUT | {"cpu": "another processor", "load": 1.5})
        files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as ended:
            command.main(["--check", *arguments])
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == files
        return ended.value.code, capsys.readouterr()

    return call


def test_check_names_what_got_worse_and_writes_nothing(checked):
    code, said = checked(1.5, "--threads", "1", "2")
    assert code == 1 and said.out.count("; recorded on 2030-01-01: 1 [1, 1]") == 6
    assert said.out.endswith("6 compared: 6 worse, 0 better, 0 same.\n")
    assert "1.5 cores busy" in said.err
    assert "Recorded on 2 cores of a processor, torch 2, and this is 2 cores of another processor, torch 2" in said.err


def test_check_of_named_benches_passes_if_none_got_worse(checked):
    code, said = checked(1.0, "--threads", "2", "--only", "probe")
    assert code == 0 and said.out.endswith("1 compared: 0 worse, 0 better, 1 same.\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--only", "cost_scaling"], "cost_scaling"), (["--threads", "7"], "--threads 7"), (["--record"], "--record")],
)
def test_check_refuses_what_it_cannot_compare(checked, arguments, named):
    code, said = checked(1.0, *arguments)
    assert code == 2 and named in said.err


# What the suite is held against ------------------------------------------------------------------------------------------


def test_the_naive_step_has_the_slope_along_its_direction(monkeypatch):
    net = fully_connected([4, 5, 3], seed=0)
    x, y = make_batch(net, 6, 3)
    gradient = true_gradient(net, x, y)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    anchors.naive_step(net, x, y)()
    slope = sum(float(g.sum()) for g in gradient.values())
    assert all(torch.allclose(p.grad, torch.full_like(p, slope), rtol=1e-5) for p in net.parameters())


@pytest.mark.gallery
def test_the_variance_of_the_batch_gradient_is_that_of_backpack():
    if reason := gallery.missing("torchvision") or gallery.missing("backpack"):
        pytest.skip(reason)
    net = fully_connected([4, 5, 3], seed=0)
    x, y = make_batch(net, 6, 3)
    theirs = anchors.backpack_variance(torch.nn.Sequential(net[0].affine, net[0].activation, net[1]), x, y)()
    assert predict("bp", net, x, y, 2).total("variance") == pytest.approx(theirs / 2, rel=1e-5)
