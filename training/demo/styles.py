"""Synthesised styles: random compositions of colour maps, drawings, frequency filters, textures and light.

Every image gets a style of its own. The operations are more general than the domains' functions and their ranges wider,
and no combination is modelled on a domain; filters of `filters.py` (luma, blur, edges) are shared with them. Shapes:
N images, C=3, H=W=64.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from training.demo.filters import blur, edges, grey
from training.demo.render import smooth_noise, uniform
from training.demo.world import IMAGE_SIZE

Operation = Callable[[Tensor, torch.Generator], Tensor]

_N_POINTS: Final = 5
"""Control points of a random curve."""
_N_PER_CALL: Final = 8
"""At most this many images share what an operation draws once per call, such as the width of a blur."""


def _per_picture(picture: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return uniform(len(picture), low, high, generator, 4)


def _colour(picture: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(picture), 3, 1, 1, generator=generator) * (high - low) + low


def _curve(level_N1HW: Tensor, points_NCP: Tensor) -> Tensor:
    """Interpolate linearly between control points at 0, ..., 1: [N, C, H, W] from levels [N, 1 or C, H, W]."""
    n, n_channels, n_points = points_NCP.shape
    place = level_N1HW.clamp(0, 1).expand(-1, n_channels, -1, -1).reshape(n, n_channels, -1) * (n_points - 1)
    lower = place.floor().clamp(max=n_points - 2).long()
    share = place - lower
    found = points_NCP.gather(2, lower) * (1 - share) + points_NCP.gather(2, lower + 1) * share
    return found.view(n, n_channels, *level_N1HW.shape[2:])


def mix_channels(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A random linear map of colours that keeps mid-grey near the middle; brightness may invert."""
    weights = torch.randn(len(picture), 3, 3, generator=generator) * 0.7
    mixed = torch.einsum("nij,njhw->nihw", weights, picture - 0.5)
    return mixed + _colour(picture, 0.3, 0.7, generator)


def map_levels(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Map the luma, stretched to the full range, to a random curve through colour space."""
    level = blur(grey(picture), float(torch.rand(1, generator=generator)) + 0.3)
    low, high = level.amin((1, 2, 3), keepdim=True), level.amax((1, 2, 3), keepdim=True)
    points = torch.rand(len(picture), 3, _N_POINTS, generator=generator)
    return _curve((level - low) / (high - low + 1e-3), points)


def bend_tones(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A random tone curve per channel, between the identity and noise."""
    identity = torch.linspace(0, 1, _N_POINTS).expand(len(picture), 3, _N_POINTS)
    share = uniform(len(picture), 0.3, 1, generator)
    points = identity * (1 - share) + torch.rand(identity.shape, generator=generator) * share
    return _curve(picture, points)


def draw_lines(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Outlines in a random ink on paper of a random colour."""
    outlines = edges(blur(picture, float(torch.rand(1, generator=generator)) + 0.4))
    lines = (outlines * _per_picture(picture, 1.5, 5, generator)).clamp(0, 1)
    paper, ink = _colour(picture, 0, 1, generator), _colour(picture, 0, 1, generator)
    return paper + lines * (ink - paper)


def filter_frequencies(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Scale the spatial frequencies by a random curve over the radius; the mean colour is kept."""
    fy, fx = torch.fft.fftfreq(IMAGE_SIZE), torch.fft.rfftfreq(IMAGE_SIZE)
    radius = torch.sqrt(fy[:, None] ** 2 + fx[None] ** 2) / math.sqrt(0.5)
    gains = torch.exp(torch.randn(len(picture), 1, _N_POINTS, generator=generator) * 0.7)
    gain = _curve(radius.expand(len(picture), 1, -1, -1), gains)
    gain[:, :, 0, 0] = 1
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(picture) * gain, s=(IMAGE_SIZE, IMAGE_SIZE))
    return filtered


def add_texture(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Add random clouds, or waves of a random direction and period, in a random colour."""
    n = len(picture)
    line = torch.arange(IMAGE_SIZE).float()
    angle, period = uniform(n, 0, math.pi, generator), uniform(n, 3, 20, generator)
    along = (torch.cos(angle) * line[None, None, :] + torch.sin(angle) * line[None, :, None]) / period
    waves = torch.cos(2 * math.pi * along)[:, None]
    n_cells = int(torch.randint(3, 12, (1,), generator=generator))
    clouds = 2 * smooth_noise(n, 1, n_cells, generator) - 1
    is_cloudy = (_per_picture(picture, 0, 1, generator) < 0.5).float()
    pattern = is_cloudy * clouds + (1 - is_cloudy) * waves
    return picture + pattern * _colour(picture, -0.2, 0.2, generator)


def coarsen(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Reduce the resolution to between a third and two thirds."""
    size = int(torch.randint(IMAGE_SIZE // 3, 2 * IMAGE_SIZE // 3, (1,), generator=generator))
    coarse = F.interpolate(picture, size=(size, size), mode="area")
    return F.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")


def veil(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Blend with a random colour: haze, or darkness."""
    share = _per_picture(picture, 0.2, 0.75, generator)
    return picture * (1 - share) + _colour(picture, 0, 1, generator) * share


def darken(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each channel, most of them down."""
    return picture * _colour(picture, 0.1, 1.1, generator)


def add_grain(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Add pixel noise."""
    noise = torch.randn(picture.shape, generator=generator)
    return picture + noise * _per_picture(picture, 0.01, 0.08, generator)


BASES: Final[tuple[Operation, ...]] = (mix_channels, map_levels, bend_tones, draw_lines)
"""Each image gets one of these, or keeps its colours, with equal probability."""
EFFECTS: Final[tuple[tuple[float, Operation], ...]] = (
    (0.3, filter_frequencies),
    (0.3, add_texture),
    (0.2, coarsen),
    (0.35, veil),
    (0.25, darken),
    (0.7, add_grain),
)
"""Then each of these applies with its probability, in this order."""


def synthesise(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Give each image a random style.

    Args:
        picture: float32 [N, 3, H, W] in [0, 1]; not modified.
        generator: random generator.

    Returns:
        float32 [N, 3, H, W] in [0, 1].
    """
    picture = picture.clone()
    which = torch.randint(len(BASES) + 1, (len(picture),), generator=generator)
    chosen = [(which == index, operation) for index, operation in enumerate(BASES)]
    chosen += [(torch.rand(len(picture), generator=generator) < chance, operation) for chance, operation in EFFECTS]
    for is_chosen, operation in chosen:
        for rows in torch.split(torch.nonzero(is_chosen).flatten(), _N_PER_CALL):
            picture[rows] = operation(picture[rows], generator).clamp(0, 1)
    return picture
