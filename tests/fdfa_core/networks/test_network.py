"""Blocks, networks of them, and cutting existing modules into them."""

import copy
import types

import pytest
import torch
from torch import nn

from fdfa_core import Block, BlockNetwork, Monitor, cut, diagnose, fully_connected, make_estimator, measure, true_gradient
from fdfa_core.errors import InvalidInput, Unsupported


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.body(x)


class Model(nn.Module):
    """A module with a named list of blocks, whose forward flattens by a function."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 4)
        self.blocks = nn.ModuleList([Residual(4), Residual(4)])
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class BatchIntoTokens(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 2)


def layout(net):
    """The types of a network's layers, a list for each block, with the two parts of a `Block` apart."""

    def names(module):
        return [type(each).__name__ for each in (module if type(module) is nn.Sequential else [module])]

    return [[names(b.affine), names(b.activation)] if isinstance(b, Block) else names(b) for b in net]


def batch(*shape, outputs=3):
    return torch.randn(5, *shape), torch.randint(outputs, (5,))


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_network_of_fewer_than_two_blocks_is_refused(count):
    with pytest.raises(InvalidInput, match=f"blocks: got {count}; accepted: at least two"):
        BlockNetwork(*[nn.Linear(2, 2)] * count)


def test_block_that_is_no_module_is_refused_by_position():
    with pytest.raises(InvalidInput, match=r"blocks\[1\]: got 'builtin_function_or_method'"):
        BlockNetwork(nn.Linear(2, 2), torch.relu, nn.Linear(2, 2))


def test_lazy_layer_is_refused_until_it_has_seen_its_input():
    with pytest.raises(InvalidInput, match=r"blocks\[0\].*run a batch through"):
        BlockNetwork(nn.LazyLinear(4), nn.Linear(4, 2))


def test_site_shapes_are_those_before_and_after_the_activation():
    block = Block(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    net = BlockNetwork(block, nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), input_shape=(1, 6, 6))
    assert (net.site_shapes("pre"), net.site_shapes("post"), net.output_shape()) == ([(2, 4, 4)], [(2, 2, 2)], (3,))


def test_input_shape_of_a_network_of_vectors_is_read_off_its_first_layer():
    net = BlockNetwork(Block(nn.Linear(7, 4), nn.ReLU()), nn.Linear(4, 3))
    assert net.input_shape == (7,)


def test_input_shape_is_not_guessed_where_a_linear_layer_may_act_on_tokens():
    net = BlockNetwork(nn.Linear(7, 4), nn.Sequential(Mean(), nn.Linear(4, 3)))
    assert net.input_shape is None


def test_network_of_tokens_without_input_shape_takes_its_batches():
    net = BlockNetwork(nn.Linear(7, 4), nn.Sequential(Mean(), nn.Linear(4, 3)))
    assert make_estimator("dfa", net).estimate(*batch(2, 7))["0.weight"].shape == (4, 7)


def test_unknown_input_shape_is_asked_for():
    net = BlockNetwork(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Flatten(), nn.Linear(8, 3)))
    with pytest.raises(InvalidInput, match=r"input_shape: got None; accepted: .*BlockNetwork\(\.\.\., input_shape="):
        net.site_shapes()


def test_wrong_input_shape_names_the_block_that_fails():
    net = BlockNetwork(nn.ReLU(), nn.Linear(4, 3), input_shape=(5,))
    with pytest.raises(InvalidInput, match=r"input_shape: got \(5,\).*block 1 \(Linear\) fails"):
        net.output_shape()


def test_input_shape_of_token_indices_is_looked_up_with_integers():
    net = BlockNetwork(nn.Embedding(9, 4), nn.Sequential(Mean(), nn.Linear(4, 3)), input_shape=(6,))
    assert net.site_shapes() == [(6, 4)]


