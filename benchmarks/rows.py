"""What docs/performance.md reports: each bench measures some rows of its table."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.networks import BATCH_SIZE, NETWORKS, Ready, bp_step, estimator_step, make_batch
from benchmarks.timing import Row, bench, ratio, take_turns
from fdfa_core import available_estimators, make_estimator, true_gradient
from fdfa_core.errors import Unsupported
from fdfa_core.measuring.cost import operations
from fdfa_core.perturbations import Rademacher
from fdfa_core.runs.directory import is_complete, read_provenance
from fdfa_core.training.process import keep_freed_memory

# Steps -------------------------------------------------------------------------------------------------------------------


Limit = float | tuple[float, float] | None  # of a row; a pair is for one thread and for more


def _limit(of: Limit) -> float | None:
    return of[torch.get_num_threads() > 1] if isinstance(of, tuple) else of


def _steps(
    network: str, rounds: int, limits: dict[str, tuple[str, dict, Limit]], pairs: Sequence[tuple[str, str, float]] = ()
) -> Iterator[Row]:
    """Time a BP step, estimators' steps (label: name, options, limit), and steps of a pair against each other."""
    functions, before = {"bp": bp_step(net := NETWORKS[network](), *make_batch(net))}, {}
    for label, (name, options, _) in limits.items():
        net = NETWORKS[network]()
        if options.get("perturbation") is Ready:
            units = sum(math.prod(shape) for shape in net.site_shapes())
            numbers = sum(p.numel() for p in net.parameters()) if name == "fg-w" else BATCH_SIZE * units
            options = {"perturbation": (law := Ready(numbers))}
            before[label] = law.draw
        functions[label] = estimator_step(name, net, *make_batch(net), **options)
    seconds = take_turns(functions, rounds, before=before)
    baseline = 1e3 * float(np.median(seconds["bp"]))
    for label, (_, _, limit) in limits.items():
        yield Row(f"{label} step / BP step, {network}", ratio(seconds[label], seconds["bp"]), _limit(limit), baseline)
    for label, other, limit in pairs:
        milliseconds = 1e3 * float(np.median(seconds[other]))
        yield Row(f"{label} step / {other} step, {network}", ratio(seconds[label], seconds[other]), limit, milliseconds)


def _fully_connected(network: str) -> Iterator[Row]:
    methods = {
        "FDFA": ("fdfa", {}, (1.10, 1.15)),
        "FDFA (Adam's rule)": ("fdfa", {"feedback_rule": "adam"}, None),
        "FDFA (Rademacher)": ("fdfa", {"perturbation": "rademacher"}, None),
        "FDFA (without drawing random numbers)": ("fdfa", {"perturbation": Ready}, None),
        "DFA": ("dfa", {}, None),
        "FG-A": ("fg-a", {}, 1.3),
        "FG-W": ("fg-w", {}, None),
        "FG-W (Rademacher)": ("fg-w", {"perturbation": "rademacher"}, None),
        "FG-W (without drawing random numbers)": ("fg-w", {"perturbation": Ready}, 1.3),
    }
    yield from _steps(network, 30, methods, [("FDFA (Adam's rule)", "FDFA", 1.05)])


@bench("steps-fc-bn", processes=5)
def _() -> Iterator[Row]:
    yield from _fully_connected("fc-bn")


@bench("steps-fc", processes=5)
def _() -> Iterator[Row]:
    yield from _fully_connected("fc")


@bench("steps-cnn", processes=3)
def _() -> Iterator[Row]:
    methods = {"FDFA": ("fdfa", {}, (1.12, 1.18)), "FG-A": ("fg-a", {}, None), "FG-W": ("fg-w", {}, None)}
    yield from _steps("cnn-released", 8, methods)


@bench("steps-general", processes=3)
def _() -> Iterator[Row]:
    networks = {"residual": 6, "residual-digits": 20, "transformer": 5, "transformer-wide": 8, "transformer-digits": 20}
    for network, rounds in networks.items():
        methods = {"FDFA": ("fdfa", {}, 1.8), "FG-W": ("fg-w", {}, 1.6)}
        yield from _steps(network, rounds, methods)


# Random numbers ----------------------------------------------------------------------------------------------------------


