"""The protocol of the verdicts as data: what docs/protocol.md says for people, and fixed before the data that it judges.

A change of anything here is an amendment: docs/protocol.md lists it with its date, its reason and what was already known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

DATE = "2026-11-28"
# Profiles whose settings and seeds are fixed below; others plan what their files hold. An experiment moves from "protocol" to
# "paper" when it is recorded. Older runs of "paper" cannot answer this protocol: their rows count seeds, and say nothing else.
PROFILES = ("protocol", "paper")
LEVEL = 0.05  # family-wise, of all directional verdicts of a family, and separately of all verdicts "equivalent"
SEEDS = tuple(range(10))  # of every run that a verdict by this protocol rests on
PRIMARY, MECHANISMS = "primary", "mechanisms"
KEYS = ["question", "setting", "component", "variant"]  # what names a hypothesis

# The FDFA on trial: the rule of the paper's equation. The rule of the released code is shown beside it, never in its place.
ON_TRIAL, BESIDE = "momentum", "adam"

LOCAL = ("fg-w", "fg-a", "lg-fg-w", "lg-fg-a", "fa", "dfa", "dkp", "drtp", "pepita", "grape")
FORWARD = ("fg-w", "fg-a", "lg-fg-w", "lg-fg-a")

# Differences of test accuracy that are too small to matter, as fractions.
MARGINS = MappingProxyType({"digits": 0.01, "mnist": 0.002, "fashion-mnist": 0.005, "cifar-10": 0.01, "cifar-100": 0.01})


@dataclass(frozen=True)
class Question:
    """One question, and how a number of a seed answers it.

    Attributes:
        key: "Q1" …; "M1" … for mechanisms.
        asks: the question.
        family: `PRIMARY` or `MECHANISMS`; each is corrected once, over all data sets and networks.
        statistic: the number of a seed.
        direction: "greater" or "less": on which side of zero the claim lies.
        ratio: whether the number is the logarithm of a ratio, so that estimates are shown as ratios.
        margin: whether `MARGINS` allow the verdict "equivalent".
    """

    key: str
    asks: str
    family: str
    statistic: str
    direction: str
    ratio: bool
    margin: bool = False


QUESTIONS = (
    Question(
        "Q1 variance",
        "Does FDFA have a lower variance than the forward gradients?",
        PRIMARY,
        "ln of total variance ÷ ‖E g‖², the competitor's over FDFA's, mean over the probes of a hidden block",
        "greater",
        True,
    ),
    Question(
        "Q1 error",
        "Does FDFA have a lower mean squared error than the forward gradients?",
        PRIMARY,
        "ln of mean squared error ÷ ‖∇‖², the competitor's over FDFA's, mean over the probes of a hidden block",
        "greater",
        True,
    ),
    Question(
        "Q2 epoch",
        "Does FDFA converge faster than other local methods, per epoch?",
        PRIMARY,
        "ln of the geometric-mean train loss along the epochs, FDFA's over the competitor's",
        "less",
        True,
    ),
    Question(
        "Q2 operation",
        "Does FDFA converge faster than other local methods, per operation?",
        PRIMARY,
        "ln of the geometric-mean train loss along the operations that both have spent, FDFA's over the competitor's",
        "less",
        True,
    ),
    Question(
        "Q3 accuracy",
        "Does FDFA end at a higher test accuracy than other local methods?",
        PRIMARY,
        "test accuracy after the last epoch, FDFA's less the competitor's",
        "greater",
        False,
        margin=True,
    ),
    Question(
        "Q3 parity",
        "Does FDFA end level with backpropagation?",
        PRIMARY,
        "test accuracy after the last epoch, FDFA's less BP's",
        "greater",
        False,
        margin=True,
    ),
    Question(
        "M1",
        "Is FG-W noisier than FG-A?",
        MECHANISMS,
        "ln of total variance ÷ ‖∇‖², FG-W's over FG-A's, mean over the probes of a hidden block",
        "greater",
        True,
    ),
    Question(
        "M2",
        "Does the gap between two estimators widen with the width of the network?",
        MECHANISMS,
        "slope of ln(variance ratio) against ln width in a hidden block",
        "greater",
        False,
    ),
    Question(
        "M3",
        "Does averaging its feedback over steps lower FDFA's variance?",
        MECHANISMS,
        "ln of total variance ÷ ‖∇‖², FDFA's with α = 1 over FDFA's on trial, mean over the probes of a hidden block",
        "greater",
        True,
    ),
    Question(
        "M4",
        "Is FDFA without averaging over steps (α = 1) no less noisy than FG-A?",
        MECHANISMS,
        "ln of total variance ÷ ‖∇‖², FDFA's with α = 1 over FG-A's, mean over the probes of a hidden block",
        "greater",
        True,
    ),
)
BY_KEY = MappingProxyType({question.key: question for question in QUESTIONS})
TRAINING = ("Q2 epoch", "Q2 operation", "Q3 accuracy")  # asked beside every other local method; "Q3 parity" is beside BP


@dataclass(frozen=True)
class Setting:
    """A data set and network on which methods are trained, and whom FDFA is compared with there.

    Attributes:
        experiment: name of its experiment file, in a profile of `PROFILES`.
        epochs: length of its runs.
        seeds: competitor → seeds of the comparison. Every one of them has its rows, also where a run is missing.
    """

    experiment: str
    epochs: int
    seeds: MappingProxyType


def _with(main: tuple[str, ...], seeds: tuple[int, ...] = SEEDS, others: tuple[str, ...] = ()) -> MappingProxyType:
    return MappingProxyType(dict.fromkeys(("bp", *main), seeds) | dict.fromkeys(others, SEEDS[:5]))


DENSE = ("fg-a", "fa", "dfa", "dkp", "pepita", "grape")
CONVOLUTIONAL = ("fg-a", "dfa", "dkp", "grape")
SETTINGS = (
    Setting("mnist_fc", 30, _with(DENSE, others=("fg-w", "lg-fg-w", "lg-fg-a", "drtp"))),
    Setting("fashion_fc", 15, _with(DENSE)),
    Setting("cifar_fc", 15, _with(DENSE)),
    Setting("mnist_cnn", 3, _with(CONVOLUTIONAL)),
    Setting("fashion_cnn", 5, _with(CONVOLUTIONAL)),
    Setting("cifar_cnn", 10, _with(CONVOLUTIONAL)),
    Setting("mnist_fc_100", 100, _with(("dfa", "dkp", "grape"), SEEDS[:5])),
)
VARIANCE_EXPERIMENTS = MappingProxyType({"width": SEEDS, "trajectory": SEEDS})  # what Q1 and the mechanisms rest on


@dataclass(frozen=True)
class Axis:
    """The values of one setting in a trial grid.

    Attributes:
        start: values that every grid begins with, ascending.
        below, above: what an extension adds on that side, nearest first; where they end, no extension goes further.
    """

    start: tuple[float, ...]
    below: tuple[float, ...]
    above: tuple[float, ...]


@dataclass(frozen=True)
class Second:
    """A method's second setting.

    Attributes:
        method: its name, and in `given` the options that tell this variant of it from others.
        option: the option that is tuned beside the learning rate.
        axis: its values.
    """

    method: str
    option: str
    axis: Axis
    given: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Round:
    """The seeds of a round's trials, which no other experiment uses, and their full epochs (the final length if shorter)."""

    seeds: tuple[int, ...]
    epochs: int


