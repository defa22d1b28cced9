"""Your own loss: any callable (outputs, targets) → one loss per sample.

The estimators need nothing of a loss but its value and its derivative with respect to the outputs, which is local to the
output. Here a robust regression: the Huber loss on data of which some targets are wildly wrong.

Run it from the root of the project: python examples/own_loss.py
"""

import torch
import torch.nn.functional as F

from fdfa_core import fully_connected, make_estimator, measure


def huber(outputs, targets):
    """Return one loss per sample, (N,): quadratic near zero, linear beyond ±1."""
    return F.huber_loss(outputs, targets, reduction="none").sum(1)


def main():
    """Train on two losses, then measure on one's own."""
    torch.manual_seed(0)
    x = torch.randn(1024, 6)
    clean = torch.stack([x[:, 0].sin() + x[:, 1], x[:, 2] * x[:, 3]], dim=1)
    wrong = torch.rand(1024, 1) < 0.1
    y = torch.where(wrong, 20 * torch.randn(1024, 2), clean)

    for name, loss in [("mean squared error", "mse"), ("Huber loss", huber)]:
        net = fully_connected([6, 64, 64, 2], seed=0)
        estimator = make_estimator("fdfa", net, loss=loss, seed=0, feedback_lr=0.05)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(15):
            for batch in torch.randperm(len(x)).split(64):
                estimator.backward(x[batch], y[batch])
                optimizer.step()
        miss = (net(x) - clean)[~wrong[:, 0]].square().mean().sqrt()
        print(f"trained with FDFA on the {name}: misses the true function by {miss:.2f}")

    print("\nestimators on the Huber loss of one batch")
    print(measure(net, x[:64], y[:64], ["bp", "fg-w", "fg-a", ("fdfa", {"feedback_lr": 0.2}), "dfa"], 32, loss=huber))


if __name__ == "__main__":
    main()
