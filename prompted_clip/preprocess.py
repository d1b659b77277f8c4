"""From an image file of any mode to the backbone's pixels: upright RGB first, then open_clip's own way.

What training learns from and what the service answers for pass through here, so both see the same pixels. Resizing and
cropping give the bits of open_clip's transform, which a test compares; only its last two steps (to float, normalise)
are left to the device, so that uint8 pixels travel there. What most backbones need is done with Pillow alone: a process
that only decodes loads neither torch nor open_clip. `to_pixels_fast` is for a service that may differ a little: the
same geometry with torch's resizing; `to_pixels_on_device` does that where the picture is. Does not know which files
are accepted or how large they may be.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
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


_HAIR: Final = 1e-6
"""Added to a side, in pixels: torch rounds down what it computes from a factor, which may be 223.999."""


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an image of any mode to 8-bit RGB, turned as its EXIF orientation says.

    16-bit grey is scaled to 8 bits, what is transparent is white, and damaged metadata counts as none.

    Args:
        image: as opened; its pixels are decoded here.

    Returns:
        An RGB picture that needs the file no more; the given one where there was nothing to do.

    Raises:
        Exception: whatever Pillow raises for damaged pixels.
    """
    image.load()
    turn = exif_turn(image)
    return _flatten(image if turn is None else image.transpose(turn))


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """What brings a picture upright, as its EXIF orientation says; None where it is, or its metadata is damaged."""
    try:
        return _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  metadata is advisory, its parser fails in many ways
        return None


