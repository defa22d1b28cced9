"""What training needs in memory at its peak, at the size of the paper's largest network, and what a process keeps of it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fdfa_core import alexnet, make_estimator
from fdfa_core.measuring.cost import peak_memory


def test_feedback_update_on_alexnet_holds_little_more_than_activations_and_feedback():
    """The product of every sample's response and perturbation, N × O × n_l numbers, would alone take ten times as much."""
    net = alexnet(100, input_size=224, seed=0)
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 3, 224, 224, generator=stream), torch.randint(100, (32,), generator=stream)
    estimator = make_estimator("fdfa", net)
    activations = []
    layers = [module for module in net.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(lambda *call: activations.append(call[-1].nbytes)) for layer in layers]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    feedback = sum(b.nbytes for b in estimator.feedback)
    assert peak_memory(lambda: estimator.advance(x, y)) < 1.2 * (sum(activations) + feedback)


FAULTS = """
import resource, torch
from fdfa_core.memory import keep_freed_memory

KEEP

def step():
    kept = torch.ones(500_000)
    for _ in range(3):
        torch.ones(5_000_000)  # 20 MB, or 4,883 pages

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

[step() for _ in range(6)]  # until the heap has found its shape
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def page_faults(code: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS.replace("KEEP", code)]
    found = subprocess.run(command, env=clean | environment, check=True, capture_output=True, text=True)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_a_process_that_keeps_freed_memory_takes_no_new_pages_for_what_it_needs_next():
    assert page_faults("assert keep_freed_memory()") < 1000
    # what the environment asks for stands: here, that every block of 64 kB and more is handed back
    asked = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    handed_back = page_faults("assert not keep_freed_memory()", **asked)
    large_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if large_pages.exists() and "[always]" not in large_pages.read_text():
        assert handed_back > 5 * 3 * 4000
