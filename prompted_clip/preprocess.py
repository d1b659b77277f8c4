"""From an image of any mode to the backbone's pixels: upright RGB, then open_clip's resize and crop.

Training and service share this file. `to_pixels` gives the bits of open_clip's transform with Pillow alone, so that a
process that only decodes loads no torch; the last two steps (to float, normalise) run on the device. `to_pixels_fast`
and `to_pixels_on_device` have the same geometry and torch's resizing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

RESIZE_MODES: Final = ("shortest", "squash")
"""Resize the shorter side and crop the middle; resize both sides. `load_backbone` rejects others."""
PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS: Final = frozenset({b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"})
"""Optional chunks that are kept: transparency, orientation and animation."""
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
_SIDEWAYS: Final = {_TURNS[value] for value in (5, 6, 7, 8)}
"""Rotations that swap width and height; those below reverse the rows or columns of the result."""
_REVERSES_ROWS: Final = {_TURNS[value] for value in (3, 4, 7, 8)}
_REVERSES_COLUMNS: Final = {_TURNS[value] for value in (2, 3, 6, 7)}
_STRIP_PIXELS: Final = 2**18
_EPSILON: Final = 1e-6
"""Added to a side, in pixels: torch rounds down sides computed from a scale factor, such as 223.999."""


def without_metadata(data: bytes, max_chunks: int = sys.maxsize) -> bytes:
    """A PNG with only the chunks that its pixels, orientation and animation need; other files unchanged.

    Pillow would parse the others, and reject large or damaged ones, which libpng and browsers ignore. From an
    incomplete or invalid chunk on, everything is kept for the decoder.

    Raises:
        ValueError: more than `max_chunks` chunks.
    """
    if not data.startswith(PNG_MAGIC):
        return data
    kept, at = [PNG_MAGIC], len(PNG_MAGIC)
    for _ in range(max_chunks):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data) or not name.isalpha():
            return b"".join((*kept, data[at:]))
        if name[:1].isupper() or name in _PNG_CHUNKS:
            kept.append(data[at:end])
        if name == b"IEND":
            return b"".join(kept)
        at = end
    raise ValueError(f"more than {max_chunks} chunks")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an image of any mode to 8-bit RGB, rotated by its EXIF orientation; the same object if it is that already.

    16-bit grey is scaled to 8 bits, transparency is composited on white, and damaged metadata is ignored.

    Raises:
        Exception: any that Pillow raises for damaged files.
    """
    image.load()
    turn = exif_turn(image)
    if turn is None and image.mode == "RGB" and not image.has_transparency_data:
        return image
    upright = Image.new("RGB", _upright_size(image, turn), None)  # every pixel is pasted
    for left, top, strip in _upright_strips(image, turn):
        upright.paste(strip, (left, top))
    return upright


def upright_array(image: Image.Image) -> NDArray[np.uint8]:
    """`upright_rgb` as a writable array, uint8 [H, W, 3]."""
    image.load()
    turn = exif_turn(image)
    width, height = _upright_size(image, turn)
    rgb_HWC = np.empty((height, width, 3), np.uint8)
    for left, top, strip in _upright_strips(image, turn):
        rgb_HWC[top : top + strip.height, left : left + strip.width] = np.asarray(strip)
    return rgb_HWC


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """The rotation of an image's EXIF orientation; None if it is upright or its metadata is damaged.

    As in browsers, an orientation in XMP or text metadata has no effect.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return _TURNS.get(exif.get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  metadata is optional, and its parser fails in many ways
        return None


def turned(rgb_HWC: NDArray[np.uint8], turn: Image.Transpose) -> NDArray[np.uint8]:
    """An array rotated as `Image.transpose` does it, as a copy."""
    rgb = rgb_HWC.swapaxes(0, 1) if turn in _SIDEWAYS else rgb_HWC
    row_step, column_step = -1 if turn in _REVERSES_ROWS else 1, -1 if turn in _REVERSES_COLUMNS else 1
    return rgb[::row_step, ::column_step].copy()


def _upright_size(image: Image.Image, turn: Image.Transpose | None) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if turn in _SIDEWAYS else (width, height)


def _upright_strips(image: Image.Image, turn: Image.Transpose | None) -> Iterator[tuple[int, int, Image.Image]]:
    """Left and top of each strip of the upright image, and the strip in RGB.

    A strip has 2**18 pixels, which bounds the memory of the intermediate copies of a conversion.
    """
    width, height = image.size
    n_rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, n_rows):
        bottom = min(top + n_rows, height)
        strip = _to_rgb(image if n_rows >= height else image.crop((0, top, width, bottom)))
        strip = strip if turn is None else strip.transpose(turn)
        if turn in _SIDEWAYS:
            yield height - bottom if turn in _REVERSES_COLUMNS else top, 0, strip
        else:
            yield 0, height - bottom if turn in _REVERSES_ROWS else top, strip


def _to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image in 8-bit RGB."""
    if image.mode.startswith("I"):
        # Differs from Pillow's convert("RGB"), which clips 16-bit grey to white.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy an RGB image


