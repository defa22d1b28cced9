"""A small vision transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.parts import image_shape, positive_sizes, seeded


class PatchEmbedding(nn.Module):
    """Cut an image into patches, map each linearly to a token, add a learnt position (Dosovitskiy et al. 2021).

    Args:
        input_shape: channels, height, width.
        patch: side of a square patch.
        dimension: of a token.
    """

    def __init__(self, input_shape: Sequence[int], patch: int, dimension: int):
        super().__init__()
        channels, height, width = input_shape
        self.projection = nn.Conv2d(channels, dimension, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn((height // patch) * (width // patch), dimension))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to tokens (N, T, dimension)."""
        return self.projection(x).flatten(2).transpose(1, 2) + self.position


class AttentionBlock(nn.Module):
    """x + attention(norm x), then x + mlp(norm x): a pre-norm transformer block (Vaswani et al. 2017, Xiong et al. 2020).

    Args:
        dimension: of a token.
        heads: of the attention; divides the dimension.
        mlp_ratio: hidden width of the mlp over the dimension.
    """

    def __init__(self, dimension: int, heads: int, mlp_ratio: int = 2):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dimension), nn.LayerNorm(dimension)
        self.qkv, self.projection = nn.Linear(dimension, 3 * dimension), nn.Linear(dimension, dimension)
        inner = mlp_ratio * dimension
        self.mlp = nn.Sequential(nn.Linear(dimension, inner), nn.GELU(), nn.Linear(inner, dimension))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, dimension) to tokens."""
        x = x + self.projection(self.attention(self.attention_norm(x)))
        return x + self.mlp(self.mlp_norm(x))

    def attention(self, x: Tensor) -> Tensor:
        """Return softmax(q kᵀ/√d) v of every head, side by side."""
        # written out: torch's fused attention has no forward-mode derivative
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(-2)


class TokenMean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, dimension) to (N, dimension)."""
        return x.mean(1)


def transformer(
    input_shape: Sequence[int],
    outputs: int,
    *,
    patch: int = 2,
    dimension: int = 32,
    heads: int = 2,
    depth: int = 2,
    mlp_ratio: int = 2,
    seed: int | None = None,
) -> BlockNetwork:
    """Return a small vision transformer: patch embedding, attention blocks, and a readout of the normalised token mean.

    Its blocks have only the "post" site, whose shape is (tokens, dimension).

    Args:
        input_shape: channels, height, width of one image.
        outputs: number of outputs.
        patch: side of a square patch; divides height and width.
        dimension: of a token.
        heads: of the attention; divides the dimension.
        depth: number of attention blocks.
        mlp_ratio: hidden width of a block's mlp over the dimension.
        seed: of the initial weights; None draws them from torch's global stream. Positions are drawn from N(0, 0.02²).

    Raises:
        InvalidInput: a patch that does not divide the image, heads that do not divide the dimension, a size below one.

    Examples:
        >>> from fdfa_core import transformer
        >>> net = transformer((1, 8, 8), 10, patch=4, dimension=8, depth=1, seed=0)
        >>> net.site_shapes()
        [(4, 8), (4, 8)]
    """
    image = image_shape(input_shape)
    positive_sizes("outputs, patch, dimension, heads, depth, mlp_ratio", (outputs, patch, dimension, heads, depth, mlp_ratio))
    if image[1] % patch or image[2] % patch:
        raise InvalidInput("patch", patch, f"a divisor of the image's height and width {image[1:]}")
    if dimension % heads:
        raise InvalidInput("heads", heads, f"a divisor of the dimension {dimension}")
    with seeded(seed):
        blocks = [PatchEmbedding(image, patch, dimension)]
        blocks += [AttentionBlock(dimension, heads, mlp_ratio) for _ in range(depth)]
        readout = nn.Sequential(nn.LayerNorm(dimension), TokenMean(), nn.Linear(dimension, outputs))
        return BlockNetwork(*blocks, readout, input_shape=image)
