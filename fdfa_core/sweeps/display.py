"""Progress of a sweep, on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter

from tqdm import tqdm

from fdfa_core.sweeps.outcome import Outcome


def show_failure(outcome: Outcome) -> None:
    """Say on standard error why a run failed, above any bar that is shown."""
    tqdm.write(f"run {outcome.run} failed: {outcome.error}", file=sys.stderr)
    if outcome.details:
        tqdm.write(outcome.details, file=sys.stderr)


class Display:
    """Progress: counts and time left, as a bar on a terminal, otherwise as a line at every tenth and at least once a minute."""

    def __init__(self, total: int, skipped: int, workers: int, quiet: bool):
        self.counts: Counter[str] = Counter()
        self.total, self.workers, self.quiet = total, workers, quiet
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=skipped, unit="run", disable=quiet or not self.on_terminal, smoothing=0.1)
        self.started_at = skipped
        self.start = self.said = time.monotonic()

    def __enter__(self) -> Display:
        self._show()
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.status] += 1
        self.bar.update()
        self._show()
        if outcome.status == "failed" and not self.quiet:
            show_failure(outcome)

    def _show(self) -> None:
        done = self.started_at + self.counts.total()
        running = min(self.workers, self.total - done)
        self.bar.set_postfix(running=running, failed=self.counts["failed"], diverged=self.counts["diverged"])
        if self.on_terminal or self.quiet:
            return
        new, now = self.counts.total(), time.monotonic()
        if done == self.total or new % max(1, (self.total - self.started_at) // 10) == 0 or now - self.said > 60:
            self.said = now
            left = (
                f", about {tqdm.format_interval((now - self.start) * (self.total - done) / new)} left"
                if new and done < self.total
                else ""
            )
            print(
                f"{done}/{self.total} runs done, {running} running, {self.counts['failed']} failed, "
                f"{self.counts['diverged']} diverged{left}",
                file=sys.stderr,
                flush=True,
            )
