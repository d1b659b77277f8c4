"""Decodes uploaded images on threads, within limits.

Limits are checked on the header, before any pixel is decoded: bytes, pixels, sides, aspect ratio and, for JPEG, the
number of scans. Only three of Pillow's forty formats are enabled.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from PIL import Image, ImageFile

from service.errors import ImageFormatError, ImageRejectedError, ImageTooLargeError, OverloadedError
from service.images.preprocessing import Pixels, decode_threads, preprocessing
from service.process import use_one_torch_thread
from service.settings import Settings

logger = logging.getLogger(__name__)

Image.MAX_IMAGE_PIXELS = None  # `check_size` has the service's own limits, with errors for each
ImageFile.LOAD_TRUNCATED_IMAGES = False

T = TypeVar("T")
Format = Literal["JPEG", "PNG", "WEBP"]

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN: Final = 0xDA
END_OF_IMAGE: Final = 0xD9
MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""A JPEG marker with a length field, or the end of the image: not stuffing, padding, restart or start of image."""
MAX_SEGMENTS: Final = 5_000
MAX_JUNK_BYTES: Final = 10_000


@dataclass(frozen=True)
class Decoded:
    """An image ready for the model: `pixels` uint8 [3, H, W], and notes for the answer, such as `cmyk`."""

    pixels: Pixels
    notes: tuple[str, ...]


