"""The six shifted domains, and two that were not used to choose recipes.

A domain restyles clean images without changing class, pose or pattern. Pre-training does not use these functions.
Shapes: N images, C=3, H=W=64.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from training.demo.filters import blur, edges, grey
from training.demo.render import Restyle, smooth_noise, uniform
from training.demo.world import IMAGE_SIZE

_GRID_PX: Final = 8
_HEAT: Final = (
    (0.00, 0.00, 0.10),
    (0.25, 0.00, 0.50),
    (0.75, 0.10, 0.45),
    (0.98, 0.45, 0.05),
    (1.00, 0.85, 0.20),
    (1.00, 1.00, 0.90),
)


def _per_picture(picture: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return uniform(len(picture), low, high, generator, 4)


def _noise(n: int, n_channels: int, size: float, generator: torch.Generator) -> Tensor:
    return torch.randn(n, n_channels, IMAGE_SIZE, IMAGE_SIZE, generator=generator) * size


def _rgb(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1)


def _look_up(level_N1HW: Tensor, table: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Map a level in [0, 1] to a colour by linear interpolation in a table."""
    colours = torch.tensor(table)
    place = level_N1HW[:, 0].clamp(0, 1) * (len(table) - 1)
    lower = place.floor().clamp(max=len(table) - 2).long()
    share = (place - lower)[..., None]
    return (colours[lower] * (1 - share) + colours[lower + 1] * share).permute(0, 3, 1, 2)


def sketch(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Pencil on paper: dark outlines, no fill."""
    lines = (edges(blur(picture, 0.7)) * _per_picture(picture, 2.5, 4.5, generator)).clamp(0, 1)
    paper = 0.93 + (smooth_noise(len(picture), 1, 8, generator) - 0.5) * 0.12
    return (paper - 0.85 * lines + _noise(len(picture), 1, 0.06, generator)).expand(-1, 3, -1, -1)


def thermal(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Thermal camera: one blurred level, sometimes inverted, in false colours."""
    level = blur(grey(picture), 1.0)
    low, high = level.amin((1, 2, 3), keepdim=True), level.amax((1, 2, 3), keepdim=True)
    level = (level - low) / (high - low + 1e-3)
    is_cold = (_per_picture(picture, 0, 1, generator) < 0.5).float()
    level = is_cold * (1 - level) + (1 - is_cold) * level
    return _look_up(level, _HEAT) + _noise(len(picture), 3, 0.05, generator)


def night(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Night vision: dark, green, noisy."""
    level = grey(picture) * _per_picture(picture, 0.20, 0.40, generator)
    tinted = torch.cat([level * 0.5, level * 1.2, level * 0.6], 1)
    return tinted + 0.03 + _noise(len(picture), 3, 0.04, generator)


def blueprint(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Blueprint: pale outlines on ruled blue paper."""
    n = len(picture)
    lines = (edges(blur(picture, 0.6)) * _per_picture(picture, 2.0, 4.0, generator)).clamp(0, 1)
    is_ruled = torch.arange(IMAGE_SIZE) % _GRID_PX == 0
    ruling = (is_ruled[:, None] | is_ruled[None]).float() * 0.06
    paper = _rgb(0.08, 0.20, 0.55) + smooth_noise(n, 1, 4, generator) * 0.08
    ink = _rgb(0.85, 0.90, 1.00)
    return paper + ruling + lines * (ink - paper) + _noise(n, 3, 0.04, generator)


def satellite(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Satellite view: half the resolution, haze, thin clouds."""
    n = len(picture)
    coarse = F.interpolate(picture, size=(30, 30), mode="area")
    coarse = F.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    haze = _per_picture(picture, 0.45, 0.65, generator)
    clouds = smooth_noise(n, 1, 8, generator) * 0.15 - 0.07
    return coarse * (1 - haze) + haze * _rgb(0.75, 0.78, 0.80) + clouds + _noise(n, 3, 0.03, generator)


def negative(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Film negative: inverted brightness, rotated colours, low contrast."""
    turned = (1 - picture)[:, [1, 2, 0]] * _per_picture(picture, 0.45, 0.80, generator)
    return turned + _per_picture(picture, 0.0, 0.2, generator) + _noise(len(picture), 3, 0.05, generator)


def sepia(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Faded photograph: brown tones, low contrast, dark corners, stains, grain."""
    n = len(picture)
    level = blur(grey(picture), 0.6) * _per_picture(picture, 0.4, 0.7, generator)
    level = level + _per_picture(picture, 0.15, 0.30, generator) + (smooth_noise(n, 1, 6, generator) - 0.5) * 0.15
    line = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1
    corners = 1 - 0.25 * (line[:, None] ** 2 + line[None] ** 2)
    return level * corners * _rgb(1.10, 0.88, 0.62) + _noise(n, 1, 0.05, generator)


def dusk(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Evening light: darker, orange, slightly out of focus, noisy."""
    n = len(picture)
    dimmed = blur(picture, 0.6) * _per_picture(picture, 0.45, 0.75, generator) * _rgb(1.15, 0.90, 0.70)
    return dimmed + 0.08 * smooth_noise(n, 1, 6, generator) + _noise(n, 3, 0.04, generator)


def clean(picture: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - one signature for all
    """Unchanged images, as in pre-training."""
    return picture


SHIFTED: Final[dict[str, Restyle]] = {
    "sketch": sketch,
    "thermal": thermal,
    "night": night,
    "blueprint": blueprint,
    "satellite": satellite,
    "negative": negative,
}
DOMAINS: Final[dict[str, Restyle]] = {"clean": clean, **SHIFTED}
UNSEEN: Final[dict[str, Restyle]] = {"dusk": dusk, "sepia": sepia}
"""Domains to measure the default recipes, which were chosen on the other six."""
