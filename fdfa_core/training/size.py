"""How much memory a run needs at least, so that one that cannot fit is refused before anything is built.

The estimate counts what is certain to be held at once: the weights with what the optimiser keeps of them, the largest batch of
images, the directions of one estimate, the states of the probed estimators. It is a lower bound, and it is compared with all
the memory that there is: what passes may still fail, which `memory_reported` then says.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from fdfa_core.data import Dataset, Split
from fdfa_core.errors import FdfaError, InvalidInput, OutOfMemory
from fdfa_core.estimators import estimator_options
from fdfa_core.experiments.tables import RunConfig
from fdfa_core.training import build

NUMBER = 4  # bytes of a float32
_ALONG_WEIGHTS = ("fg-w", "lg-fg-w")  # estimators whose directions are as long as the weights, not as the activities
# what torch says where memory is lacking, or where no integer of 64 bits holds a size
_LACKS = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "Overflow when unpacking long")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory that this process may come to hold on a device, free or not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = [psutil.virtual_memory().total + psutil.swap_memory().total]
    limits += [limit for limit in (resource.getrlimit(resource.RLIMIT_AS)[0],) if limit != resource.RLIM_INFINITY]
    for path in _LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def require_memory(
    config: RunConfig,
    dataset: Dataset,
    splits: tuple[Split, Split],
    device: torch.device,
    locate: Callable[[str], str] = str,
) -> None:
    """Raise `InvalidInput`, which names the key, where a run needs more memory than there is.

    Args:
        config: of the run.
        dataset: what it learns.
        splits: its samples for training and for evaluation.
        device: where it computes.
        locate: turns a key of the configuration into what errors call it.
    """
    most, needed = total_memory(device), 0
    for key, value, what, size in _parts(config, dataset, splits):
        needed += size
        if needed > most:
            accepted = f"what fits into the {most / 1e9:.3g} GB of memory here ({what} take {size / 1e9:.3g} GB alone)"
            raise InvalidInput(locate(key), value, accepted)


@contextmanager
def memory_reported(what: str) -> Iterator[None]:
    """Turn a lack of memory inside a `with`, which torch reports as a `RuntimeError`, into `OutOfMemory`."""
    try:
        yield
    except FdfaError:
        raise
    except (MemoryError, RuntimeError, OverflowError, TypeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise OutOfMemory(
            f"{what}: needs more memory than there is; make batch_size, hidden, image_size, tangents or replicates smaller, or "
            "let fewer processes run at once (--jobs)"
        ) from error


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is lacking, also for sizes that no machine can address."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return any(part in text for part in _LACKS)


def _parts(config: RunConfig, dataset: Dataset, splits: tuple[Split, Split]) -> Iterator[tuple[str, Any, str, int]]:
    """Yield key, value, what it is, and its bytes, for all that is held at once."""
    train, test = splits
    training = config.training
    batch = min(training.batch_size, len(train))
    samples = max(batch, min(config.evaluation.batch_size, max(len(train), len(test))))
    if config.probe:
        samples = max(samples, min(config.probe.reference_size, len(train)))
    key = "data.image_size" if config.data.image_size else "training.batch_size"
    value = config.data.image_size or training.batch_size
    yield key, value, f"{samples} images", NUMBER * samples * math.prod(train.shape)

    key, value = ("network.hidden", config.network.options.get("hidden"))
    if value is None:
        key, value = "network", {"architecture": config.network.architecture, **config.network.options}
    try:
        with torch.device("meta"):  # shapes without memory
            net = build.network(config, train, dataset)
            counts = [parameter.numel() for parameter in net.parameters()]
            units = [math.prod(shape) for shape in net.site_shapes()]
    except FdfaError:  # building it says what is wrong
        return
    except (MemoryError, RuntimeError, OverflowError, TypeError) as error:
        if isinstance(error, OverflowError) or is_lack_of_memory(error):
            yield key, value, "the weights", 2**80
        return  # shapes alone do not build every architecture
    copies = 2 + {"adam": 2, "sgd": int(training.momentum > 0), "none": 0}[training.optimizer]
    yield key, value, "the weights with their gradients and moments", NUMBER * copies * sum(counts)

    probed = config.probe.estimators if config.probe else []
    for place, estimator in [("estimator", config.estimator), *((f"probe.estimators[{i}]", e) for i, e in enumerate(probed))]:
        tangents = estimator.options.get("tangents", 1)
        if isinstance(tangents, int) and tangents > 1:
            along = max(counts) if estimator.name in _ALONG_WEIGHTS else batch * max(units)
            yield f"{place}.tangents", tangents, "the directions", NUMBER * tangents * along
        learns = estimator.name != "self" and "feedback_lr" in _options(estimator.name)
        if learns and place != "estimator":
            states = config.probe.replicates * len(dataset.classes) * sum(units)
            yield "probe.replicates", config.probe.replicates, f"the states of {estimator.name}", NUMBER * states


def _options(name: str) -> dict[str, object]:
    """Return the options of an estimator; none of an unknown one, which making it refuses by name."""
    try:
        return estimator_options(name)
    except FdfaError:
        return {}