def sniff(data: bytes) -> Format:
    """The format, from the first bytes.

    Raises:
        ImageFormatError: not JPEG, PNG or WebP.
        ImageRejectedError: the file is empty or too short.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(PNG_MAGIC):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if len(data) < len(PNG_MAGIC) or not any(data[:64]):
        raise ImageRejectedError("The image is empty or too short.")
    raise ImageFormatError("The image is not a JPEG, PNG or WebP file.")


def check_jpeg(data: bytes, max_scans: int) -> None:
    """Bound the work of decoding a JPEG.

    A decoder processes all pixels for every scan, and Pillow scans all bytes between header segments.

    Raises:
        ImageRejectedError: too many scans, segments or bytes between them.
    """
    n_scans = n_segments = n_junk = 0
    end = 2
    while (found := MARKER.search(data, end)) and (marker := data[found.end() - 1]) != END_OF_IMAGE:
        n_junk += found.start() - end if n_scans == 0 else 0
        n_scans += marker == START_OF_SCAN
        n_segments += 1
        if n_scans > max_scans or n_segments > MAX_SEGMENTS:
            message = f"The JPEG has more than {max_scans} scans or {MAX_SEGMENTS} segments."
            raise ImageRejectedError(message, code="image_scans")
        end = found.end() + max(int.from_bytes(data[found.end() : found.end() + 2], "big"), 2)
    if n_scans == 0:
        n_junk += (found.start() if found else len(data)) - end
    if n_junk > MAX_JUNK_BYTES:
        raise ImageRejectedError("The JPEG file is damaged and cannot be decoded.")


def check_size(width: int, height: int, settings: Settings) -> None:
    """Reject sizes beyond the limits.

    Raises:
        ImageTooLargeError: too many pixels or too long a side.
        ImageRejectedError: no pixels, or an aspect ratio beyond the limit.
    """
    if width < 1 or height < 1:
        raise ImageRejectedError("The image has a width or height of zero.")
    if width * height > settings.max_image_pixels or max(width, height) > settings.max_image_side_px:
        raise ImageTooLargeError(
            f"The image is {width} x {height} pixels; the limits are {settings.max_image_pixels} pixels and "
            f"{settings.max_image_side_px} per side. Scale it down.",
            code="image_pixels",
            extra={"limit": settings.max_image_pixels},
        )
    if max(width, height) > settings.max_image_aspect * min(width, height):
        raise ImageRejectedError(
            f"The image is {width} x {height} pixels; the maximum aspect ratio is {settings.max_image_aspect:g} to 1. "
            "Crop it.",
            code="image_aspect",
        )


def open_image(data: bytes, settings: Settings, decode: Callable[[Image.Image, bytes], T]) -> tuple[T, tuple[str, ...]]:
    """Check a file and `decode` it (see `Exact.decode`).

    Returns:
        The result of `decode`, and notes on conversions (`cmyk`, `first_frame`).

    Raises:
        ImageFormatError: not JPEG, PNG or WebP.
        ImageTooLargeError: beyond a limit.
        ImageRejectedError: damaged, animated, or beyond another limit.
    """
    if len(data) > settings.max_image_bytes:
        raise ImageTooLargeError(
            f"The image has {len(data)} bytes; the limit is {settings.max_image_bytes}.",
            extra={"limit": settings.max_image_bytes},
        )
    kind = sniff(data)
    if kind == "JPEG":
        check_jpeg(data, settings.max_image_scans)
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            check_size(*image.size, settings)
            notes = _notes(image)
            return decode(image, data), notes
    except ImageRejectedError:
        raise
    except Exception as error:
        # Pillow raises many kinds of errors, some with memory addresses in the text; clients must not see them.
        logger.info("image.rejected", extra={"kind": kind, "reason": type(error).__name__})
        if "truncated" in str(error).lower() or isinstance(error, EOFError):
            raise ImageRejectedError(f"The {kind} file is truncated.", code="image_truncated") from error
        raise ImageRejectedError(f"The {kind} file is damaged and cannot be decoded.") from error


def _notes(image: Image.Image) -> tuple[str, ...]:
    """Conversions to report in the response.

    Raises:
        ImageRejectedError: the image is animated.
    """
    is_multi_picture = image.format == "MPO"
    if not is_multi_picture and getattr(image, "n_frames", 1) > 1:
        raise ImageRejectedError("Animated images are not supported; send one frame.", code="image_animated")
    found = {"cmyk": image.mode == "CMYK", "first_frame": is_multi_picture}
    return tuple(note for note, is_so in found.items() if is_so)


class Decoder:
    """A thread pool that turns files into pixels, off the event loop.

    Args:
        settings: limits, threads and the kind of preprocessing.
        image_size: side of the backbone's square input, in pixels.
        values: the backbone's preprocessing values.
        device: decodes with `preprocess=gpu`.

    Raises:
        SettingsError: `preprocess=gpu` without nvImageCodec.
    """

    def __init__(self, settings: Settings, image_size: int, values: dict[str, Any], *, device: str = "cpu") -> None:
        self._settings = settings
        self._preprocessing = preprocessing(settings.preprocess, image_size, values, device=device)
        self._max_waiting = settings.max_decoding_images
        self._n_waiting = 0
        # Threads wait while the GPU decodes; more threads make larger batches.
        n_waiting_threads = min(64, self._max_waiting) if settings.preprocess == "gpu" else 0
        n_threads = settings.n_decode_threads or n_waiting_threads or decode_threads()
        # Images are resized side by side, by one thread of torch each; `exact` needs no torch.
        prepare_thread = None if settings.preprocess == "exact" else use_one_torch_thread
        self._threads = ThreadPoolExecutor(n_threads, "decode", initializer=prepare_thread)

    def check_room(self, n_images: int) -> None:
        """Check that there is room for more images.

        Raises:
            OverloadedError: too many images are waiting.
        """
        if self._n_waiting + n_images > self._max_waiting:
            raise OverloadedError(
                f"Server overloaded: {self._n_waiting} images are being decoded. Retry later.", retry_after_s=1.0
            )

    @contextmanager
    def places(self, n_images: int) -> Iterator[None]:
        """Reserve room for images, all or none.

        Raises:
            OverloadedError: too many images are waiting.
        """
        self.check_room(n_images)
        self._n_waiting += n_images
        try:
            yield
        finally:
            self._n_waiting -= n_images

    async def decode(self, data: bytes) -> Decoded:
        """Decode one file on a thread, inside `places`.

        Raises:
            ImageRejectedError: see `open_image`.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data)

    def close(self) -> None:
        """Cancel waiting images; running ones finish."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, data: bytes) -> Decoded:
        resize, notes = open_image(data, self._settings, self._preprocessing.decode)
        return Decoded(resize(), notes)
