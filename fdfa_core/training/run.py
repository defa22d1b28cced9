"""One run, from its configuration to its directory of logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from fdfa_core.data import Dataset
from fdfa_core.errors import InvalidInput, RunError
from fdfa_core.experiments.tables import RunConfig, require_known
from fdfa_core.references import require_unchanged
from fdfa_core.runs.directory import claim, is_complete, open_root, read_config, read_provenance
from fdfa_core.runs.partial import PartialRun
from fdfa_core.runs.validation import check_provenance, damage
from fdfa_core.seeds import derive
from fdfa_core.training import provenance
from fdfa_core.training.process import loaded_dataset, one_at_a_time, restored_globals
from fdfa_core.training.session import Session
from fdfa_core.training.size import is_lack_of_memory, memory_reported

Progress = Callable[[int, int], None]  # (steps done, steps in all)
_CHECKPOINT = 3  # layout of a checkpoint; a run with one of another layout starts anew, to the same end


def train(
    config: RunConfig,
    root: str | Path = "runs",
    *,
    progress: Progress | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_directory: str | Path | None = None,
    download: bool = True,
    checkpoint_seconds: float = 20.0,
    wait: bool = True,
) -> Path | None:
    """Carry out a run, or what is left of it, and return its directory; a run that is there already is not repeated.

    Equal configurations give equal tables, bit for bit, on the same machine with the same number of threads, however often
    the run was killed and taken up again. torch's global random stream and number of threads are as before afterwards.

    Args:
        config: what to run.
        root: directory of runs.
        progress: called after every step.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" …; not part of the run's identity.
        threads: of torch; None leaves them as they are. A run that is taken up again keeps those that it began with.
        data_directory, download: as in `fdfa_core.data.load`.
        checkpoint_seconds: time between two checkpoints, longer where a checkpoint takes more than a twentieth of it; 0
            writes one after every step.
        wait: wait for a run that another process holds; otherwise return None at once.

    Raises:
        FdfaError: an impossible configuration, missing data, or a directory that cannot be used.
    """
    require_seconds("checkpoint_seconds", checkpoint_seconds)
    if is_complete(root, config.id):  # also where nothing can be written
        return _existing(Path(root), config)
    root = open_root(root)
    with claim(root, config.id, wait) as ours:
        if not ours:
            return None
        if is_complete(root, config.id):
            return _existing(root, config)
        partial = PartialRun(root, config)
        if partial.is_written:  # killed between its last file and its new name
            if fault := damage(partial.path, config.id):
                raise RunError(f"{partial.path}: is damaged ({fault}); remove it to start the run anew")
            return partial.publish()
        with one_at_a_time, restored_globals(), memory_reported(f"run {config.id}"):
            if threads is not None:
                torch.set_num_threads(threads)
            dataset = loaded_dataset(config.data.name, data_directory, download)
            return _run(config, partial, choose_device(device), dataset, progress, checkpoint_seconds)


def _run(
    config: RunConfig,
    partial: PartialRun,
    device: torch.device,
    dataset: Dataset,
    progress: Progress | None,
    checkpoint_seconds: float,
) -> Path:
    torch.manual_seed(derive(config.seed, "global"))
    session = Session(config, dataset, device)
    origin = provenance.describe(device, config.seed, dataset, [config.network.architecture, config.data.name])
    checkpoint = partial.read_checkpoint()
    if checkpoint and checkpoint.get("format") == _CHECKPOINT:
        try:
            session.load_state_dict(checkpoint["session"])
            own_code = checkpoint["origin"].get("own_code", ())
            origin = provenance.taken_up(checkpoint["origin"], session.step, origin)
            check_provenance(origin | {"finished": provenance.now()}, partial.path)
        except Exception as error:  # whatever the parts of a session raise at a state of another shape
            if is_lack_of_memory(error):
                raise
            place = partial.path / "checkpoint.pt"
            reason = f"{type(error).__name__}: {error}"
            raise RunError(
                f"{place}: is not a checkpoint of this run ({reason}); remove {partial.path} to start the run anew"
            ) from error
        require_unchanged(own_code, partial.path, "remove the directory to begin anew")
    else:
        session.evaluate_if_due()

    due = time.monotonic() + checkpoint_seconds
    while not session.done:
        step, raw = session.step, session.advance()
        if raw is not None:
            partial.write_gradients(step, raw)
        if session.diverged_step is None:
            session.evaluate_if_due()
        if progress:
            progress(session.step, session.total)
        if not session.done and (start := time.monotonic()) >= due:
            partial.write_checkpoint({"format": _CHECKPOINT, "session": session.state_dict(), "origin": origin})
            now = time.monotonic()
            due = now + (max(checkpoint_seconds, 20 * (now - start)) if checkpoint_seconds else 0)

    tables = {"metrics": session.metrics, "timing": session.timing}
    tables |= session.instruments.tables() if session.instruments else {}
    return partial.finish(tables, origin | {"finished": provenance.now()}, session.summary())


def require_seconds(name: str, value: float) -> None:
    """Raise `InvalidInput` unless a value is a number of seconds; NaN, which no clock ever passes, is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidInput(name, value, "a number of seconds that is not negative")


def choose_device(name: str) -> torch.device:
    """Return the device of a name: "auto" takes CUDA where there is one.

    Raises:
        InvalidInput: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = ["cpu"] + ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] * torch.cuda.is_available()
    require_known("device", name, ["auto", *known])
    return torch.device(name)


def _existing(root: Path, config: RunConfig) -> Path:
    if read_config(root / config.id) != config:
        raise RunError(f"{root / config.id}: holds another run's configuration; move it away to let this run take its place")
    if fault := damage(root / config.id):
        raise RunError(f"{root / config.id}: is damaged ({fault}); move it away to make the run again; `fdfa sweep` does both")
    own_code = read_provenance(root / config.id).get("own_code", ())
    require_unchanged(own_code, root / config.id, "move it away to make the run again")
    return root / config.id
