"""What became of runs, one by one and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from fdfa_core.experiments.tables import RunConfig

Status = Literal["finished", "diverged", "failed", "elsewhere", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one run: "skipped" was complete before, "elsewhere" is held by another process.

    `error` says why it failed, `details` holds the traceback of an unexpected failure.
    """

    run: str
    status: Status
    error: str = ""
    details: str = ""


CarryOut = Callable[[list[RunConfig], bool], Iterator[Outcome]]  # (runs, wait for those held elsewhere)


@dataclass
class Summary:
    """What became of a sweep: ids of runs, and for the failed ones the reason."""

    skipped: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one more run."""
        match outcome.status:
            case "failed":
                self.failed[outcome.run] = outcome.error
            case "diverged":
                self.diverged.append(outcome.run)
            case "finished":
                self.finished.append(outcome.run)

    def __str__(self) -> str:
        """Return one line."""
        counts = {"finished": self.finished, "diverged": self.diverged, "failed": self.failed}
        return f"{len(self.skipped)} runs were there already; " + ", ".join(f"{len(v)} {k}" for k, v in counts.items())
