"""What is measured: one function a table row (or a few), each returning (what, measured, limit, remark)."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from analysis.theory import predict
from benchmarks import problems
from benchmarks.timing import compare, threads
from fdfa_core import available_estimators, fully_connected, make_estimator
from fdfa_core.data.dataset import Split
from fdfa_core.errors import Unsupported
from fdfa_core.gradients import Reference
from fdfa_core.moments import probe

Row = tuple[str, float, float, str]

STEPS = [  # network, limit of FDFA / BP, repetitions
    ("784-800-800-10, batch norm", lambda: problems.fc(True), 1.20, 60),
    ("784-800-800-10", lambda: problems.fc(False), 1.15, 60),
    ("cnn-released, 28 × 28", problems.cnn, 1.35, 25),
    ("residual toy (general blocks)", problems.residual_toy, 2.0, 20),
    ("transformer toy (general blocks)", problems.transformer_toy, 2.0, 20),
]


def fdfa_steps() -> Iterator[Row]:
    """FDFA's training step over a plain step of backpropagation."""
    for what, make, limit, repetitions in STEPS:
        for count in (1, 2):
            plain, own = make(), make()
            x, y = problems.batch(plain)
            work = {"bp": problems.plain_step(plain, x, y), "fdfa": problems.estimator_step("fdfa", own, x, y)}
            with threads(count):
                t = compare(work, repetitions)
            remark = f"BP {1e3 * t['bp']:.1f} ms, FDFA {1e3 * t['fdfa']:.1f} ms"
            yield f"FDFA step / BP step, {what}, {_threads(count)}", t["fdfa"] / t["bp"], limit, remark


def forward_gradient_steps() -> Iterator[Row]:
    """FG-A and FG-W; FG-W with and without the time of its random numbers, one per parameter."""
    for count in (1, 2):
        nets = [problems.fc(True) for _ in range(3)]
        x, y = problems.batch(nets[0])
        numbers, stream = sum(p.numel() for p in nets[0].parameters()), torch.Generator()
        work = {
            "bp": problems.plain_step(nets[0], x, y),
            "fg-a": problems.estimator_step("fg-a", nets[1], x, y),
            "fg-w": problems.estimator_step("fg-w", nets[2], x, y),
            "random": lambda numbers=numbers, stream=stream: torch.randn(numbers, generator=stream),
        }
        with threads(count):
            t = compare(work, 40)
        what = f"784-800-800-10, batch norm, {_threads(count)}"
        yield f"FG-A step / BP step, {what}", t["fg-a"] / t["bp"], 1.3, f"FG-A {1e3 * t['fg-a']:.1f} ms"
        without = (t["fg-w"] - t["random"]) / t["bp"]
        remark = f"FG-W {1e3 * t['fg-w']:.1f} ms, of which random numbers {1e3 * t['random']:.1f} ms"
        yield f"FG-W step less its random numbers / BP step, {what}", without, 1.3, remark


def many_draws(draws: int = 256) -> Iterator[Row]:
    """256 draws of FG-A at once against one at a time: full gradients, and their scalars alone."""
    for widths, limit in (([784, 800, 800, 10], 0.65), ([64, 100, 10], 0.08)):
        net = fully_connected(widths, seed=0)
        x, y = problems.batch(net)
        estimator, reference = make_estimator("fg-a", net), Reference.on_batch(net, x, y)
        work = {
            "singles": lambda e=estimator, x=x, y=y: [e.estimate(x, y) for _ in range(16)],
            "sample": lambda e=estimator, x=x, y=y: e.sample(x, y, draws),
            "scalars": lambda e=estimator, x=x, y=y, n=net, r=reference: probe(n, x, y, {"fg-a": e}, r, replicates=draws),
        }
        with threads(1):
            t = compare(work, 3, warm_up=1)
        single, name = t["singles"] * draws / 16, "-".join(map(str, widths))
        yield f"{draws} FG-A draws / {draws} single ones, full gradients, {name}", t["sample"] / single, limit, ""
        yield f"{draws} FG-A draws / {draws} single ones, scalars alone, {name}", t["scalars"] / single, 0.15, ""


