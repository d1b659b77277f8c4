"""From the bytes a stranger sent to an RGB picture, or a reason why not.

Limits are checked on the header, before any pixel is decoded: bytes, pixels, sides, aspect and (for JPEG) the number of
scans. Only three parsers of Pillow's forty can ever be entered. Knows nothing of HTTP, domains or the model; how a file
within the limits is decoded, and what is done with the picture afterwards, is handed in.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageFile

from service.errors import ImageRejectedError, ImageTooLargeError, OverloadedError
from service.images.headers import declared_size, sniff
from service.images.preprocessing import Picture, Pixels, Preprocessing, decode_threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageLimits:
    """What one image may be; sizes in bytes and pixels."""

    max_bytes: int
    max_pixels: int
    max_side_px: int
    max_aspect: float
    max_scans: int


@dataclass(frozen=True)
class Decoded:
    """A picture ready for the model: `pixels` uint8 [3, H, W], and notes such as `cmyk` for the answer."""

    pixels: Pixels
    notes: tuple[str, ...]


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse sizes that would cost too much, from the numbers alone.

    Raises:
        ImageTooLargeError: too many pixels or too long a side.
        ImageRejectedError: no pixels at all, or too long and thin.
    """
    if width < 1 or height < 1:
        raise ImageRejectedError("The image declares a width or height of zero.")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side_px:
        raise ImageTooLargeError(
            f"The image is {width} x {height} pixels; at most {limits.max_pixels} pixels and {limits.max_side_px} per "
            "side are served. Scale it down.",
            code="image_pixels",
            extra={"limit": limits.max_pixels},
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageRejectedError(
            f"The image is {width} x {height} pixels; at most {limits.max_aspect:g} to 1 is served. Crop it.",
            code="image_aspect",
        )


def open_rgb(
    data: bytes, limits: ImageLimits, read: Callable[[Image.Image, bytes], Picture]
) -> tuple[Picture, tuple[str, ...]]:
    """Check, decode and bring to upright 8-bit RGB on white.

    Args:
        data: the file.
        limits: what it may be.
        read: decodes what was opened; see `Preprocessing.read`.

    Returns:
        The picture and notes on what was done to it (`cmyk`, `first_frame`).

    Raises:
        ImageFormatError: not one of the three formats.
        ImageTooLargeError: beyond a limit.
        ImageRejectedError: broken, animated or otherwise not served.
    """
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"The image has {len(data)} bytes; at most {limits.max_bytes} are served.",
            extra={"limit": limits.max_bytes},
        )
    kind = sniff(data)
    check_size(*declared_size(kind, data, max_scans=limits.max_scans), limits)
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            check_size(*image.size, limits)
            notes = _notes(image)
            return read(image, data), notes
    except ImageRejectedError:
        raise
    except Exception as error:
        # Pillow raises a dozen kinds of errors, with memory addresses in some texts: none of it reaches the caller.
        logger.info("image.rejected", extra={"kind": kind, "reason": type(error).__name__})
        is_cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        if is_cut:
            raise ImageRejectedError(f"The {kind} file is cut short.", code="image_truncated") from error
        raise ImageRejectedError(f"The {kind} file is damaged and cannot be decoded.") from error


def _notes(image: Image.Image) -> tuple[str, ...]:
    """What an answer should mention about an image that is not served as it is.

    Raises:
        ImageRejectedError: it is an animation.
    """
    is_multi_picture = image.format == "MPO"
    if not is_multi_picture and getattr(image, "n_frames", 1) > 1:
        raise ImageRejectedError("Animated images are not served; send one frame.", code="image_animated")
    found = {"cmyk": image.mode == "CMYK", "first_frame": is_multi_picture}
    return tuple(note for note, is_so in found.items() if is_so)


class Decoder:
    """A few threads that turn files into pixels, away from the event loop.

    Args:
        limits: what one image may be.
        preprocessing: from an opened file to the model's uint8 [3, H, W].
        n_threads: images that decode at the same time; 0 takes one per core, 8 at most.
        max_waiting: images that may decode or wait for it.
    """

    def __init__(self, limits: ImageLimits, preprocessing: Preprocessing, *, n_threads: int, max_waiting: int) -> None:
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            logger.warning("decoder.truncated_allowed_elsewhere")
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        self._limits = limits
        self._preprocessing = preprocessing
        self._max_waiting = max_waiting
        self._n_waiting = 0
        n_threads = n_threads or decode_threads()
        self._threads = ThreadPoolExecutor(
            n_threads, thread_name_prefix="decode", initializer=preprocessing.prepare_thread
        )

    def check_room(self, n_images: int) -> None:
        """See whether this many more images may wait now, before a body is read for nothing.

        Raises:
            OverloadedError: too many already do.
        """
        if self._n_waiting + n_images > self._max_waiting:
            raise OverloadedError(
                f"{self._n_waiting} images are being decoded and at most {self._max_waiting} may; try again later.",
                retry_after_s=1.0,
            )

    @contextmanager
    def places(self, n_images: int) -> Iterator[None]:
        """Take the places of some images together, or none of them, and give them back at the end.

        Raises:
            OverloadedError: there are not as many.
        """
        self.check_room(n_images)
        self._n_waiting += n_images
        try:
            yield
        finally:
            self._n_waiting -= n_images

    async def decode(self, data: bytes) -> Decoded:
        """Decode one file in a thread; the caller holds a place for it.

        Raises:
            ImageRejectedError: see `open_rgb`.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data)

    def close(self) -> None:
        """Let the threads go; what runs finishes."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, data: bytes) -> Decoded:
        picture, notes = open_rgb(data, self._limits, self._preprocessing.read)
        return Decoded(self._preprocessing.to_pixels(picture), notes)
