"""Networks that nobody here wrote are cut, differentiated exactly and trained, by the lines of docs/own-network.md."""

import importlib
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.gallery import PAGE, called, made, missing, networks
from fdfa_core import cut, diagnose, make_estimator
from fdfa_core.estimators import consistency
from fdfa_core.linearisation.trace import Trace
from fdfa_core.losses import make_loss
from fdfa_core.networks.batch import check_batch
from fdfa_core.networks.families import FAMILIES
from habits import Operations

PACKAGES = networks()
EXPECTED = (
    "ResNet-18", "VGG-11", "MobileNet-v3", "ConvNeXt", "ViT", "Swin", "MLP-Mixer", "RegNet", "U-Net", "BERT",
    "GPT-2, classification", "GPT-2, language", "LSTM", "GRU", "nn.TransformerEncoder", "PINN",
)  # fmt: skip
TOLERANCE = 1e-9  # of float64, over the size of what is compared


def test_the_page_has_every_network():
    assert [name for name in EXPECTED if not any(title.startswith(name) for title in PACKAGES)] == []
    assert [name for name in FAMILIES if f"`{name}`" not in PAGE.read_text(encoding="utf-8")] == []
    assert set(PACKAGES.values()) == {"", "torchvision", "timm", "transformers"}


def cases():
    return [pytest.param(title, marks=[pytest.mark.gallery] if package else []) for title, package in PACKAGES.items()]


@pytest.fixture(params=cases())
def example(request):
    """The network of a title in float64, as its package makes it and cut."""
    if reason := missing(PACKAGES[request.param]):
        pytest.skip(reason)
    example = made(request.param)
    example.net.double(), example.model.double()
    stream = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in example.model.parameters():  # some heads begin at zero, where no signal reaches what is below
            p += 0.02 * torch.randn(p.shape, generator=stream, dtype=p.dtype)
    if isinstance(example.x, torch.Tensor) and example.x.is_floating_point():
        example.x = example.x.double()
    if example.y.is_floating_point():
        example.y = example.y.double()
    return example


def distance(found, expected):
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def mean_loss(example, outputs):
    losses = F.cross_entropy if example.loss == "cross_entropy" else example.loss
    return losses(outputs, example.y).mean()


def switches():
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled, torch.backends.cuda.flash_sdp_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(), random.getstate(), np.random.get_state()[1].tolist(),
    )  # fmt: skip


def test_network_is_exact_and_trains(example):
    """Block by block, signals give the gradient of torch's reverse mode on the uncut model, and tangents give slopes along it.

    Five steps of FDFA leave nothing behind but weights and gradients, and the check of the first batch passes for at most the
    operations of three steps.
    """
    model, net = example.model, example.net
    x, y = check_batch(net, example.x, example.y)
    parameters = list(model.parameters())
    torch.manual_seed(1)
    expected = torch.autograd.grad(mean_loss(example, called(example)), parameters, materialize_grads=True, allow_unused=True)
    expected = dict(zip(parameters, expected, strict=True))
    names = [(name, p) for name, p in net.named_parameters() if expected[p].any()]
    assert {p for p in parameters if expected[p].any()} == {p for _, p in names}
    wanted = flat(expected[p] for _, p in names)

    torch.manual_seed(1)
    bp = make_estimator("bp", net, loss=example.loss).estimate(x, y)
    assert distance(flat(bp[name] for name, _ in names), wanted) < TOLERANCE

    loss = make_loss(example.loss)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    with torch.no_grad():
        torch.manual_seed(1)
        trace = Trace(net, x, shortcuts=True)
        loss.shape = trace.shape
        error = loss.error(trace.output, y)[1]
        by_blocks = trace.gradient(error)
        stream = torch.Generator().manual_seed(2)
        directions = [torch.randn(b.shapes["post"], generator=stream, dtype=error.dtype) for b in trace.hidden]
        trace.shortcuts = False
        slope = float((trace.push(directions, "post") * error).sum())
    assert distance(flat(by_blocks[name] for name, _ in names), wanted) < TOLERANCE

    torch.manual_seed(1)
    values, signal = [], x
    for block in net:
        signal = block(signal)
        values.append(signal)
    for name, b in net.named_buffers():
        b.data.copy_(buffers[name])  # running statistics have moved
    signals = torch.autograd.grad(mean_loss(example, values[-1]), values[:-1])
    along = [(u * s).sum() for u, s in zip(directions, signals, strict=True)]
    size = math.sqrt(sum(float((u * s).square().sum()) for u, s in zip(directions, signals, strict=True)))
    assert abs(slope - float(sum(along))) < TOLERANCE * size

    assert diagnose(net, example.x, example.y, example.loss).ok
    estimator = make_estimator("fdfa", net, loss=example.loss, seed=0)
    with Operations() as check:
        consistency.check(net, x, y, estimator.loss)
    estimator.check, before = False, switches()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with Operations() as steps:
        for _ in range(5):
            assert math.isfinite(estimator.backward(example.x, example.y))
            optimizer.step()
    assert all(bool(p.isfinite().all()) for p in net.parameters()) and switches() == before
    assert 0 < steps.total and 5 * check.total <= 3 * steps.total
    after_fdfa = _stream_after(example, estimator)
    assert torch.equal(after_fdfa, _stream_after(example, make_estimator("bp", net, loss=example.loss)))


