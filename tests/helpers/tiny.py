"""Runs that take a fraction of a second, and processes that can be killed."""

import os
import pickle
import signal
import traceback
from pathlib import Path

from fdfa_core.experiments.loading import merge
from fdfa_core.experiments.tables import RunConfig

BASE = {
    "data": {"name": "digits", "train_size": 128},
    "network": {"architecture": "fully_connected", "hidden": [8, 8], "batch_norm": True},
    "estimator": {"name": "bp"},
    "training": {"epochs": 3, "batch_size": 32},
    "evaluation": {"reference_size": 64},
}
PROBE = {
    "schedule": {"kind": "every", "k": 4, "last": True},
    "replicates": 3,
    "reference_size": 64,
    "estimators": [{"name": "self"}, {"name": "fg-w"}, {"name": "fdfa", "feedback_lr": 0.1}],
}

TOML = """
description = "Two short runs."
[data]
name = "digits"
train_size = 128
[network]
hidden = [8, 8]
[training]
steps = 6
batch_size = 32
[probe]
schedule = { kind = "at", steps = [3] }
estimators = [{ name = "self" }, { name = "fg-w" }]
replicates = 4
reference_size = 64
[grid]
seed = [0, 1]
[[cases]]
estimator = { name = "bp" }
"""


def tiny(**overrides) -> RunConfig:
    """A run of 12 steps; overrides are merged table by table."""
    return RunConfig.model_validate(merge(BASE, overrides))


def tables(directory: Path) -> dict[str, bytes]:
    """What a run must reproduce to the bit: all of its files but those that hold times."""
    files = (path for path in sorted(Path(directory).rglob("*")) if path.is_file())
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in files
        if path.name not in {"timing.parquet", "provenance.json"}
    }


class Child:
    """A forked process that calls a function; forking spares it the seconds that importing torch takes."""

    def __init__(self, function, *arguments, **options):
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            try:
                result = function(*arguments, **options)
            except BaseException as error:
                traceback.print_exc()
                result = error
            try:
                with open(write, "wb") as pipe:
                    pickle.dump(result, pipe)
            finally:
                os._exit(0)
        os.close(write)
        self._pipe = open(read, "rb")  # noqa: SIM115

    def kill(self) -> bool:
        """Send SIGKILL; whether that is what ended the process."""
        os.kill(self.pid, signal.SIGKILL)
        return self.ended() == -signal.SIGKILL

    def result(self):
        """Wait, and return what the function returned or raised."""
        content = self._pipe.read()
        self.ended()
        return pickle.loads(content)

    def ended(self) -> int:
        """Wait, and return the exit code, which for a process ended by a signal is minus the signal."""
        self._pipe.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
