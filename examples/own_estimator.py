"""Your own estimator: a subclass and a name. It is then measured, trained and drawn like the others.

Run it from the root of the project: python examples/own_estimator.py
"""

import torch

from fdfa_core import available_estimators, fully_connected, make_estimator, measure, register, true_gradient
from fdfa_core.estimators import Estimator
from fdfa_core.estimators.options import Positive
from fdfa_core.linearisation.functional import functional_call


@register("spsa")
class SimultaneousPerturbation(Estimator):
    """Weight perturbation without any differentiation: the slope is a difference quotient (Spall 1992).

    g = (ℓ(θ + εv) − ℓ(θ − εv)) / 2ε · v with v of random signs. Expectation: the gradient, up to a bias of order ε² from the
    curvature. Variance: that of FG-W with random signs, (P − 1) ‖∇ℓ‖² given the batch. Cost: two forward passes more.

    Args:
        epsilon: ε, half the distance between the two points.
    """

    expectation = "gradient"

    def __init__(self, net, *, epsilon: Positive = 1e-2, **common):
        super().__init__(net, **common)
        self.epsilon = epsilon

    def variance(self, x, y):
        """Return (P − 1) ‖∇ℓ‖² for the P parameters that train."""
        truth = true_gradient(self.net, x, y, self.loss)
        trained = [truth[name] for name, p in self.net.named_parameters() if p.requires_grad]
        return (sum(g.numel() for g in trained) - 1) * sum(float(g.square().sum()) for g in trained)

    def gradients(self, trace, error, targets, lead):
        """Return one draw, or with lead = (R,) a stack of R."""
        if not lead:
            return self.draw(trace, targets)
        draws = [self.draw(trace, targets) for _ in range(*lead)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def draw(self, trace, targets):
        """Return slope · v for a new v."""
        v = {name: self.random_signs(p) for name, p in self.net.named_parameters() if p.requires_grad}
        above, below = (self.loss_at(step, v, trace.input, targets) for step in (self.epsilon, -self.epsilon))
        slope = (above - below) / (2 * self.epsilon)
        return {name: slope * direction for name, direction in v.items()}

    def loss_at(self, step, v, x, targets):
        """Return the mean loss at θ + step · v. Running statistics move in a copy: an estimate changes nothing."""
        moved = {name: p.detach() + step * v.get(name, 0) for name, p in self.net.named_parameters()}
        buffers = {name: b.clone() for name, b in self.net.named_buffers()}
        return self.loss(functional_call(self.net, {**moved, **buffers}, (x,)), targets)

    def random_signs(self, like):
        """Return ±1 from the estimator's own random stream."""
        bits = torch.randint(2, like.shape, generator=self.generator, device=self.device)
        return 2 * bits.to(self.dtype) - 1


def main():
    """Measure the estimator beside its relatives, then train with it."""
    print("known estimators:", ", ".join(available_estimators()), "\n")

    torch.manual_seed(0)
    x = torch.randn(512, 8)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()  # three classes that no linear model tells apart
    net = fully_connected([8, 12, 3], activation="tanh", seed=0)
    print(measure(net, x[:64], y[:64], ["fg-w", ("fg-w", {"perturbation": "rademacher"}), "spsa"], replicates=512))

    estimator = make_estimator("spsa", net, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    print("\ntraining loss with spsa")
    for step in range(401):
        batch = torch.randint(len(x), (64,))
        estimator.backward(x[batch], y[batch])
        optimizer.step()
        if step % 100 == 0:
            print(f"  step {step:3}: {estimator.loss(net(x), y).item():.3f}")


if __name__ == "__main__":
    main()