OTHERS = {  # of the table of families, beside what the page shows
    "alexnet": ("torchvision", "models.alexnet(num_classes=3)", 64),
    "densenet": ("torchvision", "models.densenet121(num_classes=3)", 32),
    "efficientnet": ("torchvision", "models.efficientnet_b0(num_classes=3)", 32),
    "mnasnet": ("torchvision", "models.mnasnet0_5(num_classes=3)", 32),
    "mobilenet_v2": ("torchvision", "models.mobilenet_v2(num_classes=3)", 32),
    "regnet": ("torchvision", "models.regnet_y_400mf(num_classes=3)", 32),
    "shufflenet": ("torchvision", "models.shufflenet_v2_x0_5(num_classes=3)", 32),
    "squeezenet": ("torchvision", "models.squeezenet1_1(num_classes=3)", 64),
    "timm convnext": ("timm", "models.ConvNeXt(num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))", 32),
    "timm efficientnet": ("timm", "create_model('efficientnet_b0', num_classes=3)", 32),
    "timm resnet": ("timm", "create_model('resnet18', num_classes=3)", 32),
    "timm vit": ("timm", "models.VisionTransformer(32, 8, num_classes=3, embed_dim=16, depth=2, num_heads=2)", 32),
}


@pytest.mark.gallery
@pytest.mark.parametrize("title", OTHERS)
def test_other_families_are_cut_too(title):
    """`cut` compares the blocks with the model, in training mode and in evaluation mode."""
    package, maker, size = OTHERS[title]
    if reason := missing(package):
        pytest.skip(reason)
    model = eval(f"package.{maker}", {"package": importlib.import_module(package)})
    net = cut(model, example=torch.randn(4, 3, size, size))
    assert len(net) >= 4 and net.output_shape() == (3,)


@pytest.mark.gallery
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["BertForTokenClassification", "BertForSequenceClassification"])
def test_both_attentions_of_a_text_model_take_the_mask(kind, attention):
    if reason := missing("transformers"):
        pytest.skip(reason)
    import transformers

    small = dict(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = transformers.BertConfig(**small, num_labels=3, attn_implementation=attention)
    model = getattr(transformers, kind)(config).eval()
    x = {"input_ids": torch.randint(20, (4, 6)), "attention_mask": (torch.arange(6) < torch.arange(3, 7).view(-1, 1)).long()}
    net = cut(model, example=x)
    x["attention_mask"] = x["attention_mask"].flip(1)
    torch.testing.assert_close(net(x), model(**x).logits)


def _stream_after(example, estimator):
    """Where torch's global stream stands after a step: an estimator draws from it what the network draws, and nothing else."""
    torch.manual_seed(3)
    estimator.backward(example.x, example.y)
    return torch.get_rng_state()
