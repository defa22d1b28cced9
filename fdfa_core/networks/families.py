"""Where well-known networks can be cut: the parts of their classes, in the order in which they are called.

Classes are known by their names in torchvision, timm and transformers, and by what they hold. None of these packages is
imported. An entry is a proposal: `fdfa_core.cut` compares the parts with the module on an example, and refuses what computes
something else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Parts = list[str | nn.Module]


class Mean(nn.Module):
    """The mean over some dimensions."""

    def __init__(self, *dimensions: int):
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: Tensor) -> Tensor:
        """Average (N, …) over the dimensions."""
        return x.mean(self.dimensions)


class Taken(nn.Module):
    """One of the tokens of a sample."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """Take (N, D) out of (N, T, D)."""
        return x[:, self.index]


class ClassToken(nn.Module):
    """Makes tokens of the patches of an image, puts a class token before them, and adds positions.

    Args:
        patches: makes tokens (N, T, D), or a map (N, D, height, width) of them.
        token: the class token (1, 1, D).
        position: positions (1, T + 1, D).
        above: what follows, e.g. dropout.
    """

    def __init__(self, patches: nn.Module, token: nn.Parameter, position: nn.Parameter, *above: nn.Module):
        super().__init__()
        self.patches, self.token, self.position = patches, token, position
        self.above = nn.Sequential(*above)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, height, width) to tokens (N, T + 1, D)."""
        x = self.patches(x)
        x = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        return self.above(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position)


# Names of parts, and makers of what a forward does between them; of several rows, the first whose names a module has.
_IMAGES: dict[str, list[list[str | Callable[[], nn.Module]]]] = {
    "AlexNet": [["features", "avgpool", nn.Flatten, "classifier"]],
    "ConvNeXt": [
        ["features", "avgpool", "classifier"],
        ["stem", "stages", "norm_pre", "head"],
    ],
    "DenseNet": [["features", nn.ReLU, partial(nn.AdaptiveAvgPool2d, 1), nn.Flatten, "classifier"]],
    "EfficientNet": [
        ["features", "avgpool", nn.Flatten, "classifier"],
        ["conv_stem", "bn1", "blocks", "conv_head", "bn2", "global_pool", "classifier"],
    ],
    "MNASNet": [["layers", partial(Mean, 2, 3), "classifier"]],
    "MlpMixer": [["stem", "blocks", "norm", partial(Mean, 1), "head_drop", "head"]],
    "MobileNetV2": [["features", partial(nn.AdaptiveAvgPool2d, 1), nn.Flatten, "classifier"]],
    "MobileNetV3": [["features", "avgpool", nn.Flatten, "classifier"]],
    "RegNet": [
        ["stem", "trunk_output", "avgpool", nn.Flatten, "fc"],
        ["stem", "s1", "s2", "s3", "s4", "final_conv", "head"],
    ],
    "ResNet": [
        ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", nn.Flatten, "fc"],
        ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4", "global_pool", "fc"],
    ],
    "ShuffleNetV2": [["conv1", "maxpool", "stage2", "stage3", "stage4", "conv5", partial(Mean, 2, 3), "fc"]],
    "SqueezeNet": [["features", "classifier", nn.Flatten]],
    "SwinTransformer": [["features", "norm", "permute", "avgpool", "flatten", "head"]],
    "VGG": [["features", "avgpool", nn.Flatten, "classifier"]],
}


class Embedded(nn.Module):
    """Embeds the tokens of a text, and puts beside the values of each token what the parts above have to know.

    These are the mask, if the inputs have one, and with `ends` a mark at the last token that is no padding. A mark has no
    derivative, and no part changes it.

    Args:
        embeddings: as `embed` needs them.
        embed: (the module, token ids, token types or None, positions or None) → values (N, T, D).
        ends: mark the last token.
        padding: the id of a token that is padding.
    """

    def __init__(self, embeddings: nn.ModuleList, embed: Callable[..., Tensor], ends: bool = False, padding: int | None = None):
        super().__init__()
        self.embeddings, self.embed, self.ends, self.padding = embeddings, embed, ends, padding

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None) -> Tensor:
        """Map ids (N, T) to values and marks (N, T, D + marks)."""
        values = self.embed(self.embeddings, input_ids, token_type_ids, position_ids)
        marks = [] if attention_mask is None else [attention_mask]
        if self.ends:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            kept = torch.ones_like(input_ids) if self.padding is None else input_ids != self.padding
            marks.append(places == (places * kept).argmax(1, keepdim=True))
        return torch.cat([values, *(mark.to(values.dtype).unsqueeze(-1) for mark in marks)], -1)