def box_muller(generator: np.random.Generator, count: int) -> torch.Tensor:
    """Return standard normal numbers (count,) of 32 bits each, by Box & Muller (1958)."""
    words = generator.integers(2**64, size=-(-count // 2), dtype=np.uint64).view(np.int32)
    uniform = torch.from_numpy(words).view(-1, 2).float().mul_(2**-32).add_(0.5)  # in [0, 1], to the digits that float32 has
    radius = uniform[:, 0].clamp_(min=2**-33).log().mul_(-2).sqrt_()
    angle = uniform[:, 1].mul(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


@bench("random", processes=3)
def _() -> Iterator[Row]:
    """Take the time of a step's normal numbers by the generators that there are."""
    net = NETWORKS["fc"]()
    count = BATCH_SIZE * sum(math.prod(shape) for shape in net.site_shapes())
    halves, here, there = torch.empty(2, count // 2), torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    fast, numbers = np.random.Generator(np.random.SFC64(0)), torch.Generator().manual_seed(0)

    def two_streams() -> None:
        other = pool.submit(halves[0].normal_, generator=there)
        halves[1].normal_(generator=here)
        other.result()

    ways = {
        "torch's normal numbers": lambda: torch.randn(count, generator=numbers),
        "torch's uniform numbers": lambda: torch.rand(count, generator=numbers),
        "normal numbers of two torch streams, in two threads": two_streams,
        "NumPy's normal numbers (SFC64)": lambda: fast.standard_normal(count, dtype=np.float32),
        "NumPy's random bits (SFC64), and Box & Muller by torch": lambda: box_muller(fast, count),
        "random signs": lambda: Rademacher().sample((count,), generator=numbers, dtype=torch.float32),
    }
    with ThreadPoolExecutor(1) as pool:
        seconds = take_turns({"bp": bp_step(net, *make_batch(net)), **ways}, 60)
    for way in ways:
        figure = f"{count:,} numbers of an FDFA step, {way} / BP step, fc"
        yield Row(figure, ratio(seconds[way], seconds["bp"]), None, 1e3 * float(np.median(seconds["bp"])))


# Many draws --------------------------------------------------------------------------------------------------------------


def _draws(network: str, rounds: int, sample_limit: float, scalars_limit: float | None) -> Iterator[Row]:
    """Compare 256 draws at one point with as many single draws."""
    from fdfa_core.measuring.probe import draws_on_batch
    from fdfa_core.measuring.scalars import measure_draws, remembered

    count, part = 256, 32  # single draws are timed in parts: they take long
    net = NETWORKS[network]()
    x, y = make_batch(net)
    target = true_gradient(net, x, y)
    for label, options in (("", {}), (" (Rademacher)", {"perturbation": "rademacher"})):
        estimator = make_estimator("fg-a", net, **options)
        produce = draws_on_batch(estimator, x, y, count)
        functions = {
            "single": lambda e=estimator: [e.estimate(x, y) for _ in range(part)] and None,
            "full": lambda e=estimator: e.sample(x, y, count),
            "scalars": lambda p=produce: measure_draws(remembered(p), target, target),
        }
        seconds = take_turns(functions, rounds, warmup=1)
        single = seconds["single"] * (count / part)
        for kind, name, limit in (("full", "gradients", sample_limit), ("scalars", "their scalars", scalars_limit)):
            yield Row(
                f"{count} FG-A draws{label}, {name} / {count} single draws, {network}",
                ratio(seconds[kind], single),
                None if label else limit,
                1e3 * float(np.median(single)),
            )


@bench("draws-fc", processes=3)
def _() -> Iterator[Row]:
    keep_freed_memory(all_sizes=True)  # its blocks of 1.3 GB are the same each time
    yield from _draws("fc", 3, 0.65, 0.15)


@bench("draws-fc-small", processes=5)
def _() -> Iterator[Row]:
    yield from _draws("fc-small", 20, 0.08, None)


# Instruments -------------------------------------------------------------------------------------------------------------


@bench("probe", processes=5)
def _() -> Iterator[Row]:
    from fdfa_core.measuring.probe import probe
    from fdfa_core.measuring.reference import Reference

    net, replicas = NETWORKS["digits"](), 32
    x, y = make_batch(net, 512)
    batch = x[:BATCH_SIZE], y[:BATCH_SIZE]
    estimators = {}
    for name in available_estimators():
        try:
            estimators[name] = make_estimator(name, net, replicas=replicas)
            estimators[name].advance(*batch)
        except Unsupported:
            continue

    def whole(some) -> Callable[[], object]:
        return lambda: probe(net, *batch, some, Reference.compute(net, x, y, BATCH_SIZE), replicates=replicas)

    plain = bp_step(NETWORKS["digits"](), *batch)
    paper = ("bp", "fg-w", "fg-a", "lg-fg-a", "fa", "dfa", "dkp", "pepita", "fdfa")  # what the paper compares
    sets = {
        "all": (estimators, 100),
        "paper": ({name: estimators[name] for name in paper}, None),
        "few": ({name: estimators[name] for name in ("bp", "fg-w", "fg-a", "dfa", "fdfa")}, None),
    }
    functions = {"step": lambda: [plain() for _ in range(20)] and None} | {key: whole(some) for key, (some, _) in sets.items()}
    seconds, counted = take_turns(functions, 8), operations(plain)
    step = seconds["step"] / 20
    baseline = 1e3 * float(np.median(step))
    for key, (some, limit) in sets.items():
        figure = f"one probe of {replicas} replicas, {len(some)} estimators / plain step, digits network"
        yield Row(figure.capitalize(), ratio(seconds[key], step), limit, baseline)
        yield Row(f"Operations of {figure}", [operations(functions[key]) / counted])


@bench("instrumented")
def _() -> Iterator[Row]:
    from fdfa_core.experiments import schedules
    from fdfa_core.experiments.tables import Geometric

    epochs, steps_per_epoch = 10, 938
    steps = epochs * steps_per_epoch
    probes = sum(map(schedules.build(Geometric(kind="geometric"), steps_per_epoch, last=steps), range(steps)))
    many = [{"name": "fdfa", "feedback_lr": rate} for rate in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)]
    cases = {
        'itself probed ("self")': {"estimators": [{"name": "self"}]},
        '"self", fg-w, fg-a and dfa probed': {"estimators": [{"name": name} for name in ("self", "fg-w", "fg-a", "dfa")]},
        '"self" probed, and FDFA in 32 replicas that follow': {"estimators": [{"name": "self"}, {"name": "fdfa"}]},
        "FDFA at 7 rates in 32 replicas that follow": {"estimators": many},
        "FDFA at 7 rates in 32 replicas that share their perturbations": {"estimators": many, "common_random_numbers": True},
    }
    some = 10  # plain steps between two probes
    for i, (label, probed) in enumerate(cases.items()):
        plain, instrumented = _session(None), _session({"schedule": {"kind": "geometric"}} | probed)

        def advance(session, probing: bool, count: int):
            if session.instruments:
                session.instruments.schedule = lambda step: probing
            for _ in range(count):
                session.advance()

        functions = {
            "plain": partial(advance, plain, False, some),
            "between": partial(advance, instrumented, False, some),
            "probing": partial(advance, instrumented, True, 1),
        }
        seconds = take_turns(functions, 6, warmup=1)
        step = seconds["plain"] / some
        whole = ((steps - probes) * seconds["between"] / some + probes * seconds["probing"]) / steps
        figure = f"Training FDFA with instruments / without, {label}; MNIST FC, {epochs} epochs, {probes} probes"
        yield Row(figure, ratio(whole, step), 1.10 if i == 0 else None, 1e3 * float(np.median(step)))


def _session(probe: dict | None):
    """A training session of the fully connected network with batch normalisation on images of MNIST's size."""
    from fdfa_core.experiments.tables import RunConfig
    from fdfa_core.training.session import Session

    table = {
        "network": {"architecture": "fully_connected", "hidden": [800, 800], "batch_norm": True},
        "estimator": {"name": "fdfa"},
        "training": {"epochs": 1},
        "probe": probe,
    }
    return Session(RunConfig.model_validate(table), _images(), torch.device("cpu"))


def _images(n: int = 60_000):
    from fdfa_core.data import Dataset

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    return Dataset("random", images, labels, images[:1000], labels[:1000], tuple("0123456789"), sha256="")


@bench("pipeline")
def _() -> Iterator[Row]:
    split = _images().train
    order = split.epoch(BATCH_SIZE, torch.Generator().manual_seed(0))
    net = NETWORKS["fc-bn"]()
    functions = {"step": bp_step(net, *make_batch(net)), "input": lambda: split.batch(next(order), flatten=True)}
    seconds = take_turns(functions, 100)
    share = ratio(seconds["input"], seconds["input"] + seconds["step"])
    yield Row("Share of the input pipeline in a BP step, fc-bn", share, 0.03, 1e3 * float(np.median(seconds["step"])))


# Sweeps ------------------------------------------------------------------------------------------------------------------

SWEEP = """
[data]
name = "digits"
[network]
architecture = "fully_connected"
hidden = [800, 800]
batch_norm = true
[training]
epochs = 60
[[cases]]
estimator = { name = "fdfa" }
[grid]
seed = [0, 1, 2, 3, 4, 5, 6, 7]
"""


@bench("sweep")
def _() -> Iterator[Row]:
    cores = os.cpu_count() or 1
    if torch.get_num_threads() > 1 or cores < 2:  # a sweep has one thread a process
        return
    whole, running = {}, {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as directory:
            experiment, runs = Path(directory) / "sweep.toml", Path(directory) / "runs"
            experiment.write_text(f'description = "{processes} processes"\n{SWEEP}')
            command = [sys.executable, "-W", "ignore", "-m", "fdfa_cli", "sweep", experiment, "--runs", runs]
            # as many cores as processes: else a single process would take a thread for each
            environment = os.environ | {"LOKY_MAX_CPU_COUNT": str(processes)}
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            whole[processes] = time.perf_counter() - start
            about = [read_provenance(run) for run in runs.iterdir() if is_complete(runs, run.name)]
            started, finished = ([datetime.fromisoformat(run[key]) for run in about] for key in ("started", "finished"))
            running[processes] = (max(finished) - min(started)).total_seconds()
    figure = "Time of a sweep of 8 runs with two processes / with one, one thread each"
    for label, seconds, limit in (("from first start to last end", running, 0.556), ("with all start-up", whole, None)):
        value = seconds[2] / seconds[1]
        yield Row(f"{figure}, {label}", [value], limit, 1e3 * seconds[1])


# Theory and memory, each in a process of its own ---------------------------------------------------------------------------


def _child(code: str) -> dict[str, float]:
    """Run code in a fresh process with as many threads; it prints JSON as its last line."""
    prelude = (
        "import torch, fdfa_core.memory; fdfa_core.memory.keep_freed_memory(); "
        f"torch.set_num_threads({torch.get_num_threads()})\n"
    )
    done = subprocess.run([sys.executable, "-c", prelude + code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_resident() -> int:
    """Return the most memory that this process held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` would count what the parent held at the fork
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_theory() -> None:
    from analysis.theory import FORMULAS, predict

    net = NETWORKS["fc"]()
    x, y = make_batch(net, 10_000)
    feedback = [torch.randn(10, 800), torch.randn(10, 800)]
    start = time.perf_counter()
    for name in FORMULAS:
        predict(name, net, x, y, BATCH_SIZE, **({"feedback": feedback} if name in ("dfa", "dkp", "drtp") else {}))
    print(json.dumps({"seconds": time.perf_counter() - start, "bytes": peak_resident()}))


@bench("theory")
def _() -> Iterator[Row]:
    found = _child("from benchmarks.rows import run_theory; run_theory()")
    figure = "Exact theory of all estimators that have one, fc, 10,000 samples"
    seconds, size = found["seconds"], found["bytes"] / 2**30
    yield Row(f"{figure}: time", [seconds], 120, unit="s")
    yield Row(f"{figure}: resident memory", [size], 2, unit="GiB")


def run_training(network: str, method: str) -> None:
    start = peak_resident()
    net = NETWORKS[network]()
    batch = make_batch(net)
    step = bp_step(net, *batch) if method == "plain" else estimator_step(method, net, *batch)
    for _ in range(20):
        step()
    print(json.dumps({"bytes": peak_resident(), "grown": peak_resident() - start}))


@bench("memory")
def _() -> Iterator[Row]:
    for network in ("fc-bn", "cnn-released"):
        found = {
            method: _child(f"from benchmarks.rows import run_training; run_training({network!r}, {method!r})")
            for method in ("plain", "fdfa")
        }
        for key, what, limit in (("bytes", "Resident memory", 1.15), ("grown", "Memory grown since the start", None)):
            value = found["fdfa"][key] / found["plain"][key]
            yield Row(f"{what} of FDFA training / BP training, {network}", [value], limit)