def probes(replicates: int = 32) -> Iterator[Row]:
    """A probe of all estimators on the digits network, in plain steps; and what default instruments add to training."""
    net = problems.digits()
    x, y = problems.batch(net)
    plain = problems.plain_step(problems.digits(), x, y)
    reference, estimators = Reference.on_batch(net, x, y), {}
    for name in available_estimators():
        try:
            estimators[name] = make_estimator(name, net, replicas=replicates)
            estimators[name].draws(x, y, replicates)
        except Unsupported:
            estimators.pop(name, None)
    work = {"plain": plain, "probe": lambda: probe(net, x, y, estimators, reference, replicates=replicates)}
    with threads(1):
        t = compare(work, 5, warm_up=1)
    yield (
        f"probe, R = {replicates}, {len(estimators)} estimators, digits network / plain step",
        t["probe"] / t["plain"],
        100,
        "",
    )

    net = problems.fc(True)
    x, y = problems.batch(net)
    estimator = make_estimator("fdfa", net)
    samples, labels = problems.batch(net, 512)

    def default_probe():
        found = Reference.compute(net, samples, labels, problems.BATCH)
        probe(net, x, y, {"self": estimator}, found, replicates=replicates)

    step = problems.estimator_step("fdfa", net, x, y)
    with threads(1):
        t = compare({"step": step, "probe": default_probe}, 10)
    steps, due = 938, 11  # an epoch of MNIST; the probes of the schedule 1, 2, 4, … within it
    ratio = 1 + due * t["probe"] / (steps * t["step"])
    remark = f"{due} probes of {1e3 * t['probe']:.0f} ms in an epoch of {steps} steps"
    yield "instrumented / plain training, MNIST FC, geometric schedule, first epoch", ratio, 1.10, remark


def input_pipeline() -> Iterator[Row]:
    """Picking and normalising a batch, as a share of a training step."""
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60_000, 1, 28, 28), generator=stream, dtype=torch.uint8)
    split = Split(images, torch.randint(10, (60_000,), generator=stream))
    index, net = torch.randint(60_000, (problems.BATCH,), generator=stream), problems.fc(True)
    work = {
        "batch": lambda: split.batch(index, flatten=True),
        "step": problems.plain_step(net, *problems.batch(net)),
    }
    with threads(1):
        t = compare(work, 60)
    yield "input pipeline / BP step, MNIST FC", t["batch"] / t["step"], 0.03, f"{1e6 * t['batch']:.0f} µs a batch"


def theory(samples: int = 10_000) -> Iterator[Row]:
    """The closed forms at the paper's size."""
    net = problems.fc(True).eval()
    x, y = problems.batch(net, samples)
    feedback = make_estimator("dfa", net).feedback
    start = time.perf_counter()
    for name in ("bp", "fg-w", "fg-a", "dfa", "fdfa"):
        predict(name, net, x, y, problems.BATCH, **({"feedback": feedback} if name == "dfa" else {}))
    what = f"exact theory, 784-800-800-10, {samples} samples, bp, fg-w, fg-a, dfa, fdfa"
    yield f"{what}: seconds", time.perf_counter() - start, 120, ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # of the process so far, hence an upper bound
    yield f"{what}: peak GB of the process", peak, 2, "run alone: python -m benchmarks theory"


def resident_memory() -> Iterator[Row]:
    """Peak resident memory of training, each in a process of its own."""
    for what, make in (("784-800-800-10, batch norm", "fc(True)"), ("cnn-released", "cnn()")):
        peaks = {}
        for name in ("bp", "fdfa"):
            code = (
                "from benchmarks import problems as p\n"
                f"net = p.{make}; step = p.estimator_step('{name}', net, *p.batch(net))\n"
                "[step() for _ in range(20)]\n"
                "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peaks[name] = int(done.stdout) / 1024
        remark = f"{peaks['fdfa']:.0f} and {peaks['bp']:.0f} MiB, libraries included"
        yield f"resident memory, FDFA / BP training, {what}", peaks["fdfa"] / peaks["bp"], 1.15, remark


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


GROUPS = {
    f.__name__: f for f in (theory, fdfa_steps, forward_gradient_steps, many_draws, probes, input_pipeline, resident_memory)
}
