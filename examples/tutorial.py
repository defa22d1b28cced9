# %% [markdown]
"""Tutorial: measure, train with instruments, compare with the record, add an estimator, verify it.

The cells (``# %%``) run in order, in an editor that knows them or as a script: python examples/tutorial.py
"""

# %% 1. Measure: how noisy, and how wrong, is each estimate on this network and batch?
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import analysis
from analysis import logs, own, select, variance
from fdfa_core import Estimator, Monitor, cut, fully_connected, measure, register
from fdfa_core.estimators.options import Positive
from fdfa_core.linearisation.functional import functional_call

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)
train, test = torch.randperm(len(x)).split(1437)

model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
net = cut(model, example=x[:2])  # blocks, which share the model's layers
ESTIMATORS = ["bp", "fg-w", "fg-a", ("fdfa", {"feedback_lr": 0.1})]
print(measure(net, x[train[:64]], y[train[:64]], ESTIMATORS, replicates=32, progress=False))

# %% 2. Train with instruments: an ordinary loop, watched and not disturbed.
directory = Path(tempfile.mkdtemp()) / "runs"  # take a folder that stays, such as runs/mine
criterion = nn.CrossEntropyLoss()
for seed in range(2):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    reference = x[train[:256]], y[train[:256]]
    watch = {"reference": reference, "directory": directory, "every": {"kind": "geometric"}, "name": "adam", "seed": seed}
    with Monitor(model, ESTIMATORS, replicates=8, steps_per_epoch=23, **watch) as monitor:
        for _ in range(3):
            for batch in train[torch.randperm(len(train))].split(64):
                monitor.observe(x[batch], y[batch])
                criterion(model(x[batch]), y[batch]).backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
                monitor.log(train_loss=criterion(model(x[train]), y[train]), test_accuracy=accuracy)
    print(f"seed {seed}: test accuracy {accuracy:.1%}, logs in {monitor.path.name}")
# `fdfa figures --runs DIRECTORY` draws these runs.


# %% 3. Compare with the record: is FG-W as much noisier than FG-A here as in the runs at the paper's scale?
def noise_ratio(log: logs.Logs) -> float:
    """Return the variance of FG-W over that of FG-A in the hidden blocks, at the last probe, over all runs."""
    probes = variance.normalised(select.last_step(select.hidden_blocks(log.probes)))
    log_nsr = np.log(probes[probes["nsr"] > 0].set_index("method")["nsr"])
    return float(np.exp(log_nsr["fg-w"].mean() - log_nsr["fg-a"].mean()))


mine = logs.read(directory, own.experiments(directory)["trajectory/adam"])
recorded = analysis.results("paper", "trajectory")
print(f"variance of FG-W over FG-A: {noise_ratio(mine):.0f} here (32 units a block), {noise_ratio(recorded):.0f} in the record")


# %% 4. Add an estimator: a class, and a name.
@register("one-coordinate")
class OneCoordinate(Estimator):
    """The slope along one coordinate, drawn at random, times the number P of coordinates.

    g = P ∂_i ℓ e_i with i uniform, by a difference quotient. Expectation: ∇ℓ, up to the order ε². Variance: (P − 1) ‖∇ℓ‖².

    Args:
        epsilon: ε, half the distance between the two points.
    """

    need_pull = need_push = False  # it takes neither local gradients nor tangents

    def __init__(self, net, *, epsilon: Positive = 1e-4, **common):
        super().__init__(net, **common)
        self.epsilon = epsilon

    def gradients(self, trace, error, targets, lead):
        """Return one draw, or with lead = (R,) a stack of R."""
        draws = [self.draw(trace.input, targets) for _ in range(lead[0] if lead else 1)]
        return {name: torch.stack([d[name] for d in draws]) if lead else draws[0][name] for name in draws[0]}

    def draw(self, x, targets):
        """Return P ∂_i ℓ e_i for a new i."""
        parameters = {name: p.detach() for name, p in self.net.named_parameters()}
        flat = torch.cat([p.flatten() for p in parameters.values()])
        i = torch.randint(len(flat), (), generator=self.generator, device=self.device)
        losses = []
        for step in (self.epsilon, -self.epsilon):
            moved = flat.clone()
            moved[i] += step
            losses.append(self.loss(functional_call(self.net, self.shaped(moved, parameters), (x,)), targets))
        gradient = torch.zeros_like(flat)
        gradient[i] = len(flat) * (losses[0] - losses[1]) / (2 * self.epsilon)
        return self.shaped(gradient, parameters)

    @staticmethod
    def shaped(flat, like):
        """Return a vector as tensors by name."""
        parts = flat.split([p.numel() for p in like.values()])
        return {name: part.view_as(p) for (name, p), part in zip(like.items(), parts, strict=True)}


# %% 5. Verify it: do mean and variance agree with its docstring?
small = fully_connected([4, 5, 3], activation="tanh", seed=0).double()  # float64, for the difference quotient
stream = torch.Generator().manual_seed(0)
batch = torch.randn(8, 4, generator=stream, dtype=torch.float64), torch.randint(3, (8,), generator=stream)
frame = measure(small, *batch, ["one-coordinate"], replicates=2000, progress=False)
row = frame[frame["level"] == "network"].iloc[0]
expected = (row["size"] - 1) * row["target_norm"] ** 2
z = {
    "mean": row["bias2"] / row["bias2_se"],  # of the squared bias, which is 0 where the mean is the gradient
    "variance": (row["variance"] - expected) / row["variance_se"],
}
said = ", ".join(f"{name} {value:+.1f} standard errors" for name, value in z.items())
print(f"one-coordinate against its closed forms: {said}")
assert all(abs(value) < 4 for value in z.values())
