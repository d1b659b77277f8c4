"""From an opened image file to the backbone's pixels, in one of three ways.

`exact` gives the pixels of open_clip's own transform, bit for bit. `fast` lets the JPEG decoder shrink large pictures
while it decodes and resizes with torch; its pixels differ a little (docs/images.md says how much). `gpu` decodes and
resizes JPEGs on the device, and takes other files the fast way. All accept the same files, but for damage that a
GPU does not see: Pillow reads every header, and decides about every file that the quicker decoder will not take. Knows
nothing of limits, threads or HTTP.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from prompted_clip.preprocess import exif_turn, to_pixels, to_pixels_fast, upright_rgb
from service.cores import usable_cores

Pixels = NDArray[np.uint8]

MOST_THREADS: Final = 8
"""That decode in one process; beyond them they wait for Python's lock."""
KEPT_DETAIL: Final = 2
"""A picture is shrunk while decoding to no less than so many times the backbone's side; the rest is resized."""
EIGHTHS: Final = 8
"""libjpeg-turbo shrinks to a number of eighths: those rows and columns of a block's frequencies are left out."""


END_OF_IMAGE: Final = b"\xff\xd9"
ADOBE_RGB: Final = 0
"""Adobe's mark on a JPEG whose three channels are red, green and blue; not every decoder heeds it."""


@dataclass(frozen=True)
class Raster:
    """An RGB picture of any size as an array.

    Attributes:
        rgb_hwc: uint8 [H, W, 3], writable.
        extent_hw: how much of it the picture fills, from the top left, in pixels.
    """

    rgb_hwc: Pixels
    extent_hw: tuple[float, float]

    @classmethod
    def of(cls, image: Image.Image) -> Raster:
        """The same from Pillow."""
        return cls(np.array(image), (image.height, image.width))


Picture = Image.Image | Raster
"""Upright 8-bit RGB of any size."""


class Preprocessing(Protocol):
    """How an opened file becomes pixels."""

    def read(self, image: Image.Image, data: bytes) -> Picture:
        """Decode to upright RGB.

        Args:
            image: opened by Pillow, no pixel decoded yet.
            data: the file.

        Raises:
            Exception: whatever Pillow raises for damaged pixels.
        """

    def to_pixels(self, picture: Picture) -> Pixels:
        """Bring what `read` returned to the backbone's uint8 [3, H, W]."""

    def prepare_thread(self) -> None:
        """Called once on every thread that decodes."""


@dataclass(frozen=True)
class Exact:
    """The pixels of open_clip's transform.

    Attributes:
        image_size: side of the backbone's input, in pixels.
        values: the backbone's preprocessing values.
    """

    image_size: int
    values: dict[str, Any]

    def read(self, image: Image.Image, data: bytes) -> Picture:
        """Decode at full size, by the quicker decoder where nothing is left to do afterwards; see `Preprocessing`."""
        # Pillow resizes only what Pillow holds, and copying a picture into it costs what the quicker decoder gained.
        is_ready = image.size == (self.image_size, self.image_size)
        if is_ready and is_plain_jpeg(image) and exif_turn(image) is None:
            return jpeg_raster(image, data) or upright_rgb(image)
        return upright_rgb(image)

    def to_pixels(self, picture: Picture) -> Pixels:
        """Resize and crop as open_clip does."""
        if isinstance(picture, Image.Image):
            return to_pixels(picture, self.image_size, self.values)
        return np.ascontiguousarray(picture.rgb_hwc.transpose(2, 0, 1))

    def prepare_thread(self) -> None:
        """Nothing: Pillow computes where it is called."""


@dataclass(frozen=True)
class Fast:
    """Nearly those pixels, sooner.

    Attributes:
        image_size: side of the backbone's input, in pixels.
        values: the backbone's preprocessing values.
    """

    image_size: int
    values: dict[str, Any]

    def read(self, image: Image.Image, data: bytes) -> Picture:
        """Decode at the size that is needed, roughly; see `Preprocessing`."""
        if not is_plain_jpeg(image):
            return Raster.of(upright_rgb(image))
        turn = exif_turn(image)
        # Turned, a partly filled row or column could come first. Cameras, whose pictures are turned, make whole blocks.
        may_shrink = turn is None or not any(side % EIGHTHS for side in image.size)
        raster = jpeg_raster(image, data, min_side_px=KEPT_DETAIL * self.image_size if may_shrink else 0)
        if raster is None:
            return Raster.of(upright_rgb(image))
        return raster if turn is None else Raster.of(Image.fromarray(raster.rgb_hwc).transpose(turn))

    def to_pixels(self, picture: Picture) -> Pixels:
        """Resize and crop with torch."""
        raster = Raster.of(picture) if isinstance(picture, Image.Image) else picture
        return to_pixels_fast(raster.rgb_hwc, self.image_size, self.values, extent_HW=raster.extent_hw)

    def prepare_thread(self) -> None:
        """One core per thread: images are resized side by side."""
        from prompted_clip.threads import compute_alone  # noqa: PLC0415  a process that decodes exactly has no torch

        compute_alone()


