"""Strong views: a random crop, then two random changes of colour or geometry, and a grey square.

RandAugment (arXiv 1909.13719) with a random strength per operation, and Cutout, as for the strong views of FixMatch
(arXiv 2001.07685, appendix D).
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

N_OPERATIONS: Final = 2
_GREY: Final = (127, 127, 127)
_MAX_CUT: Final = 0.5
"""Largest side of the grey square, as a share of the image's."""


def _enhanced(
    kind: Callable[[Image.Image], ImageEnhance._Enhance],
) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: kind(image).enhance(1 + 0.95 * strength)


def _affine(image: Image.Image, matrix: tuple[float, float, float, float]) -> Image.Image:
    """A linear map of the coordinates around the centre."""
    a, b, c, d = matrix
    x, y = image.width / 2, image.height / 2
    data = (a, b, x - a * x - b * y, c, d, y - c * x - d * y)
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _translated(image: Image.Image, x: float, y: float) -> Image.Image:
    data = (1.0, 0.0, x * image.width, 0.0, 1.0, y * image.height)
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=_GREY)


OPERATIONS: Final[dict[str, Callable[[Image.Image, float], Image.Image]]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 - round(200 * abs(strength))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "rotate": lambda image, strength: image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=_GREY),
    "shear x": lambda image, strength: _affine(image, (1.0, 0.3 * strength, 0.0, 1.0)),
    "shear y": lambda image, strength: _affine(image, (1.0, 0.0, 0.3 * strength, 1.0)),
    "translate x": lambda image, strength: _translated(image, 0.3 * strength, 0.0),
    "translate y": lambda image, strength: _translated(image, 0.0, 0.3 * strength),
}
"""Operations by name; the strength is between -1 and 1, and 0 does not change the image, except for the first two."""


def strong_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An RGB image changed by two random operations, with a random grey square.

    Args:
        image: a random crop.
        rng: source of all random choices.
    """
    names = list(OPERATIONS)
    for index in rng.integers(len(names), size=N_OPERATIONS).tolist():
        image = OPERATIONS[names[index]](image, float(rng.uniform(-1, 1)))
    side = round(rng.uniform(0, _MAX_CUT) * min(image.size))
    left, top = (int(rng.integers(1 - side, length)) for length in image.size) if side else (0, 0)
    image = image.copy()
    image.paste(_GREY, (max(left, 0), max(top, 0), min(left + side, image.width), min(top + side, image.height)))
    return image
