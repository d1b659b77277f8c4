"""Renders the images of the demo world from seeded, endless series.

A series is identified by its seed and drawn in blocks of `BLOCK` images, each with its own random generator, so image i
does not depend on how many images are drawn. A restyling (such as a domain) uses a second generator per block: image i
of a domain is image i of the clean series, restyled. Shapes: N images, C=3, H=W=64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.demo.shapes import SHAPE_DISTANCES
from training.demo.textures import TEXTURE_SHARES, Surface
from training.demo.world import HUES, IMAGE_SIZE, LABEL_OF_PAIR, N_COLOURS, PAIRS, SHAPES, TEXTURES, Pair

BLOCK: Final = 256

Restyle = Callable[[Tensor, torch.Generator], Tensor]
"""Maps images (N, 3, H, W) in [0, 1] and a generator to images of the same shape and range."""


@dataclass(frozen=True)
class Pictures:
    """Rendered images with their attributes.

    Attributes:
        pixels: uint8 [N, 3, 64, 64].
        colours: int64 [N], index into `world.COLOURS`.
        textures: int64 [N], index into `world.TEXTURES`.
        shapes: int64 [N], index into `world.SHAPES`.
    """

    pixels: Tensor
    colours: Tensor
    textures: Tensor
    shapes: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def labels(self) -> Tensor:
        """Class labels, int64 [N], indices into `world.CLASS_NAMES`."""
        pairs = zip(self.textures.tolist(), self.shapes.tolist(), strict=True)
        return torch.tensor([LABEL_OF_PAIR[pair] for pair in pairs])

    def only(self, rows: Tensor) -> "Pictures":
        """Select images by an index or boolean tensor."""
        return Pictures(**{name: value[rows] for name, value in vars(self).items()})


def seeded_generator(*words: int) -> torch.Generator:
    """Create a generator seeded by these non-negative numbers."""
    state = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def uniform(n: int, low: float, high: float, generator: torch.Generator, n_dims: int = 3) -> Tensor:
    """Draw one number per image, shaped [N, 1, ...] with `n_dims` dimensions."""
    return torch.rand(n, *[1] * (n_dims - 1), generator=generator) * (high - low) + low


def smooth_noise(n: int, n_channels: int, n_cells: int, generator: torch.Generator) -> Tensor:
    """Low-frequency noise: [N, n_channels, H, W], about [0, 1]."""
    cells = torch.rand(n, n_channels, n_cells, n_cells, generator=generator)
    return F.interpolate(cells, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)


def hsv_to_rgb(hue_N: Tensor, saturation_N: Tensor, value_N: Tensor) -> Tensor:
    """Convert HSV [N] each to RGB [N, 3], all in [0, 1]."""

    def channel(shift: int) -> Tensor:
        k = (shift + hue_N * 6) % 6
        return value_N - value_N * saturation_N * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], 1)


def _pixel_grid() -> tuple[Tensor, Tensor]:
    line = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1
    y_HW, x_HW = torch.meshgrid(line, line, indexing="ij")
    return x_HW[None], y_HW[None]


def _turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * torch.cos(angle) + y * torch.sin(angle), -x * torch.sin(angle) + y * torch.cos(angle)


def _lay_out(n: int, generator: torch.Generator) -> tuple[Surface, Tensor]:
    """Draw each image's pose and texture frame; returns the surface and the pixels per unit, [N, 1, 1]."""
    grid_x, grid_y = _pixel_grid()
    scale = uniform(n, 0.62, 0.85, generator)
    room = (0.95 - scale) * 0.9
    centre_x = uniform(n, -1, 1, generator) * room
    centre_y = uniform(n, -1, 1, generator) * room
    aspect = uniform(n, 0.9, 1.1, generator)
    x, y = _turn(
        (grid_x - centre_x) / scale * aspect, (grid_y - centre_y) / scale / aspect, uniform(n, -0.2, 0.2, generator)
    )
    u, v = _turn(x, y, uniform(n, -0.35, 0.35, generator))
    px_per_unit = scale * IMAGE_SIZE / 2
    surface = Surface(
        x=x,
        y=y,
        u=u,
        v=v,
        frequency=2 * math.pi * px_per_unit / uniform(n, 7.0, 11.0, generator),
        phase=uniform(n, 0, 2 * math.pi, generator),
        phase2=uniform(n, 0, 2 * math.pi, generator),
        noise=torch.rand(n, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
    )
    return surface, px_per_unit


def _foreground(colours_N: Tensor, share_NHW: Tensor, generator: torch.Generator) -> Tensor:
    n = len(colours_N)
    hue = (torch.tensor(HUES)[colours_N] + (torch.rand(n, generator=generator) - 0.5) * 0.045) % 1
    saturation = 0.70 + 0.30 * torch.rand(n, generator=generator)
    value = 0.75 + 0.25 * torch.rand(n, generator=generator)
    main = hsv_to_rgb(hue, saturation, value)[:, :, None, None]
    is_dark = (uniform(n, 0, 1, generator, 4) < 0.5).float()
    second = is_dark * main * 0.22 + (1 - is_dark) * (main * 0.2 + 0.8)
    share = share_NHW[:, None]
    return main * share + second * (1 - share)


def _background(n: int, generator: torch.Generator) -> Tensor:
    level = uniform(n, 0.10, 0.85, generator, 4) + (torch.rand(n, 3, 1, 1, generator=generator) - 0.5) * 0.18
    clouds = (smooth_noise(n, 3, 4, generator) - 0.5) * 0.22
    grain = (smooth_noise(n, 1, 16, generator) - 0.5) * 0.18
    return level + clouds + grain


def draw(colours_N: Tensor, textures_N: Tensor, shapes_N: Tensor, generator: torch.Generator) -> Tensor:
    """Render one clean image per row.

    Args:
        colours_N: int64 index into `world.COLOURS`.
        textures_N: int64 index into `world.TEXTURES`.
        shapes_N: int64 index into `world.SHAPES`.
        generator: random generator for pose, colours, background, light and noise.

    Returns:
        float32 [N, 3, 64, 64] in [0, 1].
    """
    n = len(colours_N)
    surface, px_per_unit = _lay_out(n, generator)
    distance = torch.empty_like(surface.x)
    for index, name in enumerate(SHAPES):
        rows = shapes_N == index
        distance[rows] = SHAPE_DISTANCES[name](surface.x[rows], surface.y[rows])
    share = torch.empty_like(surface.x)
    for index, name in enumerate(TEXTURES):
        rows = textures_N == index
        share[rows] = TEXTURE_SHARES[name](surface.only(rows))
    mask = torch.sigmoid(-2.0 * distance * px_per_unit)[:, None]
    picture = _foreground(colours_N, share, generator) * mask + _background(n, generator) * (1 - mask)
    grid_x, grid_y = _pixel_grid()
    sun = uniform(n, 0, 2 * math.pi, generator)
    light = 1 + uniform(n, 0, 0.25, generator) * (torch.cos(sun) * grid_x + torch.sin(sun) * grid_y)
    noise = torch.randn(picture.shape, generator=generator) * uniform(n, 0, 0.02, generator, 4)
    return (picture * light[:, None] + noise).clamp(0, 1)


def _draw_block(seed: int, block: int, pairs: Sequence[Pair], restyle: Restyle | None) -> Pictures:
    generator = seeded_generator(seed, block, 0)
    pairs_N2 = torch.tensor(pairs)[torch.randint(len(pairs), (BLOCK,), generator=generator)]
    colours_N = torch.randint(N_COLOURS, (BLOCK,), generator=generator)
    picture = draw(colours_N, pairs_N2[:, 0], pairs_N2[:, 1], generator)
    if restyle is not None:
        picture = restyle(picture, seeded_generator(seed, block, 1)).clamp(0, 1)
    return Pictures((picture * 255).round().to(torch.uint8), colours_N, pairs_N2[:, 0], pairs_N2[:, 1])


def draw_series(
    seed: int, n: int, *, pairs: Sequence[Pair] = PAIRS, restyle: Restyle | None = None, start: int = 0
) -> Pictures:
    """Render images `start` to `start + n` of a series.

    Args:
        seed: identifies the series, >= 0.
        n: number of images, >= 1.
        pairs: the classes, sampled uniformly.
        restyle: applied to every block, such as a domain of `shifts.DOMAINS`.
        start: first image.

    Raises:
        ValueError: an argument is out of range.
    """
    if n < 1 or start < 0 or not pairs:
        raise ValueError(
            f"n >= 1, start >= 0 and at least one pair are required, got n={n}, start={start}, {len(pairs)=}"
        )
    drawn = Pictures(
        pixels=torch.empty(n, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8),
        colours=torch.empty(n, dtype=torch.int64),
        textures=torch.empty(n, dtype=torch.int64),
        shapes=torch.empty(n, dtype=torch.int64),
    )
    for number in range(start // BLOCK, (start + n - 1) // BLOCK + 1):
        block = _draw_block(seed, number, pairs, restyle)
        first, last = max(start, number * BLOCK), min(start + n, (number + 1) * BLOCK)
        for name, value in vars(block).items():
            getattr(drawn, name)[first - start : last - start] = value[first - number * BLOCK : last - number * BLOCK]
    return drawn
