"""The overview image of the demo world: one row per domain, one column per class."""

from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from training.demo.augment import augment_broadly
from training.demo.render import draw, seeded_generator
from training.demo.shifts import DOMAINS
from training.demo.world import N_COLOURS, N_SHAPES, N_TEXTURES

_SEED: Final = 20
_GAP_PX: Final = 4


def overview(seed: int = _SEED) -> Tensor:
    """Draw ten classes in every domain, and with the teacher's augmentation.

    Returns:
        uint8 [3, H, W].
    """
    shapes = torch.arange(N_SHAPES)
    clean = draw(shapes % N_COLOURS, shapes % N_TEXTURES, shapes, seeded_generator(seed, 0))
    rows = [restyle(clean, seeded_generator(seed, 1)).clamp(0, 1) for restyle in DOMAINS.values()]
    rows.append(augment_broadly(clean, 1.0, seeded_generator(seed, 2)))
    size = clean.shape[-1]
    step = size + _GAP_PX
    sheet = torch.ones(3, len(rows) * step - _GAP_PX, len(shapes) * step - _GAP_PX)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[:, i * step : i * step + size, j * step : j * step + size] = picture
    return (sheet * 255).round().to(torch.uint8)


def write_overview(path: Path) -> None:
    """Write the overview as a PNG."""
    image = Image.fromarray(overview().permute(1, 2, 0).contiguous().numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