def test_looking_up_shapes_leaves_statistics_modes_and_random_stream_alone():
    net = BlockNetwork(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()), nn.Linear(4, 3), input_shape=(4,))
    net[0][1].eval()
    before = copy.deepcopy(net.state_dict()), torch.get_rng_state(), [m.training for m in net.modules()]
    net.site_shapes()
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), net.state_dict().values(), strict=True))
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == [m.training for m in net.modules()]


@pytest.mark.parametrize("act", [lambda net, x, y: net(x), lambda net, x, y: true_gradient(net, x, y),
                                 lambda net, x, y: make_estimator("dfa", net).estimate(x, y)],
                         ids=["call", "true_gradient", "estimate"])  # fmt: skip
def test_block_that_changes_the_batch_dimension_is_named(act):
    net = BlockNetwork(nn.Linear(6, 4), BatchIntoTokens(), nn.Linear(2, 3))
    with pytest.raises(Unsupported, match=r"block 1 \(BatchIntoTokens\) changes the batch dimension from 5 to \(10,\)"):
        act(net, *batch(6))


def test_block_that_returns_a_tuple_is_named():
    net = BlockNetwork(nn.LSTM(6, 4), nn.Linear(4, 3))
    with pytest.raises(Unsupported, match=r"block 0 \(LSTM\) returns a tuple"):
        net(torch.randn(5, 6))


class OwnForward(Block):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "block", [nn.Linear(4, 4), OwnForward(nn.Linear(4, 4), nn.ReLU())], ids=["no Block", "Block with a forward of its own"]
)
def test_pre_site_of_a_block_without_one_is_refused(block):
    with pytest.raises(Unsupported, match='has no "pre" site'):
        make_estimator("fg-a", BlockNetwork(block, nn.Linear(4, 3)), site="pre")


def test_pre_site_below_an_activation_with_parameters_is_refused():
    net = BlockNetwork(Block(nn.Linear(4, 4), nn.PReLU()), nn.Linear(4, 3))
    with pytest.raises(Unsupported, match="activation of block 0 .* has parameters"):
        make_estimator("fg-a", net, site="pre")


def test_activation_with_parameters_is_trained_from_the_post_site():
    net = BlockNetwork(Block(nn.Linear(4, 4), nn.PReLU()), nn.Linear(4, 3))
    assert make_estimator("dfa", net).estimate(*batch(4))["0.activation.weight"].abs() > 0


