"""Run the benches, each with each number of threads in a process of its own, and write what they found.

    python -m benchmarks                           all: benchmarks/results/*.csv and the table in docs/performance.md
    python -m benchmarks --only steps-fc draws-fc  some: printed, nothing written (with --record: these rows anew)
    python -m benchmarks --check                   what is recorded, or --only some of it: printed beside the record, nothing
                                                   written; exit code 1 if a row got worse, 2 if a bench failed
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from benchmarks import check, report, timing

ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure speed and memory.")
    parser.add_argument("--only", nargs="+", metavar="BENCH", help="these benches alone; print and write nothing")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--record", action="store_true", help="write what --only measured in place of what is recorded of it")
    what.add_argument("--check", action="store_true", help="compare with what is recorded; write nothing")
    parser.add_argument("--threads", nargs="+", type=int, help="numbers of threads (default: 1 and, with two cores, 2)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return _measure(options.only, options.threads[0])
    threads = options.threads or [1, 2][: os.cpu_count()]
    if options.check:
        record, known = report.recorded(ROOT), report.benches(tables=False)
        if unknown := sorted(set(options.only or ()) - set(known)):
            parser.error(f"{', '.join(unknown)}: no bench that measures rows of performance.csv; there are {', '.join(known)}")
        if not (plan := check.plan(record, options.only, threads)):
            parser.error(f"nothing is recorded with --threads {' '.join(map(str, threads))}")
    else:
        plan = {n: options.only or report.benches(tables=n == threads[0]) for n in threads}
    machine = report.machine()
    if machine["load"] > 0.3:
        print(f"Other processes keep {machine['load']:.1f} cores busy: ratios will be disturbed.", file=sys.stderr)
    if options.check and (others := sorted(set(record["machine"]) - {report.place(machine)})):
        print(f"Recorded on {'; '.join(others)}, and this is {report.place(machine)}: ratios may differ.", file=sys.stderr)
    rows, tables = [], {}
    for n, benches in plan.items():
        for (kind, name), contents in groupby(_in_child(benches, n), key=itemgetter(0, 1)):
            if kind == "row":
                for row in report.pooled([content for *_, content in contents], name, n):
                    rows.append(row)
                    print(report.line(row), flush=True)
            else:
                tables.setdefault(name, []).extend(content for *_, content in contents)
    if options.check:
        asked = [(name, n) for n, benches in plan.items() for name in benches]
        found = check.compare(rows, record, asked)
        print(f"\n{check.summary(found)}")
        raise SystemExit(1 if found["worse"] else 0)
    if options.record or not options.only:
        report.write(ROOT, rows, tables, machine)


def _in_child(benches: list[str], threads: int):
    """Yield (kind, bench, content) as a process with this many threads finds them."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--child", "--threads", str(threads), "--only", *benches]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        for text in child.stdout:
            yield json.loads(text)
    if child.returncode:
        raise SystemExit(2)


def _measure(benches: list[str], threads: int) -> None:
    """Run benches, each in forks of this process; they print every row as JSON."""
    from benchmarks.cost import TABLES
    from fdfa_core.training.process import keep_freed_memory

    keep_freed_memory()  # as in a sweep
    known = timing.benches()
    for name in benches:
        if name not in (*known, *TABLES):
            raise SystemExit(f"{name}: no such bench; there are {', '.join([*known, *TABLES])}")

    def run(name: str) -> None:
        import torch

        torch.set_num_threads(threads)
        for content in TABLES[name]() if name in TABLES else ():
            print(json.dumps(["table", name, content | {"threads": threads}]), flush=True)
        for row in known[name].rows() if name in known else ():
            print(json.dumps(["row", name, asdict(row)]), flush=True)

    for name in benches:
        for _ in range(known[name].processes if name in known else 1):
            _in_fork(run, name)


def _in_fork(function: Callable[[str], None], argument: str) -> None:
    """Call a function in a process of its own: the allocator is slower or faster for what it served before."""
    if not hasattr(os, "fork"):
        return function(argument)
    if pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(1)
        return None
    status = 1
    try:
        function(argument)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
