"""From a decoded picture to the backbone's pixels, in open_clip's own way.

Resizing and cropping stay with open_clip's transform; only its last two steps (to float, normalise) are left to the
device, so that uint8 pixels travel there.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor


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