@pytest.mark.parametrize("name", ["fg-w", "fg-a", "dfa", "fdfa"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_block_without_parameters_changes_no_other_blocks_keys(name, position):
    blocks = [Block(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)]
    blocks.insert(position, nn.Tanh())
    net = BlockNetwork(*blocks)
    estimator = make_estimator(name, net, **({"site": "post"} if name == "fg-a" else {}))
    x, y = batch(4)
    estimator.advance(x, y)
    assert {n: g.shape for n, g in estimator.estimate(x, y).items()} == {n: p.shape for n, p in net.named_parameters()}


@pytest.mark.parametrize("name", ["bp", "fg-a", "dfa", "fdfa"])
def test_gradient_of_a_module_in_two_blocks_is_the_sum_over_its_uses(name):
    cell, stem, readout = Block(nn.Linear(4, 4), nn.Tanh()), Block(nn.Linear(6, 4), nn.Tanh()), nn.Linear(4, 3)
    shared = BlockNetwork(stem, cell, cell, readout)
    apart = BlockNetwork(stem, cell, copy.deepcopy(cell), readout)
    x, y = batch(6)
    found = []
    for net in (shared, apart):
        estimator = make_estimator(name, net, seed=3)
        estimator.advance(x, y)
        found.append(estimator.estimate(x, y))
    torch.testing.assert_close(found[0]["1.affine.weight"], found[1]["1.affine.weight"] + found[1]["2.affine.weight"])


@pytest.mark.parametrize("name", ["bp", "fg-a", "fa", "dfa", "drtp", "dkp", "pepita", "fdfa", "cosine-dfa", "grape"])
def test_gradient_of_a_layer_in_a_hidden_block_and_in_the_readout_is_the_sum_over_its_uses(name):
    layer, (x, y) = nn.Linear(4, 4), batch(4, outputs=4)
    tied = BlockNetwork(Block(layer, nn.Tanh()), layer)
    apart = BlockNetwork(Block(layer, nn.Tanh()), copy.deepcopy(layer))
    one, two = (make_estimator(name, net, seed=3).estimate(x, y) for net in (tied, apart))
    torch.testing.assert_close(one["0.affine.weight"], two["0.affine.weight"] + two["1.weight"])


def test_weight_perturbation_moves_both_uses_of_a_module_together():
    cell = Block(nn.Linear(4, 4), nn.Tanh())
    net, (x, y) = BlockNetwork(cell, cell, nn.Linear(4, 3)), batch(4)
    g, target = make_estimator("fg-w", net, perturbation="rademacher").estimate(x, y), true_gradient(net, x, y)
    # g = (v · ∇) v with ‖v‖² = P, so ‖g‖² = P ⟨g, ∇⟩
    size = sum(p.numel() for p in net.parameters())
    norm2, inner = (sum((a * b).sum() for a, b in zip(g.values(), h.values(), strict=True)) for h in (g, target))
    torch.testing.assert_close(norm2, size * inner)


# Cutting -------------------------------------------------------------------------------------------------------------


def convolutional_sequence():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip


def test_flat_sequence_is_cut_at_its_activations():
    assert layout(cut(convolutional_sequence())) == [
        [["Conv2d", "BatchNorm2d"], ["ReLU", "MaxPool2d", "Dropout", "Flatten"]],
        [["Linear"], ["Tanh"]],
        ["Linear"],
    ]


def test_layers_without_parameters_before_the_first_belong_to_it():
    assert layout(cut(nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))))[0] == [
        ["Flatten", "Linear"], ["ReLU"],
    ]  # fmt: skip


def test_normalisation_after_an_activation_belongs_to_the_block_above():
    net = cut(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))
    assert layout(net)[1] == [["BatchNorm1d", "Linear"], ["ReLU"]]


def test_activation_with_parameters_ends_its_block():
    assert layout(cut(nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 3))))[0] == [["Linear"], ["PReLU"]]


def test_somebodys_own_activation_ends_its_block():
    assert layout(cut(nn.Sequential(nn.Linear(4, 4), Swish(), nn.Linear(4, 3))))[0] == [["Linear"], ["Swish"]]


def test_somebodys_own_pooling_is_told_from_an_activation_by_an_example():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4), Mean(), nn.Linear(4, 3))
    assert layout(cut(model, example=torch.randn(2, 6, 4)))[1] == ["LayerNorm", "Mean", "Linear"]


def test_nested_sequences_are_opened():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert layout(cut(nn.Sequential(inner, nn.Sequential(nn.Linear(4, 3))))) == [[["Linear"], ["ReLU"]], ["Linear"]]


def test_module_with_an_inner_structure_is_a_block_of_its_own():
    model = nn.Sequential(nn.Linear(6, 4), Residual(4), Residual(4), nn.Linear(4, 3))
    assert layout(cut(model)) == [["Linear"], ["Residual"], ["Residual"], ["Linear"]]


def test_positions_take_the_place_of_the_rule():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert layout(cut(model, at=[4])) == [[["Linear", "ReLU", "Linear"], ["ReLU"]], ["Linear"]]


def test_linear_network_is_cut_by_positions():
    assert layout(cut(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), at=[1])) == [["Linear"], ["Linear"]]


def test_named_list_of_blocks_is_cut_by_its_parts():
    net = cut(Model(), parts=[nn.Flatten(), "stem", "blocks", "norm", "head"], example=torch.randn(2, 2, 3))
    assert layout(net) == [["Flatten", "Linear"], ["Residual"], ["Residual"], ["LayerNorm", "Linear"]]