def to_pixels(image: Image.Image, image_size: int, preprocess: dict[str, Any]) -> NDArray[np.uint8]:
    """Resize and crop as open_clip does for evaluation.

    Args:
        image: RGB picture of any size.
        image_size: side of the square result, in pixels.
        preprocess: the backbone's preprocessing values.

    Returns:
        [3, image_size, image_size] uint8, RGB: what open_clip's transform holds before its float conversion.
    """
    if image.size != (image_size, image_size):  # else every step would only copy
        image = _shaped(image, image_size, preprocess)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def to_pixels_fast(
    rgb_HWC: NDArray[np.uint8],
    image_size: int,
    preprocess: dict[str, Any],
    *,
    extent_HW: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Resize and crop with open_clip's geometry and torch's antialiased resizing: whole numbers, vectorised.

    Args:
        rgb_HWC: uint8 picture of any size, writable.
        image_size: side of the square result, in pixels.
        preprocess: the backbone's preprocessing values.
        extent_HW: how much of the array the picture fills from the top left, in pixels: a decoder that shrinks leaves
            a last row or column of which only a part is picture. All of it by default.

    Returns:
        [3, image_size, image_size] uint8, RGB; differs from `to_pixels` by rounding, rarely by more than one level.
    """
    if rgb_HWC.shape[:2] == (image_size, image_size):
        return np.ascontiguousarray(rgb_HWC.transpose(2, 0, 1))
    import torch  # noqa: PLC0415  see the module's docstring

    if preprocess.get("resize_mode") == "longest":  # pads; of the models that are served here hardly any does
        return to_pixels(Image.fromarray(rgb_HWC), image_size, preprocess)
    pixels_1CHW = torch.from_numpy(rgb_HWC).permute(2, 0, 1)[None]  # channels last in memory, as torch's fast way wants
    shaped_CHW = _shaped_by_torch(pixels_1CHW, image_size, preprocess, extent_HW or rgb_HWC.shape[:2])
    return np.ascontiguousarray(shaped_CHW.numpy())


def to_pixels_on_device(rgb_HWC: Tensor, image_size: int, preprocess: dict[str, Any]) -> Tensor:
    """The same on the picture's own device, computed in float32 and rounded.

    Args:
        rgb_HWC: uint8 picture of any size.
        image_size: side of the square result, in pixels.
        preprocess: the backbone's preprocessing values; not those that pad.

    Returns:
        [3, image_size, image_size] uint8, RGB, on that device; differs from `to_pixels` by rounding.

    Raises:
        RuntimeError: CUDA does not resize by so large a factor.
    """
    pixels_1CHW = rgb_HWC.permute(2, 0, 1)[None].float()
    shaped_CHW = _shaped_by_torch(pixels_1CHW, image_size, preprocess, rgb_HWC.shape[:2])
    return shaped_CHW.round().clamp(0, 255).to(rgb_HWC.dtype)


def _shaped_by_torch(
    pixels_1CHW: Tensor, image_size: int, preprocess: dict[str, Any], extent_HW: Sequence[float]
) -> Tensor:
    """Resize to open_clip's size and crop the middle: [C, image_size, image_size] in the type that comes in."""
    from torch.nn import functional as F  # noqa: PLC0415  see the module's docstring

    height, width = extent_HW
    short = min(height, width)
    size = (int(image_size * height / short), int(image_size * width / short))
    if preprocess.get("resize_mode") == "squash":
        size = (image_size, image_size)
    if size != (height, width):
        filter_name = "bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic"
        if (height, width) == pixels_1CHW.shape[2:]:
            pixels_1CHW = F.interpolate(pixels_1CHW, size=size, mode=filter_name, antialias=True)
        else:
            scale = ((size[0] + _HAIR) / height, (size[1] + _HAIR) / width)
            pixels_1CHW = F.interpolate(pixels_1CHW, scale_factor=scale, mode=filter_name, antialias=True)
    top, left = (round((side - image_size) / 2) for side in size)
    return pixels_1CHW[0, :, top : top + image_size, left : left + image_size]


def normalize_pixels(pixels_BCHW: Tensor, preprocess: dict[str, Any]) -> Tensor:
    """uint8 pixels → (x / 255 - mean) / std in float32, on the device where the pixels are.

    Args:
        pixels_BCHW: uint8.
        preprocess: the backbone's preprocessing values (`mean`, `std`).

    Returns:
        [B, 3, H, W] float32.
    """
    import torch  # noqa: PLC0415  see the module's docstring

    mean = torch.tensor(preprocess["mean"], device=pixels_BCHW.device).view(3, 1, 1)
    std = torch.tensor(preprocess["std"], device=pixels_BCHW.device).view(3, 1, 1)
    return pixels_BCHW.float().div(255).sub(mean).div(std)


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: 16-bit grey is scaled, alpha is composited on white."""
    if image.mode.startswith("I"):
        # Differs from Pillow's convert("RGB"), which clips 16-bit grey to white.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        ground = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, pixels).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # Pillow's convert copies even where nothing changes


def _shaped(image: Image.Image, image_size: int, preprocess: dict[str, Any]) -> Image.Image:
    """Resize and crop an RGB picture to a square, as open_clip does it for evaluation.

    The arithmetic is torchvision's, whose Resize and CenterCrop open_clip uses.
    """
    mode = preprocess.get("resize_mode", "shortest")
    if mode not in {"shortest", "squash"}:
        return _spatial_transform(image_size, json.dumps(preprocess, sort_keys=True))(image)
    is_bilinear = preprocess.get("interpolation", "bicubic") == "bilinear"
    resampling = Image.Resampling.BILINEAR if is_bilinear else Image.Resampling.BICUBIC
    if mode == "squash":
        return image.resize((image_size, image_size), resampling)
    short = min(image.size)
    width, height = (image_size if side == short else int(image_size * side / short) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), resampling)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))


@functools.lru_cache(maxsize=8)
def _spatial_transform(image_size: int, preprocess_json: str) -> Callable[[Image.Image], Image.Image]:
    """open_clip's own steps, for the ways to resize that are not done here."""
    from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: PLC0415  see the module's docstring

    values = json.loads(preprocess_json) | {"size": image_size}
    transform = image_transform_v2(PreprocessCfg(**values), is_train=False)
    steps = transform.transforms[:-2]

    def shape(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    return shape
