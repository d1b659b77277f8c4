"""From an image file of any mode to the backbone's pixels: upright RGB first, then open_clip's own way.

What training learns from and what the service answers for pass through here, so both see the same pixels. Resizing and
cropping stay with open_clip's transform; only its last two steps (to float, normalise) are left to the device, so that
uint8 pixels travel there. Does not know which files are accepted or how large they may be.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

_EXIF_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an image of any mode to 8-bit RGB, turned as its EXIF orientation says.

    16-bit grey is scaled to 8 bits, what is transparent is white, and damaged metadata counts as none.

    Args:
        image: as opened; its pixels are decoded here.

    Returns:
        A new RGB picture that needs the file no more.

    Raises:
        Exception: whatever Pillow raises for damaged pixels.
    """
    image.load()
    return _flatten(_upright(image))


def to_pixels(image: Image.Image, image_size: int, preprocess: dict[str, Any]) -> NDArray[np.uint8]:
    """Resize and crop as open_clip does for evaluation.

    Args:
        image: RGB picture of any size.
        image_size: side of the square result, in pixels.
        preprocess: the backbone's preprocessing values.

    Returns:
        [3, image_size, image_size] uint8, RGB: what open_clip's transform holds before its float conversion.
    """
    shaped = _spatial_transform(image_size, json.dumps(preprocess, sort_keys=True))(image)
    return np.ascontiguousarray(np.asarray(shaped, dtype=np.uint8).transpose(2, 0, 1))


def normalize_pixels(pixels_BCHW: Tensor, preprocess: dict[str, Any]) -> Tensor:
    """uint8 pixels → (x / 255 - mean) / std in float32, on the device where the pixels are.

    Args:
        pixels_BCHW: uint8.
        preprocess: the backbone's preprocessing values (`mean`, `std`).

    Returns:
        [B, 3, H, W] float32.
    """
    mean = torch.tensor(preprocess["mean"], device=pixels_BCHW.device).view(3, 1, 1)
    std = torch.tensor(preprocess["std"], device=pixels_BCHW.device).view(3, 1, 1)
    return pixels_BCHW.float().div(255).sub(mean).div(std)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged or senseless metadata counts as none."""
    try:
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  metadata is advisory, its parser fails in many ways
        turn = None
    return image.transpose(turn) if turn is not None else image


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: 16-bit grey is scaled, alpha is composited on white."""
    if image.mode.startswith("I"):
        # Differs from Pillow's convert("RGB"), which clips 16-bit grey to white.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        ground = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, pixels).convert("RGB")
    return image.convert("RGB")


@functools.lru_cache(maxsize=8)
def _spatial_transform(image_size: int, preprocess_json: str) -> Callable[[Image.Image], Image.Image]:
    values = json.loads(preprocess_json) | {"size": image_size}
    transform = image_transform_v2(PreprocessCfg(**values), is_train=False)
    steps = transform.transforms[:-2]

    def shape(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    return shape