def test_cut_network_computes_what_the_module_does():
    model, x = convolutional_sequence().eval(), torch.randn(4, 1, 6, 6)
    assert torch.equal(cut(model, example=x)(x), model(x))


def test_example_gives_the_input_shape():
    assert cut(convolutional_sequence(), example=torch.randn(4, 1, 6, 6)).input_shape == (1, 6, 6)


def test_example_is_not_changed_by_a_layer_that_works_in_place():
    x = torch.randn(4, 4)
    before = x.clone()
    cut(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), example=x)
    assert torch.equal(x, before)


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.b(nn.functional.dropout(torch.relu(self.a(x)), 0.5, training=self.training))


def test_forgotten_dropout_shows_in_training_mode():
    parts = ["a", nn.ReLU(), "b"]
    with pytest.raises(InvalidInput, match="compute something else than the module in training mode"):
        cut(FunctionalDropout(), parts=parts, example=torch.randn(8, 6))
    assert len(cut(FunctionalDropout().eval(), parts=parts, example=torch.randn(8, 6))) == 2


def test_dropout_given_as_a_part_is_the_models_own_with_equal_random_numbers():
    stream = torch.get_rng_state()
    for training in (True, False):
        net = cut(FunctionalDropout().train(training), parts=["a", nn.ReLU(), nn.Dropout(0.5), "b"], example=torch.randn(8, 6))
        assert all(layer.training == training for layer in net.modules() if not list(layer.children()))
    torch.set_rng_state(stream)


def test_comparing_in_training_mode_moves_no_statistics():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    cut(model, example=torch.zeros(8, 6))
    cut(model, example=torch.zeros(1, 6))  # one sample has no batch statistics
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(stream, torch.get_rng_state())


def test_part_that_returns_a_tuple_is_named():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    with pytest.raises(Unsupported, match="parts: LSTM rnn returns a tuple; a part maps one tensor to one tensor"):
        cut(Recurrent(), parts=["rnn", "fc"], example=torch.randn(4, 5, 6))


def test_model_that_returns_an_object_is_named():
    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            return {"logits": self.b(self.a(x))}

    with pytest.raises(Unsupported, match="Output returns a dict; a network returns one tensor: wrap it"):
        cut(Output(), parts=["a", "b"], example=torch.randn(4, 6))


def test_example_gives_lazy_layers_their_size():
    net = cut(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3)), example=torch.randn(2, 6))
    assert net.site_shapes() == [(4,)]


def test_training_the_cut_network_trains_the_module():
    model, (x, y) = convolutional_sequence(), batch(1, 6, 6)
    net = cut(model)
    before = model[0].weight.detach().clone()
    make_estimator("dfa", net).backward(x, y)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model[0].weight, before)


