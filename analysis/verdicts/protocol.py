"""The protocol of the verdicts as data: what docs/protocol.md says for people, and fixed before the data that it judges.

A change of anything here is an amendment: docs/protocol.md lists it with its date, its reason and what was already known.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

DATE = "2026-11-28"
PROFILE = "paper"  # whose settings and seeds are fixed below; other profiles plan what their files hold
LEVEL = 0.05  # family-wise, of all directional verdicts of a family, and separately of all verdicts "equivalent"
SEEDS = tuple(range(10))  # of every run that a verdict of the paper profile rests on
PRIMARY, MECHANISMS = "primary", "mechanisms"
KEYS = ["question", "setting", "component", "variant"]  # what names a hypothesis

# The FDFA on trial: the rule of the paper's equation. The rule of the released code is shown beside it, never in its place.
ON_TRIAL, BESIDE = "momentum", "adam"

LOCAL = ("fg-w", "fg-a", "lg-fg-w", "lg-fg-a", "fa", "dfa", "dkp", "drtp", "pepita", "grape")
FORWARD = ("fg-w", "fg-a")

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


@dataclass(frozen=True)
class Setting:
    """A data set and network on which methods are trained, and whom FDFA is compared with there.

    Attributes:
        experiment: name of the experiment file of the paper profile.
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
class Tuning:
    """How settings are chosen, with the same number of trials for every method.

    Attributes:
        trials: pairs (learning rate, second setting) that a method may try.
        seeds: of each trial; no other experiment uses them.
        epochs: full epochs of a trial at least; the final length where that is shorter.
        rule: which trial is chosen.
        second: method → its second setting; a method without one spends its trials on a finer grid of rates.
    """

    trials: int
    seeds: tuple[int, ...]
    epochs: int
    rule: str
    second: MappingProxyType


TUNING = Tuning(
    trials=18,
    seeds=(100, 101, 102),
    epochs=5,
    rule="the smallest learning rate whose mean validation accuracy is within one standard error of the best",
    second=MappingProxyType(
        {
            "fdfa": "feedback_lr",
            "dkp": "feedback_lr",
            "grape": "feedback_lr",
            "lg-fg-w": "readout_lr",
            "lg-fg-a": "readout_lr",
            "pepita": "scale",
        }
    ),
)
