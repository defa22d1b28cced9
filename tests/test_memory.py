"""What training needs in memory at its peak, at the size of the paper's largest network."""

import torch

from fdfa_core import alexnet, make_estimator
from fdfa_core.memory import peak_memory


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