def test_cutting_keeps_every_layers_mode():
    model = convolutional_sequence()
    model[1].eval()
    cut(model, example=torch.randn(2, 1, 6, 6))
    assert [m.training for m in model] == [True, False] + [True] * 7


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Model(), {}, r"got 'Model'; accepted: an nn.Sequential, or any module with parts=\[…\] .*stem, blocks, norm, head"),
        (Model(), {"parts": ["stem", "head"]}, "example: got None"),
        (Model(), {"parts": ["steam"], "example": torch.randn(2, 6)}, "parts: got 'steam'.*children of Model: stem"),
        (Model(), {"parts": ["stem", "blocks", "head"], "example": torch.randn(2, 6)}, "compute something else"),
        (Model(), {"parts": ["stem", "blocks", "norm", "head"], "example": torch.randn(2, 2, 3)}, "got 'Linear, which fails"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), {}, "accepted: activations between layers, or at="),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {}, "accepted: activations between layers, or at="),
        (convolutional_sequence(), {"at": [6, 3]}, r"at: got \[6, 3\]; accepted: increasing positions from 1 to 8"),
        (convolutional_sequence(), {"at": [9]}, r"at: got \[9\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_says_why(module, options, message):
    with pytest.raises(InvalidInput, match=message):
        cut(module, **options)


def test_part_with_parameters_that_do_not_matter_on_the_example_is_missed():
    model = Model()
    nn.init.zeros_(model.norm.weight), nn.init.zeros_(model.norm.bias)
    model.norm = nn.Identity()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(InvalidInput, match="accepted: what holds unused.weight, unused.bias too"):
        cut(model, parts=["stem", "blocks", "head"], example=torch.randn(2, 6))


def test_hooks_of_the_module_itself_are_not_dropped_in_silence():
    model = convolutional_sequence()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(Unsupported, match="Sequential has forward hooks"):
        cut(model)


def test_hook_of_a_nested_sequence_is_still_called():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3))
    called = []
    model[0].register_forward_hook(lambda *_: called.append(True))
    cut(model)(torch.randn(2, 4))
    assert called


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["fg-w", "fg-a", "dfa", "fdfa"])
def test_network_on_a_gpu_is_estimated_there(name):
    net = fully_connected([4, 5, 3], batch_norm=True, seed=0).cuda()
    estimator = make_estimator(name, net, replicas=3)
    estimator.advance(*batch(4))
    assert {g.device for g in estimator.sample(*batch(4), 3).values()} == {next(net.parameters()).device}


# Networks of known classes, of inputs by name, and of parts that return several tensors -------------------------------------


class ResNet(nn.Module):
    """A small one, with the names of torchvision's."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.maxpool, self.avgpool, self.fc = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)
        for i in range(1, 5):
            setattr(self, f"layer{i}", nn.Sequential(*(Residual(4) for _ in range(i % 2 + 1))))

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x.transpose(1, -1))))).transpose(1, -1)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VisionTransformer(nn.Module):
    """A small one, with the names of torchvision's."""

    def __init__(self):
        super().__init__()
        self.conv_proj, self.class_token = nn.Conv2d(1, 4, 2, 2), nn.Parameter(torch.randn(1, 1, 4))
        self.encoder = nn.Module()
        self.encoder.pos_embedding, self.encoder.dropout = nn.Parameter(torch.randn(1, 10, 4)), nn.Dropout(0.2)
        self.encoder.layers, self.encoder.ln = nn.Sequential(Residual(4), Residual(4)), nn.LayerNorm(4)
        self.heads = nn.Sequential(nn.Linear(4, 3))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        return self.heads(self.encoder.ln(self.encoder.layers(self.encoder.dropout(x)))[:, 0])


class Attention(nn.Module):
    """A layer of a transformer that is called as those of transformers are."""

    def __init__(self, attention):
        super().__init__()
        self.project, self.attention = nn.Linear(4, 12), attention

    def forward(self, values, attention_mask=None):
        q, k, v = self.project(values).unsqueeze(1).chunk(3, -1)
        if self.attention == "sdpa":
            assert attention_mask.dtype is torch.bool
            return values + nn.functional.scaled_dot_product_attention(q, k, v, attention_mask).squeeze(1)
        return (values + ((q @ k.transpose(-1, -2) / 2 + attention_mask).softmax(-1) @ v).squeeze(1), "weights")