def to_pixels(image: Image.Image, image_size: int, preprocess: dict[str, Any]) -> NDArray[np.uint8]:
    """Resize and crop an RGB image as open_clip does for evaluation, to the bit.

    Returns:
        [3, image_size, image_size] uint8, RGB.
    """
    if image.size != (image_size, image_size):
        width, height = _resized((image.width, image.height), image_size, preprocess)
        if image.size != (width, height):
            is_bilinear = preprocess.get("interpolation") == "bilinear"
            resampling = Image.Resampling.BILINEAR if is_bilinear else Image.Resampling.BICUBIC
            image = image.resize((width, height), resampling)
        left, top = round((width - image_size) / 2), round((height - image_size) / 2)
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def to_pixels_fast(
    rgb_HWC: NDArray[np.uint8],
    image_size: int,
    preprocess: dict[str, Any],
    *,
    extent_HW: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """`to_pixels` with torch's vectorised, antialiased resizing on uint8.

    The array must be writable. The image fills `extent_HW` pixels of it from the top left, all by default: DCT scaling
    leaves a last row or column that is filled in part.

    Returns:
        As `to_pixels` but for rounding, rarely by more than one level.
    """
    if rgb_HWC.shape[:2] == (image_size, image_size):
        return np.ascontiguousarray(rgb_HWC.transpose(2, 0, 1))
    import torch  # noqa: PLC0415  see the module's docstring

    pixels_1CHW = torch.from_numpy(rgb_HWC).permute(2, 0, 1)[None]  # channels last in memory: torch's fast path
    shaped_CHW = _resize_and_crop(pixels_1CHW, image_size, preprocess, extent_HW or rgb_HWC.shape[:2])
    return np.ascontiguousarray(shaped_CHW.numpy())


def to_pixels_on_device(rgb_HWC: Tensor, image_size: int, preprocess: dict[str, Any]) -> Tensor:
    """`to_pixels` of a uint8 [H, W, 3] tensor on its device, computed in float32 and rounded.

    Raises:
        RuntimeError: CUDA does not resize by so large a factor.
    """
    pixels_1CHW = rgb_HWC.permute(2, 0, 1)[None].float()
    shaped_CHW = _resize_and_crop(pixels_1CHW, image_size, preprocess, rgb_HWC.shape[:2])
    return shaped_CHW.round().clamp(0, 255).to(rgb_HWC.dtype)


def normalize_pixels(pixels_BCHW: Tensor, preprocess: dict[str, Any]) -> Tensor:
    """(x / 255 - mean) / std of uint8 pixels, [B, 3, H, W] float32 on their device."""
    import torch  # noqa: PLC0415  see the module's docstring

    device = pixels_BCHW.device
    values = torch.tensor([preprocess["mean"], preprocess["std"]])
    if device.type == "cuda":
        values = values.pin_memory()  # otherwise the host waits for the copy
    mean, std = values.to(device, non_blocking=True).view(2, 3, 1, 1)
    return pixels_BCHW.float().div(255).sub(mean).div(std)


def _resized(size: Sequence[float], image_size: int, preprocess: dict[str, Any]) -> tuple[int, int]:
    """The size to which an image is resized before it is cropped, in the order of `size`; torchvision's arithmetic."""
    if preprocess.get("resize_mode") == "squash":
        return image_size, image_size
    first, second = (image_size if side == min(size) else int(image_size * side / min(size)) for side in size)
    return first, second


def _resize_and_crop(
    pixels_1CHW: Tensor, image_size: int, preprocess: dict[str, Any], extent_HW: Sequence[float]
) -> Tensor:
    """[C, image_size, image_size] in the dtype of the input."""
    from torch.nn import functional as F  # noqa: PLC0415  see the module's docstring

    size_HW = _resized(extent_HW, image_size, preprocess)
    if size_HW != tuple(extent_HW):
        mode = "bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic"
        if tuple(extent_HW) == pixels_1CHW.shape[2:]:
            pixels_1CHW = F.interpolate(pixels_1CHW, size=size_HW, mode=mode, antialias=True)
        else:
            scale = [(side + _EPSILON) / extent for side, extent in zip(size_HW, extent_HW, strict=True)]
            pixels_1CHW = F.interpolate(pixels_1CHW, scale_factor=scale, mode=mode, antialias=True)
    top, left = (round((side - image_size) / 2) for side in size_HW)
    return pixels_1CHW[0, :, top : top + image_size, left : left + image_size]
