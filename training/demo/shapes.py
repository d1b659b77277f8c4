"""The ten shapes as signed distance functions: negative inside, positive outside.

Each takes x and y (equal shapes; x to the right, y down, the shape spans about [-1, 1]) and returns the distance in the
same unit, exact or accurate enough for a smooth edge.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor


def circle(x: Tensor, y: Tensor) -> Tensor:
    """Draw a disc."""
    return torch.hypot(x, y) - 0.9


def square(x: Tensor, y: Tensor) -> Tensor:
    """Draw a square."""
    return torch.maximum(x.abs(), y.abs()) - 0.8


def _polygon(x: Tensor, y: Tensor, n_sides: int, apothem: float) -> Tensor:
    """A regular polygon as an intersection of half planes; the distance is exact along the sides."""
    turn = math.pi if n_sides % 2 else 0.0
    angles = [2 * math.pi * k / n_sides - math.pi / 2 + turn for k in range(n_sides)]
    sides = torch.stack([x * math.cos(a) + y * math.sin(a) for a in angles])
    return sides.amax(0) - apothem


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Draw a triangle that stands on a side."""
    return _polygon(x, y - 0.12, 3, 0.52)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Draw a five-pointed star: fold the plane into one sector, then one line."""
    tip, notch, sector = 1.08, 0.42, 2 * math.pi / 5
    radius = torch.hypot(x, y)
    angle = (torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2).abs()
    along, across = radius * torch.cos(angle), radius * torch.sin(angle)
    normal_x = notch * math.sin(sector / 2)
    normal_y = tip - notch * math.cos(sector / 2)
    return ((along - tip) * normal_x + across * normal_y) / math.hypot(normal_x, normal_y)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Draw a plus sign."""
    flat = torch.maximum(x.abs() - 0.98, y.abs() - 0.33)
    upright = torch.maximum(x.abs() - 0.33, y.abs() - 0.98)
    return torch.minimum(flat, upright)


def donut(x: Tensor, y: Tensor) -> Tensor:
    """Draw a thick ring."""
    return (torch.hypot(x, y) - 0.68).abs() - 0.27


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Draw two lobes over a wedge."""
    side, up = x.abs(), -y
    lobe = torch.hypot(side - 0.42, up - 0.3) - 0.5
    slope = side * 0.74 - (up + 0.98) * 0.67
    wedge = torch.maximum(torch.maximum(slope, up - 0.3), -up - 0.98)
    return torch.minimum(lobe, wedge)


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """Draw a disc with a bite on the right."""
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.78 - torch.hypot(x - 0.5, y))


def hexagon(x: Tensor, y: Tensor) -> Tensor:
    """Draw a regular hexagon."""
    return _polygon(x, y, 6, 0.8)


def arrow(x: Tensor, y: Tensor) -> Tensor:
    """Draw an arrow that points to the right."""
    head = torch.maximum(x - 1.0 + 1.15 * y.abs(), -x) / 1.4
    shaft = torch.maximum(torch.maximum(-x - 1.0, x - 0.1), y.abs() - 0.28)
    return torch.minimum(head, shaft)


SHAPE_DISTANCES: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "donut": donut,
    "heart": heart,
    "crescent": crescent,
    "hexagon": hexagon,
    "arrow": arrow,
}
