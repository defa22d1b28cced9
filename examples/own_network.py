"""Your own network: cut it into blocks, measure the estimators on it, train it without backpropagation.

Run it from the root of the project: python examples/own_network.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fdfa_core import cut, make_estimator, measure


class GatedBlock(nn.Module):
    """A block of one's own: x + tanh(a x) · sigmoid(b x). Nothing in it is known to the library."""

    def __init__(self, width):
        super().__init__()
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.value(x).tanh() * self.gate(x).sigmoid()


class Model(nn.Module):
    """A stem, a list of blocks and a head, as many networks are written."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.blocks = nn.ModuleList(GatedBlock(32) for _ in range(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def main():
    """Cut, measure, train."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)
    train, test = torch.randperm(len(x)).split(1437)

    # The parts are called in this order; that the model does nothing else is checked on the example.
    net = cut(Model(), parts=["stem", "blocks", "head"], example=x[:2])
    print(f"{len(net)} blocks, sites {net.site_shapes()}\n")

    # One batch, estimates against the true gradient. These blocks have no place between an affine part and an activation,
    # so FG-A perturbs their outputs.
    batch = train[:64]
    print(measure(net, x[batch], y[batch], ["fg-w", ("fg-a", {"site": "post"}), ("fdfa", {"feedback_lr": 0.2}), "dfa"], 32))

    print("\ntest accuracy after 4 epochs")
    for name, options in [("bp", {}), ("fdfa", {"feedback_lr": 0.02}), ("frozen", {})]:
        torch.manual_seed(0)
        model = Model()
        net = cut(model, parts=["stem", "blocks", "head"], example=x[:2])
        estimator = make_estimator(name, net, seed=0, **options)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)  # the blocks are the model's own
        for _ in range(4):
            for batch in train[torch.randperm(len(train))].split(64):
                estimator.backward(x[batch], y[batch])
                optimizer.step()
        accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
        print(f"  {name:7} {accuracy:.1%}")


if __name__ == "__main__":
    main()
