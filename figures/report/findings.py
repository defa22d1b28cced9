"""The tables of findings: what the recorded runs show, as numbers with intervals, from the frames that figures draw.

A word such as "closer" or "lower" stands only where an interval says it. Nothing here knows what a run showed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import logs, tuning
from analysis.verdicts import protocol
from fdfa_core.paths import RESULTS
from figures import _labels, _verdicts, render, style
from figures.depth_utility import BASELINE, SETTING
from figures.plan import Job, plan

PUBLISHED = RESULTS / "published.csv"  # accuracies that others report: whose, of which network, after how many epochs
NETWORK = "15C5-40C5-P2-128-10"  # of all recorded convolutional runs: the architecture's variant "cnn-released"
LEVEL = 0.05  # of the corrected p below which two methods are told apart


@dataclass(frozen=True)
class Finding:
    """A table of findings.

    Attributes:
        title: its heading.
        figure: the module whose frame it reads; of several experiments the frames come as one, with a column `experiment`.
        text: what the numbers are.
        rows: makes a table of texts of the frame.
        counted: whether the rows say themselves how many seeds they have, or are counts that no seed changes.
    """

    title: str
    figure: str
    text: str
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    counted: bool = False


def findings(profile: str, root: str | Path, experiments: str | Path = logs.EXPERIMENTS) -> str:
    """Return the tables of findings of recorded runs, as Markdown; of those without runs, nothing."""
    store, planned = logs.open_store(root), logs.profile(profile, experiments)
    wanted = dict.fromkeys(finding.figure for finding in FINDINGS)
    jobs, _ = plan(profile, store, wanted, experiments=experiments, partial=True)
    names = dict.fromkeys(e.name for job in jobs for e in job.all_experiments)
    read = {name: logs.read(store, planned[name], partial=True) for name in names}
    computed: dict[str, list[pd.DataFrame]] = {}
    for job in jobs:
        computed.setdefault(job.module.__name__.rpartition(".")[2], []).append(_computed(job, read))
    pooled = {figure: pd.concat(each, ignore_index=True) for figure, each in computed.items()}
    frames = {figure: tuning.labels_as_tuned(frame, ["experiment"]) for figure, frame in pooled.items()}
    parts = []
    for finding in FINDINGS:
        if finding.figure in frames and len(rows := finding.rows(frame := frames[finding.figure])):
            parts += [f"### {finding.title}", _introduced(finding, frame), render.markdown(rows)]
    return "\n\n".join(parts) + "\n"


def _computed(job: Job, read: Mapping[str, logs.Logs]) -> pd.DataFrame:
    logs_of = {role: logs.pooled([read[e.name] for e in group]) for role, group in job.experiments.items() if group}
    return render.computed(job, logs_of).assign(experiment=job.all_experiments[0].name)


def _introduced(finding: Finding, frame: pd.DataFrame) -> str:
    seeds = "" if finding.counted else f" {_seeds(frame)}."
    return f"{finding.text}{seeds} Drawn in `{finding.figure}`."


@_labels.understood
def _seeds(frame: pd.DataFrame) -> str:
    return style.seeds_text(frame, "brackets")


# --- rows ------------------------------------------------------------------------------------------------------------


@_labels.understood
def _growth(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how the relative variance of each estimator grows with the width."""
    rows = []
    for key, curve in _groups(frame, ["estimator", "block"]):
        points = list(curve.sort_values("width").itertuples())
        narrow, broad = points[0], points[-1]
        grows = _against(narrow.slope_low, narrow.slope_high, 1, "more slowly", "faster", "in proportion")
        grows = "no growth shown" if narrow.slope_low <= 0 else grows
        slope = f"{narrow.slope:.2f} [{narrow.slope_low:.2f}, {narrow.slope_high:.2f}]".replace("-", "−")
        ends = {"narrowest": f"{narrow.width}: {_ratio(narrow)}", "widest": f"{broad.width}: {_ratio(broad)}"}
        rows.append(key | {"slope": slope, "grows": grows} | ends)
    return pd.DataFrame(rows)