class GPT2LMHeadModel(nn.Module):
    """A small one, with the names of transformers'; with `ends` it scores the last token that is no padding."""

    head = "lm_head"

    def __init__(self, attention):
        super().__init__()
        self.config = types.SimpleNamespace(hidden_size=4, pad_token_id=0, _attn_implementation=attention)
        self.transformer = base = nn.Module()
        base.wte, base.wpe, base.drop = nn.Embedding(9, 4), nn.Embedding(6, 4), nn.Dropout(0.1)
        base.h, base.ln_f = nn.ModuleList(Attention(attention) for _ in range(2)), nn.LayerNorm(4)
        setattr(self, self.head, nn.Linear(4, 9, bias=False))
        if self.head == "lm_head":
            self.lm_head.weight = base.wte.weight

    def forward(self, input_ids, attention_mask=None):
        base, (samples, length) = self.transformer, input_ids.shape
        seen = torch.ones(length, length, dtype=torch.bool).tril().expand(samples, 1, length, length)
        seen = seen if attention_mask is None else seen & attention_mask.bool()[:, None, None, :]
        added = torch.zeros(seen.shape, dtype=base.wte.weight.dtype).masked_fill(~seen, -1e30)
        x = base.drop(base.wte(input_ids) + base.wpe(torch.arange(length)))
        for layer in base.h:
            x = layer(x, seen) if layer.attention == "sdpa" else layer(x, added)[0]
        scores = getattr(self, self.head)(base.ln_f(x))
        if self.head != "lm_head":
            scores = scores[torch.arange(samples), ((input_ids != 0) * torch.arange(length)).argmax(1)]
        return types.SimpleNamespace(logits=scores)


class GPT2ForSequenceClassification(GPT2LMHeadModel):
    head = "score"


def text():
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 0, 0], [8, 7, 0, 0, 0], [1, 2, 3, 4, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def per_token(outputs, targets):
    return nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def test_a_known_class_is_cut_without_parts():
    model = VisionTransformer().double()
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    net = cut(model, example=x)
    assert [type(block).__name__ for block in net] == ["ClassToken", "Residual", "Residual", "Sequential"]
    assert net.site_shapes() == [(10, 4)] * 3
    assert torch.equal(cut(model.eval(), example=x)(x), model(x))
    assert [p for p in net.parameters() if not any(p is q for q in model.parameters())] == []


def test_cutting_a_known_class_keeps_every_layers_mode():
    model = VisionTransformer()
    model.encoder.dropout.eval(), model.encoder.layers[0].eval()
    modes = [part.training for part in model.modules()]
    net = cut(model, example=torch.randn(4, 1, 6, 6))
    assert [part.training for part in model.modules()] == modes and net[0].training
    assert not cut(model.eval(), example=torch.randn(4, 1, 6, 6))[0].training


def test_a_cut_network_may_be_cut_again_and_takes_the_same_inputs():
    model, x = GPT2ForSequenceClassification("sdpa").eval(), text()
    net = cut(model, example=x)
    for again in (cut(net, at=[2]), cut(net, at=[2], example=x)):
        assert len(again) == 2 and torch.equal(again(x), net(x))


def test_a_known_class_of_another_kind_is_refused_with_the_remedy():
    with pytest.raises(InvalidInput, match=r"module: got 'a ResNet of another kind'.*parts=\[…\].*children of ResNet: conv1"):
        cut(ResNet(), example=torch.randn(2, 1, 8, 8))
    with pytest.raises(InvalidInput, match="example: got None; accepted: a batch of inputs: the cut of a ResNet"):
        cut(ResNet())


def test_a_class_that_only_shares_a_name_is_not_taken_for_the_known_one():
    other = type("VisionTransformer", (Model,), {})()
    with pytest.raises(InvalidInput, match="got 'VisionTransformer'; accepted: an nn.Sequential, or any module with parts"):
        cut(other, example=torch.randn(2, 6))


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2ForSequenceClassification])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_text_model_is_cut_with_its_mask(kind, attention):
    """Its gradient is that of the whole model, and a direction's slope that of reverse mode."""
    torch.manual_seed(0)
    model, x = kind(attention).double().eval(), text()
    net = cut(model, example=x)
    y = torch.randint(9, (4, 5) if kind is GPT2LMHeadModel else (4,))
    loss = per_token if kind is GPT2LMHeadModel else "cross_entropy"
    value = per_token(model(**x).logits, y) if loss is per_token else nn.functional.cross_entropy(model(**x).logits, y)
    expected = dict(zip(model.parameters(), torch.autograd.grad(value.mean(), list(model.parameters())), strict=True))
    found = true_gradient(net, x, y, loss)
    assert {p for _, p in net.named_parameters()} == set(expected)
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], expected[p])
    estimator = make_estimator("fg-w", net, loss=loss, perturbation="rademacher", seed=0)
    estimate = torch.cat([g.flatten() for g in estimator.estimate(x, y).values()])
    slope = estimate.abs().max()
    assert float((estimate / slope) @ torch.cat([g.flatten() for g in found.values()])) == pytest.approx(float(slope), rel=1e-8)
    changed = text() | {"attention_mask": torch.tensor([1, 0, 1, 1, 1]).expand(4, 5)}
    assert not torch.allclose(net(changed), net(x)) and torch.allclose(net(changed), model(**changed).logits)


