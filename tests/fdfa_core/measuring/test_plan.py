"""How many draws and steps a measurement takes where nobody says."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fdfa_core import alexnet, cut, make_estimator, measure
from fdfa_core.measuring import measure as module
from fdfa_core.measuring.cost import peak_memory
from fdfa_core.measuring.plan import CHOICES, Work, announce, choose, notes

X, Y = torch.randn(6, 4), torch.randint(3, (6,))


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_as_many_draws_as_fit_into_the_budget():
    work = Work("a", draw=0.1)
    assert [choose([work], seconds) for seconds in (26, 25, 12, 1.6)] == [256, 128, 64, 16]


def test_states_get_fewer_steps_where_the_fewest_draws_do_not_fit():
    slow, none = Work("fdfa", draw=0.01, step=0.1, needed=100, steps=100), Work("dfa", draw=0.01)
    assert choose([slow, none], 20) == CHOICES[-1]
    assert 20 <= slow.steps <= 25 and none.steps == 0
    assert slow.seconds(8) + none.seconds(8) <= 20
    assert [note.split(":")[0] for note in notes([slow, none])] == ["fdfa"]


def test_no_more_replicas_than_memory_holds():
    assert choose([Work("a", most=40)], 20) == 32
    assert choose([Work("a", most=5)], 20) == 5


def test_small_networks_are_measured_in_full_and_in_silence(capsys):
    frame = measure(net(), X, Y, ["fg-w", ("fdfa", {"feedback_lr": 0.5})])
    assert set(frame["draws"]) == {256} and frame.attrs["notes"] == []
    assert capsys.readouterr().err == ""


def test_defaults_give_the_numbers_of_the_arguments_they_stand_for():
    few = ["fg-w", ("fdfa", {"feedback_lr": 0.5})]
    one, two = (measure(net_, X, Y, few, **given) for net_, given in zip([net()] * 2, ({}, {"replicates": 256}), strict=True))
    assert one["variance"].tolist() == two["variance"].tolist()


def test_arguments_are_obeyed_however_long_they_take(monkeypatch, capsys):
    monkeypatch.setattr(module, "WORTH_SAYING", 0.0)
    monkeypatch.setattr("fdfa_core.measuring.plan.BUDGET", 0.0)
    frame = measure(net(), X, Y, ["fdfa"], replicates=4, burn_in=7)
    assert set(frame["draws"]) == {4} and frame.attrs["notes"] == []
    said = capsys.readouterr().err
    assert "1 estimators, 4 draws each, about" in said and "fdfa 7" in said and "8/8" in said


def test_shortened_states_are_said_in_the_table(monkeypatch, capsys):
    monkeypatch.setattr(module, "WORTH_SAYING", 0.0)
    monkeypatch.setattr(module, "choose", lambda works: choose(works, budget=1e-3))
    frame = measure(net(), X, Y, ["fdfa"])
    assert set(frame["draws"]) == {8}
    assert "steps that bring it close to its stationary" in " ".join(frame.summary().split())
    assert "still remembers its start" in capsys.readouterr().err


def test_progress_off_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(module, "WORTH_SAYING", 0.0)
    measure(net(), X, Y, ["fdfa"], replicates=4, burn_in=2, progress=False)
    assert capsys.readouterr().err == ""


def test_announcement_is_one_line_with_a_time(capsys):
    announce([Work("fg-w", draw=0.5)], 8)
    assert capsys.readouterr().err == "measure: 1 estimators, 8 draws each, about 4 s\n"


def test_an_estimator_that_refuses_its_targets_does_not_end_the_measurement():
    outputs = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    frame = measure(outputs, X, torch.randn(6), None, 2, burn_in=1, loss=lambda o, t: (o.mean(1) - t).square())
    assert "y: shape" in frame.attrs["unsupported"]["drtp"] and "dfa" in set(frame["estimator"])


def test_inputs_in_a_dict_are_named():
    with pytest.raises(ValueError, match="inputs: got 'a dict'; accepted: a tensor"):
        measure(net(), {"x": X}, Y)
    with pytest.raises(ValueError, match="x: got 'a dict'; accepted: a tensor"):
        measure(cut(net()), {"x": X}, Y)


def test_sparse_buffers_and_scalar_parameters_are_measured():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(5, 5), nn.Parameter(torch.tensor(2.0))
            self.register_buffer("graph", torch.eye(6).to_sparse())

        def forward(self, x):
            return self.scale * torch.sparse.mm(self.graph, self.layer(x))

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Graph(), nn.Tanh(), nn.Linear(5, 3))
    frame = measure(model, X, Y, ["bp", "dfa", "fg-w"], 3)
    assert (frame["peak_memory"] > 0).all() and frame["variance"].notna().all()


# --- What training needs in memory at its peak, at the size of the paper's largest network, and what a process keeps of it


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