@dataclass(frozen=True)
class Tuning:
    """How settings are chosen, with the same number of trials for every method.

    Attributes:
        trials: pairs (learning rate, second setting) that every method tries in the first round.
        finalists: best pairs of the first round that go into the second.
        extensions: steps by which a grid may grow on each side.
        first, final: the two rounds.
        validation: share of the training samples that trials are judged on; all others are trained on.
        rule: which finalist is chosen.
        seconds: the second settings; a method without one spends its trials on a finer grid of rates.
        fine, coarse: optimiser → learning rates of a method without, and with a second setting.
        grids: grid → final length of its setting in epochs; a grid has the files <grid>_trials and <grid>_finals.
        uses: experiment of the profile → the grid whose choices it takes.
    """

    trials: int
    finalists: int
    extensions: int
    first: Round
    final: Round
    validation: float
    rule: str
    seconds: tuple[Second, ...]
    fine: MappingProxyType
    coarse: MappingProxyType
    grids: MappingProxyType
    uses: MappingProxyType

    def second(self, method: str, options: Mapping[str, object]) -> Second | None:
        """Return the second setting of a method with these options; None where it has none."""
        fits = [s for s in self.seconds if s.method == method and s.given.items() <= dict(options).items()]
        return max(fits, key=lambda s: len(s.given), default=None)


