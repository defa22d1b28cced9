"""How many draws and steps a measurement takes, and how long that is, where the user leaves it open."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fdfa_core.estimators import Estimator

BUDGET = 20.0  # seconds that a measurement without further instructions may take
CHOICES = (256, 128, 64, 32, 16, 8)  # numbers of draws, of which it takes the greatest that fits
WORTH_SAYING = 3.0  # seconds from which on the user is told and sees a bar
TRIAL = 8  # replicas of the states in the trial


@dataclass
class Work:
    """What one estimator takes.

    Attributes:
        label: of the estimator.
        draw: seconds of one draw among several.
        step: seconds of one step of one replica of its state; 0 for an estimator without a state.
        needed: steps that bring the state close to its stationary distribution.
        steps: steps that it gets.
        most: the greatest number of replicas that fit into memory.
    """

    label: str
    draw: float = 0.0
    step: float = 0.0
    needed: int = 0
    steps: int = 0
    most: int = sys.maxsize

    def seconds(self, replicates: int) -> float:
        """Return the time of R draws after this many steps."""
        return replicates * (self.draw + self.steps * self.step)

    def time(self, estimator: Estimator, x: Tensor, y: Tensor) -> None:
        """Take the times of some draws and of a step of some replicas; the first of each sets up and does not count."""
        count = estimator.replicas or TRIAL
        self.draw = min(_seconds(lambda: estimator.draws(x, y, count)) for _ in range(2)) / count
        if estimator.stateful:
            self.step = min(_seconds(lambda: estimator.advance(x, y)) for _ in range(2)) / count


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def choose(works: Sequence[Work], budget: float = BUDGET) -> int:
    """Return the number of draws with which the works fit into a budget of seconds, and shorten steps if none does.

    The fewest draws are kept where even these take longer; then the states get fewer steps than they need, all in proportion.
    """
    most = min((work.most for work in works), default=CHOICES[0])
    fitting = [count for count in CHOICES if count <= most] or [max(2, most)]
    for count in fitting:
        if sum(work.seconds(count) for work in works) <= budget:
            return count
    count = fitting[-1]
    learning = count * sum(work.steps * work.step for work in works)
    left = max(budget - count * sum(work.draw for work in works), 0.1 * budget)
    if learning > left:
        for work in works:
            if work.step:
                work.steps = max(1, int(work.steps * left / learning))
    return count


def notes(works: Sequence[Work]) -> list[str]:
    """Return a sentence for each estimator whose state gets fewer steps than it needs."""
    return [
        f"{work.label}: its state took {work.steps} of the {work.needed} steps that bring it close to its stationary "
        "distribution: bias and variance are those of a state that still remembers its start. With replicates=… it takes all"
        for work in works
        if work.steps < work.needed
    ]


def announce(works: Sequence[Work], replicates: int) -> None:
    """Say on standard error how long a measurement will take, and what it holds."""
    seconds = sum(work.seconds(replicates) for work in works)
    learning = [f"{work.label} {work.steps}" for work in works if work.steps]
    text = f"measure: {len(works)} estimators, {replicates} draws each, about {max(1, round(seconds))} s"
    if learning:
        text += f" (steps of the states before the draws: {', '.join(learning)})"
    print(text, *notes(works), sep="\nmeasure: ", file=sys.stderr, flush=True)
