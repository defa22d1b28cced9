"""What happens to a normalised batch of images: scaling, random crops and flips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fdfa_core.errors import InvalidInput


class Transform(Protocol):
    """Maps images (b, C, H, W) to images (b, C, *size)."""

    size: tuple[int, int]

    def __call__(self, x: Tensor, generator: Generator | None) -> Tensor:
        """The transformed images."""


@dataclass(frozen=True)
class Resize:
    """Bilinear scaling to `size` = (height, width); smoothed where it shrinks."""

    size: tuple[int, int]

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Scale x (b, C, H, W) to (b, C, *size)."""
        return F.interpolate(x, self.size, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of each image, flipped with probability ½, scaled to `size` = (height, width) bilinearly.

    The box covers a share of the image drawn uniformly from `area`; its aspect ratio is log-uniform in `aspect`; its
    place is uniform over where it fits (Szegedy et al. 2015, section 6). A side longer than the image's is cut to it.

    Raises:
        InvalidInput: called without a generator.
    """

    size: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __call__(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Crop x (b, C, H, W) to (b, C, *size); each image draws its own box from `generator`."""
        if generator is None:
            raise InvalidInput("generator", generator, "a torch.Generator: this transform is random")
        area, aspect, left, top, mirror = torch.rand(5, len(x), generator=generator)
        area = torch.lerp(*torch.tensor(self.area, dtype=torch.float32), area)
        aspect = torch.lerp(*torch.tensor(self.aspect, dtype=torch.float32).log(), aspect).exp()
        # For affine_grid an image spans [-1, 1]: the centre of a box of width share w lies within 1 - w of the middle.
        width = (area * aspect).sqrt().clamp_max(1)
        height = (area / aspect).sqrt().clamp_max(1)
        boxes = torch.zeros(len(x), 2, 3)
        boxes[:, 0, 0] = torch.where(mirror < 0.5, -width, width) if self.flip else width
        boxes[:, 0, 2] = (2 * left - 1) * (1 - width)
        boxes[:, 1, 1] = height
        boxes[:, 1, 2] = (2 * top - 1) * (1 - height)
        grid = F.affine_grid(boxes.to(x), [*x.shape[:2], *self.size], align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