def test_inputs_by_name_are_taken_wherever_a_batch_is(tmp_path):
    model, x, y = GPT2ForSequenceClassification("sdpa"), text(), torch.tensor([0, 1, 2, 1])
    net = cut(model, example=x)
    assert measure(net, x, y, ["bp", "fdfa"], 2, burn_in=1)["variance"].notna().all()
    assert diagnose(net, x, y).ok
    with Monitor(net, ["bp", "fdfa"], reference=(x, y), directory=tmp_path, every=1, replicates=2) as monitor:
        monitor.observe({name: value[:2] for name, value in x.items()}, y[:2])
    assert monitor.path.exists()
    assert copy.deepcopy(net)(x).shape == (4, 9)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"input_ids": torch.ones(4, 5).long()}, r"x: keys: got \['input_ids'\]; accepted: those of the example: input_ids"),
        (text() | {"attention_mask": torch.ones(4)}, r"attention_mask'\]: shape: got \(4,\); accepted: \(4, 5\), the shape"),
        (text() | {"attention_mask": torch.ones(4, 5)}, r"x\['attention_mask'\]: dtype: got torch.float32; accepted: integers"),
        (text() | {"attention_mask": [1]}, r"x\['attention_mask'\]: got 'a list'"),
    ],
)
def test_other_inputs_by_name_are_refused(x, message):
    net = cut(GPT2ForSequenceClassification("sdpa"), example=text())
    with pytest.raises(InvalidInput, match=message):
        make_estimator("bp", net).backward(x, torch.tensor([0, 1, 2, 1]))


def test_real_inputs_in_a_dict_are_taken():
    class Sum(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs["left"] + 2 * inputs["right"])

    model, x = nn.Sequential(Sum(4, 5), nn.Tanh(), nn.Linear(5, 3)), {"left": torch.randn(3, 4), "right": torch.randn(3, 4)}
    net = cut(model, example=x)
    assert torch.equal(net(x), model(x)) and net.site_shapes() == [(5,)]
    make_estimator("fdfa", net).backward(x, torch.tensor([0, 1, 2]))


class Last(nn.Module):
    def forward(self, pair):
        return pair[0][:, -1]


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_makes_one_block_with_what_takes_its_output(layer):
    model = nn.Sequential(nn.Embedding(9, 4), layer(4, 6, batch_first=True), Last(), nn.Linear(6, 3))
    x = torch.randint(9, (5, 7))
    for net in (cut(model), cut(model, example=x), cut(model, at=[1, 3])):
        assert torch.equal(net(x), model(x)) and len(net) == 3
        make_estimator("fdfa", net).backward(x, torch.zeros(5).long())
    with pytest.raises(InvalidInput, match="at: .*accepted: a cut elsewhere: .* returns several tensors"):
        cut(model, at=[1, 2])


def test_the_layers_of_an_encoder_are_blocks():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(4), enable_nested_tensor=False)
    x = torch.randn(3, 5, 4)
    assert len(cut(encoder, example=x)) == 3
    model = nn.Sequential(nn.Linear(4, 4), encoder, nn.Flatten(), nn.Linear(20, 3))
    net = cut(model.eval(), example=x)
    assert len(net) == 4 and torch.allclose(net(x), model(x))
