"""The eight textures: the blend between second colour (0) and main colour (1) at each point.

Each takes a `Surface`, the shape's coordinates with a random period and phases per image, and returns [N, H, W].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surface:
    """Texture coordinates of N images.

    Attributes:
        x: the shape's horizontal coordinate, about [-1, 1] inside.
        y: the shape's vertical coordinate.
        u: x rotated by the texture's angle.
        v: y rotated by the texture's angle.
        frequency: radians per unit, from the period in pixels.
        phase: radians.
        phase2: radians, for the second direction.
        noise: uniform in [0, 1), one value per pixel.
    """

    x: Tensor
    y: Tensor
    u: Tensor
    v: Tensor
    frequency: Tensor
    phase: Tensor
    phase2: Tensor
    noise: Tensor

    def only(self, rows: Tensor) -> "Surface":
        """Select images by a boolean or index tensor."""
        return Surface(**{name: value[rows] for name, value in vars(self).items()})


def _soft_step(height: Tensor) -> Tensor:
    return torch.sigmoid(4.0 * height)


def _wave(surface: Surface, along: Tensor, density: float, phase: Tensor) -> Tensor:
    return torch.cos(surface.frequency * density * along + phase)


def plain(surface: Surface) -> Tensor:
    """Fill with the main colour."""
    return torch.ones_like(surface.x)


def striped(surface: Surface) -> Tensor:
    """Draw vertical stripes."""
    return _soft_step(_wave(surface, surface.u, 1.0, surface.phase))


def dotted(surface: Surface) -> Tensor:
    """Draw dots of the second colour on a square lattice."""
    across = _wave(surface, surface.u, 0.9, surface.phase)
    down = _wave(surface, surface.v, 0.9, surface.phase2)
    return 1 - _soft_step(across + down - 0.75)


def checkered(surface: Surface) -> Tensor:
    """Draw a checkerboard."""
    across = _wave(surface, surface.u, 0.75, surface.phase)
    down = _wave(surface, surface.v, 0.75, surface.phase2)
    return _soft_step(2 * across * down)


def gridded(surface: Surface) -> Tensor:
    """Draw thin lines of the second colour in both directions."""
    across = _soft_step(_wave(surface, surface.u, 0.85, surface.phase) - 0.75)
    down = _soft_step(_wave(surface, surface.v, 0.85, surface.phase2) - 0.75)
    return 1 - torch.maximum(across, down)


def ringed(surface: Surface) -> Tensor:
    """Draw rings around the shape's centre."""
    return _soft_step(_wave(surface, torch.hypot(surface.x, surface.y), 1.0, surface.phase))


def speckled(surface: Surface) -> Tensor:
    """Give about one pixel in three the second colour."""
    return (surface.noise > 0.35).float()


def faded(surface: Surface) -> Tensor:
    """Blend from one colour to the other across the shape."""
    along = torch.cos(surface.phase) * surface.u + torch.sin(surface.phase) * surface.v
    return (0.5 + 0.6 * along).clamp(0, 1)


TEXTURE_SHARES: Final[dict[str, Callable[[Surface], Tensor]]] = {
    "plain": plain,
    "striped": striped,
    "dotted": dotted,
    "checkered": checkered,
    "gridded": gridded,
    "ringed": ringed,
    "speckled": speckled,
    "faded": faded,
}
