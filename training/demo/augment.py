"""Broad augmentation for the teacher: colour maps and filters, none of them modelled on a domain.

It shares grey, blur and edges with the domains, and some random combinations resemble one (edges on a flat colour look
like `sketch`), but it has no heat colours, ruled paper, haze or green night light.

Each operation is applied to a random subset of the images, with random strength per image. All take images in [0, 1]
and a generator. Shapes: N images, C=3, H=W=64.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from training.demo.filters import blur, edges, grey
from training.demo.render import uniform

Operation = Callable[[Tensor, torch.Generator], Tensor]


def _per_picture(picture: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return uniform(len(picture), low, high, generator, 4)


def _colour(picture: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(picture), 3, 1, 1, generator=generator) * (high - low) + low


def to_grey(picture: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - one signature for all
    """Convert to grey."""
    return grey(picture).expand(-1, 3, -1, -1)


def invert(picture: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - one signature for all
    """Invert brightness and colours."""
    return 1 - picture


def swap_channels(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Permute red, green and blue, the same way for all images of the call."""
    return picture[:, torch.randperm(3, generator=generator)]


def map_grey(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Map grey levels to a random line in colour space."""
    middle, direction = _colour(picture, 0, 1, generator), _colour(picture, -1.6, 1.6, generator)
    return (grey(picture) - middle) * direction + _colour(picture, 0.2, 0.8, generator)


def soften(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Blur."""
    return blur(picture, float(torch.rand(1, generator=generator)) * 1.1 + 0.4)


def sharpen(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Amplify detail (unsharp mask)."""
    return picture + (picture - blur(picture, 1.5)) * _per_picture(picture, 1, 4, generator)


def keep_detail(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Keep detail only, in grey (high-pass filter)."""
    level = grey(picture)
    detail = (level - blur(level, 2.5)) * _per_picture(picture, 1, 3, generator)
    return (0.5 + detail).expand(-1, 3, -1, -1)


def mix_edges(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Blend edges, lighter or darker, over a flat colour."""
    share = _per_picture(picture, 0, 0.7, generator)
    drawn = _colour(picture, 0, 1, generator) + edges(picture) * _per_picture(picture, -3, 3, generator)
    return share * picture + (1 - share) * drawn


def lower_contrast(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Reduce contrast and shift brightness."""
    return picture * _per_picture(picture, 0.15, 1, generator) + _per_picture(picture, 0, 0.3, generator)


def add_noise(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Add pixel noise."""
    noise = torch.randn(picture.shape, generator=generator)
    return picture + noise * _per_picture(picture, 0.02, 0.12, generator)


OPERATIONS: Final[tuple[tuple[float, Operation], ...]] = (
    (0.25, to_grey),
    (0.20, invert),
    (0.20, swap_channels),
    (0.20, map_grey),
    (0.30, soften),
    (0.20, sharpen),
    (0.15, keep_detail),
    (0.15, mix_edges),
    (0.30, lower_contrast),
    (0.30, add_noise),
)
"""Operations in order, with the share of augmented images each applies to."""


def augment_broadly(picture: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Augment a random subset of the images.

    Args:
        picture: float32 [N, 3, H, W] in [0, 1]; not modified.
        share: probability that an image is augmented, 0 to 1.
        generator: random generator.

    Returns:
        float32 [N, 3, H, W] in [0, 1].
    """
    picture = picture.clone()
    is_chosen = torch.rand(len(picture), generator=generator) < share
    for chance, operation in OPERATIONS:
        rows = torch.nonzero(is_chosen & (torch.rand(len(picture), generator=generator) < chance)).flatten()
        if len(rows):
            picture[rows] = operation(picture[rows], generator).clamp(0, 1)
    return picture