def _fifths(first: int, below: tuple[float, ...], above: tuple[float, ...]) -> Axis:
    """Return eighteen rates, five a decade from 10^first on: 1, 1.6, 2.5, 4, 6.3."""
    steps = [(first + k // 5, (1, 1.6, 2.5, 4, 6.3)[k % 5]) for k in range(18)]
    return Axis(tuple(float(f"{mantissa}e{power}") for power, mantissa in steps), below, above)


_DECADES = Axis((1e-4, 1e-3, 1e-2), (1e-5, 1e-6), (0.1, 1.0))
TUNING = Tuning(
    trials=18,
    finalists=3,
    extensions=2,
    first=Round((100,), 1),
    final=Round((100, 101, 102), 5),
    validation=0.1,
    rule="the smallest learning rate whose mean validation accuracy is within one standard error of the best",
    seconds=(
        Second("fdfa", "feedback_lr", Axis((1e-3, 1e-2, 0.1), (1e-4, 1e-5), (1.0,))),  # α is at most 1
        Second(
            "fdfa",
            "feedback_lr",
            Axis((1e-5, 1e-4, 1e-3), (1e-6, 1e-7), (1e-2, 0.1)),
            MappingProxyType({"feedback_rule": BESIDE}),
        ),
        Second("dkp", "feedback_lr", _DECADES),
        Second("grape", "feedback_lr", Axis((1.0, 10.0, 100.0), (0.1, 0.01), (1e3, 1e4))),
        Second("cosine-dfa", "feedback_lr", Axis((0.01, 0.1, 1.0), (1e-3, 1e-4), (10.0, 100.0))),
        Second("lg-fg-w", "readout_lr", _DECADES),
        Second("lg-fg-a", "readout_lr", _DECADES),
        Second("pepita", "scale", Axis((0.01, 0.05, 0.25), (2e-3, 4e-4), (1.25, 6.25))),
    ),
    fine=MappingProxyType({"adam": _fifths(-5, (6.3e-6, 4e-6), (0.04, 0.063)), "sgd": _fifths(-3, (6.3e-4, 4e-4), (4.0, 6.3))}),
    coarse=MappingProxyType(
        {
            "adam": Axis((3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-5, 3e-6), (0.03, 0.1)),
            "sgd": Axis((3e-3, 1e-2, 0.03, 0.1, 0.3, 1.0), (1e-3, 3e-4), (3.0, 10.0)),
        }
    ),
    grids=MappingProxyType(
        {"mnist_fc": 30, "depth": 3, "cifar_fc": 15, "mnist_cnn": 3, "cifar_cnn": 10, "mnist_fc_sgd": 10, "residual_mlp": 5}
    ),
    uses=MappingProxyType(
        dict.fromkeys(("mnist_fc", "fashion_fc", "mnist_fc_100", "trajectory", "momentum"), "mnist_fc")
        | dict.fromkeys(("mnist_cnn", "fashion_cnn"), "mnist_cnn")
        | {"depth": "depth", "cifar_fc": "cifar_fc", "cifar_cnn": "cifar_cnn"}
        | {"sgd": "mnist_fc_sgd", "residual_mlp": "residual_mlp"}
    ),
)
