"""Turns an opened image file into the backbone's pixels, in one of three modes (compared in docs/images.md).

`exact` is bit-identical to open_clip's transform: Pillow, and simplejpeg for JPEGs that need no resizing. `fast`
decodes JPEGs with simplejpeg, which scales large ones down while decoding (DCT scaling), and resizes with torch. `gpu`
decodes and resizes JPEGs on the device. All modes accept the same files: Pillow reads every header, and decodes every
file on which another decoder fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from prompted_clip.preprocess import exif_turn, to_pixels, to_pixels_fast, turned, upright_array, upright_rgb
from service.process import usable_cores

if TYPE_CHECKING:
    from service.images.gpu import GpuDecoder

Pixels = NDArray[np.uint8]
Resize: TypeAlias = Callable[[], Pixels]
"""Resizes a decoded image to the backbone's input, uint8 [3, H, W]."""

MAX_THREADS: Final = 8
"""Decoding threads of one process; more only wait for the GIL."""
MIN_SCALE: Final = 2
"""DCT scaling keeps both sides at least this many times the backbone's; torch resizes the rest with antialiasing."""
EIGHTHS: Final = 8
"""DCT scaling is by a number of eighths."""
END_OF_IMAGE: Final = b"\xff\xd9"
ADOBE_RGB: Final = 0
"""`adobe_transform` of a JPEG whose channels are RGB rather than YCbCr; not every decoder supports it."""


@dataclass(frozen=True)
class Exact:
    """Bit-identical to open_clip, for inputs of side `image_size` and the backbone's preprocessing `values`."""

    image_size: int
    values: dict[str, Any]

    def decode(self, image: Image.Image, data: bytes) -> Resize:
        """Decode an image and return the step that resizes it.

        Args:
            image: opened by Pillow, not decoded yet.
            data: the file.

        Raises:
            Exception: any error of Pillow for damaged files.
        """
        is_presized = image.size == (self.image_size, self.image_size)
        if is_presized and is_plain_jpeg(image) and (decoded := decode_jpeg(image, data)):
            # The same bits, and Pillow would copy them twice on their way to an array.
            turn = exif_turn(image)
            rgb_hwc = decoded[0] if turn is None else turned(decoded[0], turn)
            return lambda: np.ascontiguousarray(rgb_hwc.transpose(2, 0, 1))
        if image.mode == "RGBX" and exif_turn(image) is None:  # a WebP: a copy would take as much memory again
            return lambda: to_pixels(image, self.image_size, self.values)[:3]
        rgb = upright_rgb(image)
        return lambda: to_pixels(rgb, self.image_size, self.values)

    def resize(self, rgb_hwc: Pixels) -> Pixels:
        """Resize and crop an image that is decoded already, uint8 [H, W, 3]; the input is not changed."""
        return to_pixels(Image.fromarray(rgb_hwc), self.image_size, self.values)


@dataclass(frozen=True)
class Fast:
    """Nearly identical pixels, faster; same attributes as `Exact`."""

    image_size: int
    values: dict[str, Any]

    def decode(self, image: Image.Image, data: bytes) -> Resize:
        """See `Exact.decode`."""
        decoded = self._decode_jpeg(image, data) if is_plain_jpeg(image) else None
        rgb_hwc, extent_hw = decoded or (upright_array(image), None)
        return lambda: to_pixels_fast(rgb_hwc, self.image_size, self.values, extent_HW=extent_hw)

    def resize(self, rgb_hwc: Pixels) -> Pixels:
        """See `Exact.resize`."""
        return to_pixels_fast(rgb_hwc.copy(), self.image_size, self.values)  # a copy, because it may be read-only

    def _decode_jpeg(self, image: Image.Image, data: bytes) -> tuple[Pixels, tuple[float, float] | None] | None:
        turn = exif_turn(image)
        # After rotation a partly filled last row or column could come first; sides that are multiples of 8 have none.
        may_reduce = turn is None or not any(side % EIGHTHS for side in image.size)
        decoded = decode_jpeg(image, data, min_side_px=MIN_SCALE * self.image_size if may_reduce else 0)
        if decoded is None or turn is None:
            return decoded
        return turned(decoded[0], turn), None


@dataclass(frozen=True)
class Gpu:
    """Plain JPEGs on the device, all other files with `fast`.

    Attributes:
        fast: for files that the device declines.
        decoder: on the device.
        cpu_slots: bounds concurrent decoding by `fast`, since many more threads wait for the device.
    """

    fast: Fast
    decoder: GpuDecoder
    cpu_slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(decode_threads()))

    def decode(self, image: Image.Image, data: bytes) -> Resize:
        """See `Exact.decode`."""
        # A GPU decoder may fill in missing rows; a complete file has an end marker.
        is_complete = data.rstrip(b"\0").endswith(END_OF_IMAGE)
        if is_complete and is_plain_jpeg(image) and image.info.get("adobe_transform") != ADOBE_RGB:
            pixels = self.decoder.decode(data, image.size)
            if pixels is not None:
                return lambda: pixels
        with self.cpu_slots:
            return self.fast.decode(image, data)

    def resize(self, rgb_hwc: Pixels) -> Pixels:
        """See `Exact.resize`; on the CPU."""
        with self.cpu_slots:
            return self.fast.resize(rgb_hwc)


Preprocessing: TypeAlias = Exact | Fast | Gpu


def preprocessing(
    mode: Literal["exact", "fast", "gpu"], image_size: int, values: dict[str, Any], *, device: str = "cpu"
) -> Preprocessing:
    """The preprocessing of this name, for input of side `image_size`; `device` decodes with `gpu`.

    Raises:
        SettingsError: `gpu` without nvImageCodec.
    """
    if mode == "exact":
        return Exact(image_size, values)
    fast = Fast(image_size, values)
    if mode == "fast":
        return fast
    import torch  # noqa: PLC0415  with `exact` a web process loads no torch

    from service.images.gpu import GpuDecoder  # noqa: PLC0415

    return Gpu(fast, GpuDecoder(torch.device(device), image_size, values))


def decode_threads(n_processes: int = 1) -> int:
    """Decoding threads of each of `n_processes`: one per core, at most 8."""
    return max(1, min(MAX_THREADS, usable_cores() // n_processes))


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether it is a JPEG in RGB or grey."""
    return image.format in {"JPEG", "MPO"} and image.mode in {"RGB", "L"}


def decode_jpeg(
    image: Image.Image, data: bytes, *, min_side_px: int = 0
) -> tuple[Pixels, tuple[float, float] | None] | None:
    """Decode a plain JPEG with simplejpeg; at full size it is bit-identical to Pillow.

    Args:
        image: the file as Pillow opened it.
        data: the file.
        min_side_px: scale down while decoding, with both sides at least this long; 0 keeps the full size.

    Returns:
        uint8 [H, W, 3] as stored, not rotated, and the height and width that the image fills if it was scaled, where
        the last row and column may be partly filled. None if the library fails or warns; use Pillow then.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:
            return None
        # Strict: the library's warnings are errors.
        rgb_hwc = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side_px, min_width=min_side_px, strict=True)
    except ValueError:
        return None
    if rgb_hwc.shape[:2] == (height, width):
        return rgb_hwc, None
    eighths = round(EIGHTHS * rgb_hwc.shape[0] / height)  # the library rounds the size up, by less than one pixel
    return rgb_hwc, (height * eighths / EIGHTHS, width * eighths / EIGHTHS)