class Masked(nn.Module):
    """A layer of a transformer that takes the mask from beside the values.

    Args:
        layer: called as ``layer(values, attention_mask=mask)``; a tuple gives its first part.
        config: of the model: the size of the values, and which attention it uses.
        masked: whether the first mark is a mask.
        causal: whether no token sees what follows it.
    """

    def __init__(self, layer: nn.Module, config: Any, masked: bool, causal: bool):
        super().__init__()
        self.layer, self.config, self.masked, self.causal = layer, config, masked, causal

    def forward(self, x: Tensor) -> Tensor:
        """Map values and marks (N, T, D + marks) to as many."""
        values, marks = _split(x, self.config)
        values = self.layer(values, attention_mask=self._mask(values, marks))
        return torch.cat([values[0] if isinstance(values, tuple) else values, marks], -1)

    def _mask(self, values: Tensor, marks: Tensor) -> Tensor | None:
        if not (self.masked or self.causal):
            return None
        length = values.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=values.device)
        seen = (seen.tril() if self.causal else seen).expand(len(values), 1, length, length)
        if self.masked:
            seen = seen & (marks[:, None, None, :, 0] > 0.5)
        if getattr(self.config, "_attn_implementation", "eager") != "eager":
            return seen
        return torch.zeros_like(seen, dtype=values.dtype).masked_fill(~seen, torch.finfo(values.dtype).min)


class Scored(nn.Module):
    """What stands above the layers of a text: it lets go of the marks, after taking the marked token, if it is asked to.

    Args:
        layers: called in turn.
        config: as of `Masked`.
        ends: take the token that the last mark shows.
    """

    def __init__(self, layers: Sequence[nn.Module], config: Any, ends: bool = False):
        super().__init__()
        self.layers, self.config, self.ends = nn.ModuleList(layers), config, ends

    def forward(self, x: Tensor) -> Tensor:
        """Map values and marks (N, T, D + marks) to outputs (N, O), or (N, T, V)."""
        values, marks = _split(x, self.config)
        if self.ends:
            values = values[torch.arange(len(values), device=values.device), marks[..., -1].argmax(1)]
        for layer in self.layers:
            values = layer(values)
        return values


def _split(x: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    return x[..., : config.hidden_size], x[..., config.hidden_size :]


def _bert_values(embeddings, ids, types, positions) -> Tensor:
    return embeddings[0](input_ids=ids, token_type_ids=types, position_ids=positions)


def _bert(model: nn.Module, given: Collection[str], head: Callable[[nn.Module], list[nn.Module]]) -> Parts:
    bert, masked = model.bert, "attention_mask" in given
    layers = [Masked(layer, model.config, masked, causal=model.config.is_decoder) for layer in bert.encoder.layer]
    return [Embedded(nn.ModuleList([bert.embeddings]), _bert_values), *layers, Scored(head(model), model.config)]


def _gpt2_values(embeddings, ids, types, positions) -> Tensor:
    tokens, places, dropout = embeddings
    positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) if positions is None else positions
    values = tokens(ids) + places(positions)
    return dropout(values if types is None else values + tokens(types))


def _gpt2(model: nn.Module, given: Collection[str], head: str, ends: bool) -> Parts:
    base, masked = model.transformer, "attention_mask" in given
    stem = Embedded(nn.ModuleList([base.wte, base.wpe, base.drop]), _gpt2_values, ends, model.config.pad_token_id)
    layers = [Masked(layer, model.config, masked, causal=True) for layer in base.h]
    return [stem, *layers, Scored([base.ln_f, model.get_submodule(head)], model.config, ends)]


def _vision_transformer(model: nn.Module, given: Collection[str]) -> Parts:
    if hasattr(model, "conv_proj"):  # torchvision's
        encoder = model.encoder
        stem = ClassToken(model.conv_proj, model.class_token, encoder.pos_embedding, encoder.dropout)
        return [stem, encoder.layers, encoder.ln, Taken(0), "heads"]
    stem = ClassToken(model.patch_embed, model.cls_token, model.pos_embed, model.pos_drop, model.patch_drop, model.norm_pre)
    return [stem, "blocks", "norm", Taken(0), "fc_norm", "head_drop", "head"]


def _encoder(model: nn.Module, given: Collection[str]) -> Parts:
    return ["layers", *([] if model.norm is None else ["norm"])]


_MADE: dict[str, Callable[[nn.Module, Collection[str]], Parts]] = {
    "BertForSequenceClassification": partial(_bert, head=lambda model: [model.bert.pooler, model.dropout, model.classifier]),
    "BertForTokenClassification": partial(_bert, head=lambda model: [model.dropout, model.classifier]),
    "GPT2ForSequenceClassification": partial(_gpt2, head="score", ends=True),
    "GPT2LMHeadModel": partial(_gpt2, head="lm_head", ends=False),
    "TransformerEncoder": _encoder,
    "VisionTransformer": _vision_transformer,
}
FAMILIES = tuple(sorted({*_IMAGES, *_MADE}))


def known_parts(module: nn.Module, given: Collection[str] = ()) -> Parts | None:
    """Return the parts of a module of a known class, or of a subclass of one, in the order in which it calls them.

    Args:
        module: the module.
        given: the names of its inputs, where it takes several.

    Returns:
        Names of submodules, and modules that do what the module's forward does between them; None for a module of another kind.

    Examples:
        >>> from torch import nn
        >>> from fdfa_core.networks.families import known_parts
        >>> known_parts(nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, batch_first=True), 3))
        ['layers']
        >>> known_parts(nn.Linear(4, 3)) is None
        True
    """
    for name in (cls.__name__ for cls in type(module).__mro__):
        if name in _MADE:
            try:
                return _MADE[name](module, given)
            except AttributeError:  # another class of this name
                continue
        for row in _IMAGES.get(name, ()):
            if all(hasattr(module, part) for part in row if isinstance(part, str)):
                return [part if isinstance(part, str) else part() for part in row]
    return None