@_labels.understood
def _mechanisms(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts on the protocol's mechanisms."""
    asked = {question.key: question.asks for question in protocol.QUESTIONS if question.family == protocol.MECHANISMS}
    rows = frame[frame["question"].isin(asked)]
    return pd.DataFrame(
        {
            "question": [f"{key}: {asked[key]}" for key in rows["question"]],
            "setting": [f"`{setting}`" for setting in rows["setting"]],
            "of": rows["component"].map(_verdicts.named),
            "verdict": rows["verdict"].map(_verdicts.marked),
            "estimate": [_verdicts.effect(row) for row in rows.itertuples()],
        }
    ).sort_values("question", kind="stable")


@_labels.understood
def _along_training(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the variance of each estimator at the end of training, a column a hidden block."""
    last = frame[(frame["step"] == frame["step"].max()) & (frame["estimator"] != "bp")]
    rows = []
    for key, of in _groups(last, ["trained_with", "estimator"]):
        rows.append(key | {f"hidden block {row.block + 1}": _ratio(row) for row in of.sort_values("block").itertuples()})
    return pd.DataFrame(rows).fillna("–")


@_labels.understood
def _errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the squared error of each estimator, its parts, and whether a zero estimate would be closer."""
    return _parts(frame, ["trained_with", "estimator"])


@_labels.understood
def _rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the squared error of FDFA and its parts by rate."""
    rate = [f"α = {row.alpha:g}" if row.rule == "momentum" else "Adam rule" for row in frame.itertuples()]
    return _parts(frame[frame["quantity"] != "law"].assign(feedback=pd.Series(rate, frame.index)), ["feedback"])


@_labels.understood
def _angles(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the angles of each estimator at the end of training: a column an experiment, a line a hidden block."""
    rows = frame[(frame["quantity"] == "angle") & (frame["estimator"] != "bp")]
    rows = rows[rows["step"] == rows.groupby(["experiment", "estimator"])["step"].transform("max")]
    return wide(rows.sort_values("block"), "estimator", rows["experiment"], _angle)


@_labels.understood
def _depths(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy and angle of each estimator, a column a depth."""
    kinds = {"accuracy": ("test accuracy (%)", _percent), "mean": ("angle (°), mean of hidden blocks", _angle)}
    parts = []
    for quantity, (name, shown) in kinds.items():
        rows = frame[(frame["quantity"] == quantity) & ~((quantity == "mean") & (frame["trained_with"] == "bp"))]
        table = wide(rows, "trained_with", rows["depth"].astype(str) + " hidden layers", shown)
        table.insert(1, "what", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


@_labels.understood
def _accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each estimator less that of the FDFA on trial, a column a setting."""
    bounds = {"difference": "estimate", "difference_low": "low", "difference_high": "high"}
    rows = frame.drop(columns=["low", "high"]).rename(columns=bounds).dropna(subset="estimate")
    rows = rows[rows[["estimate", "low", "high"]].any(axis=1)]  # all but that FDFA itself
    return wide(rows, "trained_with", settings(rows), _difference)


def _published(frame: pd.DataFrame) -> pd.DataFrame:
    """Return published accuracies of convolutional networks (%), and those of our longest runs, FDFA's by its momentum rule."""
    mine = frame[(frame["architecture"] == "convolutional") & (frame["optimizer"] == "adam")]
    mine = mine[~mine["trained_with.options"].str.contains("feedback_rule")]
    mine = mine[mine["epochs"] == mine.groupby("dataset")["epochs"].transform("max")].dropna(subset="accuracy")
    mine = mine.assign(method=mine["trained_with.method"], source="this record", network=NETWORK)
    read = pd.read_csv(PUBLISHED)
    every = pd.concat([read, mine[read.columns]], ignore_index=True)
    every = every[every["dataset"].isin(mine["dataset"]) & every["method"].isin(["fdfa", *read["method"]])]
    every = every.assign(cell=[f"{100 * value:.2f}" for value in every["accuracy"]])
    about = ["dataset", "source", "network", "epochs"]
    table = every.pivot(index=about, columns="method", values="cell").reset_index()
    table["last"] = table["source"] == "this record"
    table = table.sort_values(["dataset", "last", "source"])
    lengths = [f"{length:.0f}" if length == length else "–" for length in table["epochs"]]
    shown = table[about].assign(dataset=table["dataset"].map(style.dataset), epochs=lengths)
    named = {method: style.look(method).name for method in style.ordered(every["method"])}
    return shown.rename(columns={"dataset": "data set"}).assign(**{name: table[m].fillna("–") for m, name in named.items()})


@_labels.understood
def _unlearnt(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the highest and the last mean accuracy of what ends lower than it once was, beyond both intervals."""
    rows = []
    accuracies = frame[(frame["quantity"] == "test_accuracy") & (frame["kind"] == "mean") & (frame["interval"] != "none")]
    for key, curve in _groups(accuracies, ["trained_with", "experiment"]):
        highest, last = (curve.loc[curve[column].idxmax()] for column in ("estimate", "epoch"))
        if last["high"] < highest["low"]:
            ends = {"highest (%)": highest, "last (%)": last}
            rows.append(key | {what: f"epoch {of['epoch']:g}: {_percent(of)}" for what, of in ends.items()})
    return pd.DataFrame(rows).rename(columns={HEADS["trained_with"]: "estimator"})


@_labels.understood
def _beyond_frozen(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each estimator less that of frozen hidden layers, a column a setting."""
    rows = frame[frame["trained_with"] != BASELINE]
    return wide(rows, "trained_with", settings(rows), _difference)


@_labels.understood
def _operations(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the operations of a step of each method over those of BP, a column an experiment."""
    rows = frame.drop_duplicates(["experiment", "trained_with"])
    bp = rows[rows["trained_with"] == "bp"].set_index("experiment")["flops_per_step"]
    rows = rows.assign(estimate=rows["flops_per_step"] / rows["experiment"].map(bp)).dropna(subset="estimate")
    return wide(rows, "trained_with", rows["experiment"], lambda row: f"{row.estimate:.2f}")


# --- tables ----------------------------------------------------------------------------------------------------------

HEADS = {"trained_with": "weights of", "block": "hidden block"}  # where it is not the column's own name
PARTS = {"mse": "squared error", "variance": "variance", "bias2": "squared bias"}


def _groups(frame: pd.DataFrame, by: list[str]) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the heads of a row, by the names of its columns, and the rows of the frame that it is of, in legends' order."""
    ranks = {}
    for column in by:
        named = column in ("estimator", "trained_with")
        order = style.ordered(frame[column]) if named else frame[column].drop_duplicates()
        order = sorted(order) if column == "block" else order
        ranks[column] = {value: i for i, value in enumerate(order)}
    groups = {key: rows for key, rows in frame.groupby(by, sort=False)}
    for key in sorted(groups, key=lambda key: [ranks[column][value] for column, value in zip(by, key, strict=True)]):
        yield {HEADS.get(column, column): _head(column, value) for column, value in zip(by, key, strict=True)}, groups[key]


def _head(column: str, value: object) -> str:
    if column in ("estimator", "trained_with"):
        return style.look(value).name
    return str(value + 1) if column == "block" else str(value)


def _parts(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return a squared error, its parts, and what it is beside that of a zero estimate; a line for each hidden block."""
    rows = []
    for key, of in _groups(frame.sort_values("block", kind="stable"), by):
        shown = {}
        for part, name in PARTS.items():
            mine = of[of["quantity"] == part].itertuples()
            shown[name] = "\n".join(_ratio(row) if row.detected else f"at most {_digits(row.high)}" for row in mine)
        errors = of[of["quantity"] == "mse"].itertuples()
        zero = "\n".join(_against(row.low, row.high, 1, "farther", "closer", "not told apart") for row in errors)
        rows.append(key | shown | {"a zero estimate is": zero})
    return pd.DataFrame(rows)


def wide(frame: pd.DataFrame, label: str, column: pd.Series, shown: Callable[..., str]) -> pd.DataFrame:
    """Return a row a label and a column a value of `column`; a cell has a line for each of its rows."""
    cells = frame.assign(column=column, cell=[shown(row) for row in frame.itertuples()])
    table = cells.groupby([label, "column"], sort=False)["cell"].agg("\n".join).unstack().fillna("–")
    table = table.loc[style.ordered(table.index), list(dict.fromkeys(column))]
    table.insert(0, "estimator", [style.look(name).name for name in table.index])
    return table.reset_index(drop=True)


def settings(frame: pd.DataFrame) -> pd.Series:
    """Return the name of each row's data set, network and length."""
    rows = frame[SETTING].itertuples(index=False)
    names = [f"{style.dataset(dataset)}, {_labels.network(*how)}, {epochs} epochs" for dataset, *how, epochs in rows]
    return pd.Series(names, frame.index)


# --- texts -----------------------------------------------------------------------------------------------------------


def _against(low: float, high: float, null: float, below: str, above: str, between: str) -> str:
    """Return what an interval says of a number beside `null`, "–" where there is none."""
    if not low < high:
        return "–"
    return below if high < null else above if low > null else between


def _digits(value: float) -> str:
    return _verdicts.digits(value).replace("-", "−") if value else "0"


def _ratio(row) -> str:
    return _digits(row.estimate) + (f" [{_digits(row.low)}, {_digits(row.high)}]" if row.interval != "none" else "")


def _angle(row) -> str:
    return _fixed(row, "{:.1f}")


def _percent(row) -> str:
    return _fixed(row, "{:.1f}", 100)


def _difference(row) -> str:
    """Return a difference in points with its p; bold where the two are told apart."""
    said = _fixed(row, "{:+.2f}", 100)
    if not row.low < row.high:  # a single seed has no interval, hence no test
        return said
    p = f"p {_verdicts.p_value(row.p_holm)}"
    return f"**{said}**, {p}" if row.p_holm < LEVEL else f"{said}, {p}"


def _fixed(row, digits: str, factor: float = 1) -> str:
    said = digits.format(factor * row.estimate)
    if row.interval != "none":
        said += f" [{digits.format(factor * row.low)}, {digits.format(factor * row.high)}]"
    return said.replace("-", "−")


FINDINGS = (
    Finding(
        "Variance against the width, at initialisation",
        "variance_vs_width",
        "Slope of ln(total variance ÷ ‖∇ of the block‖²) against ln(width). Blocks are hidden blocks, counted from the input.",
        _growth,
    ),
    Finding(
        "Mechanisms",
        "verdicts",
        "Verdicts by [the protocol](protocol.md). M1, M3 and M4: ratio of the variances of the two that are named; M2: slope. "
        "Intervals are simultaneous over the family.",
        _mechanisms,
        counted=True,
    ),
    Finding(
        "Variance at the end of one epoch",
        "variance_during_training",
        "Variance given the batch ÷ that of the batch gradient from batch to batch.",
        _along_training,
    ),
    Finding(
        "Error and its parts at the end of one epoch",
        "bias_variance",
        "Squared error, variance and squared bias ÷ ‖BP's gradient of the batch‖²; a line for each hidden block. Where the "
        "error is above 1, an estimate of zero is closer.",
        _errors,
    ),
    Finding(
        "FDFA's error by its feedback rate",
        "momentum_tradeoff",
        "Squared error, variance and squared bias ÷ ‖BP's gradient of the batch‖², at the end of one epoch; a line for each "
        "hidden block.",
        _rates,
    ),
    Finding(
        "Angles to BP's gradient of the batch at the end of training",
        "alignment_angles",
        "Degrees; a line for each hidden block, from the input.",
        _angles,
    ),
    Finding(
        "Depth",
        "alignment_vs_depth",
        "Accuracy on the test set, and the angle to BP's gradient of the batch, at the end of training. Where each depth chose "
        "its own settings, they are not part of the name.",
        _depths,
    ),
    Finding(
        "Accuracy beside FDFA",
        "accuracy",
        "Points of test accuracy less those of FDFA (momentum rule), paired by seed; p corrected by Holm's method within a "
        f"setting. Bold: p < {LEVEL:g}.",
        _accuracies,
    ),
    Finding(
        "Accuracy beside published ones",
        "accuracy",
        "Test accuracy (%) of small convolutional networks. BioTorch: Benchmarks.md of its repository at commit 2c85c71, LeNet "
        "by SGD (by Adam on CIFAR-10), at the epoch of the best validation accuracy; on MNIST and Fashion-MNIST the samples "
        "that choose the epoch are those that are reported. GrAPE: ICLR 2026, OpenReview kasbbmwk3s, second hand, from a "
        "summary that does not tell the length. This record: batch normalisation, Adam, the last epoch. Networks, optimisers "
        "and lengths differ, and so do the accuracies. What can be compared is the order of the methods, and how far each is "
        "from its own BP.",
        _published,
        counted=True,
    ),
    Finding(
        "Learnt, and lost again",
        "convergence",
        "Test accuracy of the methods that end lower than they once were, where the intervals of the two epochs are apart.",
        _unlearnt,
    ),
    Finding(
        "Accuracy beside frozen hidden layers",
        "depth_utility",
        "Points of test accuracy less those of frozen hidden layers with a trained readout, paired by seed; p corrected by "
        f"Holm's method within a setting. Bold: p < {LEVEL:g}.",
        _beyond_frozen,
    ),
    Finding(
        "Operations of a step",
        "equal_cost",
        "Matrix products and convolutions of one step ÷ those of BP.",
        _operations,
        counted=True,
    ),
)