class DeviceDecoder(Protocol):
    """What decodes and resizes on the device; `service.images.gpu.GpuDecoder` does."""

    def decode(self, data: bytes, size: tuple[int, int]) -> Pixels | None:
        """A JPEG's pixels, uint8 [3, H, W] of the backbone's size; None to pass it on. `size` is the header's."""


@dataclass(frozen=True)
class Gpu:
    """Plain JPEGs on the device, everything else the fast way.

    Attributes:
        fast: for what the device does not take.
        decoder: on the device.
        cores: how many files may be decoded the fast way at once; threads that wait for the device are many more.
    """

    fast: Fast
    decoder: DeviceDecoder
    cores: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(decode_threads()))

    def read(self, image: Image.Image, data: bytes) -> Picture:
        """Decode, and resize what the device has decoded; see `Preprocessing`."""
        # A decoder on the device may fill in what is missing; the last marker of a whole file is there.
        is_whole = data.rstrip(b"\0").endswith(END_OF_IMAGE)
        pads = self.fast.values.get("resize_mode") == "longest"
        if is_whole and not pads and is_plain_jpeg(image) and image.info.get("adobe_transform") != ADOBE_RGB:
            pixels = self.decoder.decode(data, image.size)
            if pixels is not None:
                return Raster(pixels.transpose(1, 2, 0), pixels.shape[1:])
        with self.cores:
            return self.fast.read(image, data)

    def to_pixels(self, picture: Picture) -> Pixels:
        """Nothing for what is of the backbone's size already."""
        return self.fast.to_pixels(picture)

    def prepare_thread(self) -> None:
        """As the fast way needs it."""
        self.fast.prepare_thread()


def preprocessing(
    way: Literal["exact", "fast", "gpu"], image_size: int, values: dict[str, Any], *, device: str = "cpu"
) -> Preprocessing:
    """The way that the settings name.

    Args:
        way: value of the setting `preprocess`.
        image_size: side of the backbone's input, in pixels.
        values: the backbone's preprocessing values.
        device: for `gpu`, the one to decode on.

    Raises:
        SettingsError: `gpu` without the package that it needs.
    """
    if way == "exact":
        return Exact(image_size, values)
    fast = Fast(image_size, values)
    if way == "fast":
        return fast
    import torch  # noqa: PLC0415  a process that decodes exactly has no torch

    from service.images.gpu import GpuDecoder  # noqa: PLC0415

    return Gpu(fast, GpuDecoder(torch.device(device), image_size, values))


def decode_threads(n_processes: int = 1) -> int:
    """Threads that decode on the processor, in each of so many processes: one per core they may use, 8 at most."""
    return max(1, min(MOST_THREADS, usable_cores() // n_processes))


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether it is a JPEG in colour or grey: such a file has its metadata in its header, and no transparency."""
    return image.format in {"JPEG", "MPO"} and image.mode in {"RGB", "L"}


def jpeg_raster(image: Image.Image, data: bytes, *, min_side_px: int = 0) -> Raster | None:
    """Decode a plain JPEG with libjpeg-turbo alone: at full size the bits that Pillow gives, without Pillow's copies.

    Args:
        image: the file as Pillow opened it.
        data: the file.
        min_side_px: shrink while decoding, but keep both sides at least as long as this; 0 keeps the full size.

    Returns:
        The picture as stored, not turned; None for a file that is not quite sound, for Pillow to judge.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:
            return None
        # Strict: a mere warning of the library is an error here. Pillow then finds out whether the file is cut short.
        rgb_hwc = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side_px, min_width=min_side_px, strict=True)
    except ValueError:
        return None
    if rgb_hwc.shape[:2] == (height, width):
        return Raster(rgb_hwc, (height, width))
    eighths = round(EIGHTHS * rgb_hwc.shape[0] / height)  # the library rounds the size up, by less than one pixel
    return Raster(rgb_hwc, (height * eighths / EIGHTHS, width * eighths / EIGHTHS))
