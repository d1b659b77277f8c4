"""Decodes uploaded images on threads, within limits of size, work and memory.

Limits are checked on the header, before any pixel is decoded. Only three of Pillow's forty formats are enabled.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from PIL import Image, ImageFile

from prompted_clip.preprocess import upright_rgb
from service.errors import CapacityError, ImageRejectedError, OverloadedError
from service.images.headers import DAMAGED, Header, check_size, check_work, read_header
from service.images.pool import FairThreadPool
from service.images.preprocessing import MAX_THREADS, Pixels, decode_threads, preprocessing
from service.images.webp import decode_webp
from service.process import use_one_torch_thread
from service.scheduler.budget import Budget
from service.settings import MIB, Settings

logger = logging.getLogger(__name__)

Image.MAX_IMAGE_PIXELS = None  # `check_size` has the service's own limits, with errors for each
ImageFile.LOAD_TRUNCATED_IMAGES = False

T = TypeVar("T")

BYTES_PER_THREAD: Final = 160 * MIB
"""Default of `max_decoding_bytes`, per thread: a photograph of 20 million pixels that is rotated."""
COPIED_PIXEL_BYTES: Final = 4
"""Pillow's copy of an image that arrives as pixels."""
THUMBNAIL_SIDE_PX: Final = 320
THUMBNAIL_QUALITY: Final = 80


@dataclass(frozen=True)
class Decoded:
    """An image ready for the model.

    Attributes:
        pixels: uint8 [3, H, W].
        notes: for the answer, such as `cmyk`.
        thumbnail: see `thumbnail_of`; None unless requested.
    """

    pixels: Pixels
    notes: tuple[str, ...]
    thumbnail: bytes | None = None


def open_image(
    data: bytes, settings: Settings, decode: Callable[[Image.Image, bytes], T], header: Header | None = None
) -> tuple[T, tuple[str, ...]]:
    """Check a file, whose `header` may have been read already, and `decode` it (see `Exact.decode`).

    Returns:
        The result of `decode`, and notes on conversions (`cmyk`, `first_frame`).

    Raises:
        ImageFormatError: not JPEG, PNG or WebP.
        ImageTooLargeError: beyond a limit.
        ImageRejectedError: damaged, animated, or beyond another limit.
        CapacityError: out of memory.
    """
    header = header or read_header(data, settings.max_image_bytes)
    data = check_work(data, header, settings)
    try:
        with Image.open(io.BytesIO(data), formats=(header.kind,)) as image:
            check_size(image.size, settings)
            if image.size != header.size:
                raise ImageRejectedError(DAMAGED)  # noqa: TRY301  the handlers below are for the decoders
            notes = _notes(image)
            if header.kind != "WEBP":
                return decode(image, data), notes
            mode, info = image.mode, image.info
        del image  # Pillow's decoder has two canvases
        if webp := decode_webp(data, header.size, mode, info):
            return decode(webp, data), notes
        with Image.open(io.BytesIO(data), formats=(header.kind,)) as image:
            return decode(image, data), notes
    except ImageRejectedError:
        raise
    except MemoryError as error:
        logger.error("image.out_of_memory", extra={"kind": header.kind, "n_pixels": header.n_pixels})  # noqa: TRY400
        message = "Out of memory while decoding this image. Retry later, or send a smaller one."
        raise CapacityError(message, retry_after_s=1.0) from error
    except Exception as error:
        # Pillow raises many kinds of errors, some with memory addresses in the text; clients must not see them.
        logger.info("image.rejected", extra={"kind": header.kind, "reason": type(error).__name__})
        if "truncated" in str(error).lower() or isinstance(error, EOFError):
            message = f"The {header.kind} file is truncated. Send the whole file."
            raise ImageRejectedError(message, code="image_truncated") from error
        raise ImageRejectedError(DAMAGED) from error


def thumbnail_of(image: Image.Image, data: bytes) -> bytes:  # noqa: ARG001  Pillow has the data
    """A WebP of at most `THUMBNAIL_SIDE_PX` per side, upright and without metadata; for `open_image`."""
    image.draft(None, (2 * THUMBNAIL_SIDE_PX, 2 * THUMBNAIL_SIDE_PX))  # scales a JPEG down while it is decoded
    upright = upright_rgb(image)
    upright.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    file = io.BytesIO()
    upright.save(file, "WEBP", quality=THUMBNAIL_QUALITY, icc_profile="")
    return file.getvalue()


def _notes(image: Image.Image) -> tuple[str, ...]:
    """Conversions to report in the response.

    Raises:
        ImageRejectedError: the image is animated.
    """
    is_multi_picture = image.format == "MPO"
    if not is_multi_picture and getattr(image, "n_frames", 1) > 1:
        raise ImageRejectedError("Animated images are not supported; send one frame.", code="image_animated")
    notes = ("cmyk",) if image.mode == "CMYK" else ()
    return (*notes, "first_frame") if is_multi_picture else notes


class Decoder:
    """A thread pool that turns files into pixels, off the event loop.

    Args:
        settings: limits, threads and the kind of preprocessing.
        image_size: side of the backbone's square input, in pixels.
        values: the backbone's preprocessing values.
        device: decodes with `preprocess=gpu`.

    Attributes:
        places: for images that wait or are decoded; held by the caller.

    Raises:
        SettingsError: `preprocess=gpu` without nvImageCodec.
    """

    def __init__(self, settings: Settings, image_size: int, values: dict[str, Any], *, device: str = "cpu") -> None:
        self._settings = settings
        self._preprocessing = preprocessing(settings.preprocess, image_size, values, device=device)
        # A single tenant may hold two thirds of a budget.
        self.places = Budget(
            (3 * settings.max_decoding_images + 1) // 2, "places for images in decoding", OverloadedError
        )
        # Threads wait while the GPU decodes; more threads make larger batches.
        n_waiting_threads = min(64, settings.max_decoding_images) if settings.preprocess == "gpu" else 0
        n_threads = settings.n_decode_threads or n_waiting_threads or decode_threads()
        # Images are resized side by side, by one thread of torch each; `exact` needs no torch.
        prepare_thread = None if settings.preprocess == "exact" else use_one_torch_thread
        max_bytes = settings.max_decoding_bytes or BYTES_PER_THREAD * min(n_threads, MAX_THREADS)
        self._threads = FairThreadPool(n_threads, max_bytes, prepare_thread)

    async def decode(self, data: bytes, tenant: Hashable, *, with_thumbnail: bool = False) -> Decoded:
        """Decode one file on a thread in its tenant's turn.

        Raises:
            ImageRejectedError, CapacityError: see `open_image`.
        """
        header = read_header(data, self._settings.max_image_bytes)
        is_within_limit = header.n_pixels <= self._settings.max_image_pixels
        n_bytes = len(data) + (header.n_bytes if is_within_limit else 0)
        job = partial(self._decode, data, header, with_thumbnail=with_thumbnail)
        return await self._threads.run(job, tenant=tenant, n_bytes=n_bytes)

    async def resize(self, rgb_hwc: Pixels, tenant: Hashable) -> Decoded:
        """Resize and crop an image that is decoded already, uint8 [H, W, 3], as `decode` does with files.

        Raises:
            ImageRejectedError: its size is beyond a limit.
        """
        height, width = rgb_hwc.shape[:2]
        check_size((width, height), self._settings)
        job = partial(self._preprocessing.resize, rgb_hwc)
        pixels = await self._threads.run(job, tenant=tenant, n_bytes=COPIED_PIXEL_BYTES * width * height)
        return Decoded(pixels, ())

    def close(self) -> None:
        """Cancel waiting images; running ones finish."""
        self._threads.close()

    def _decode(self, data: bytes, header: Header, *, with_thumbnail: bool) -> Decoded:
        try:
            resize, notes = open_image(data, self._settings, self._preprocessing.decode, header)
            pixels = resize()
            if not with_thumbnail:
                return Decoded(pixels, notes)
            del resize  # holds the decoded image
            # The model's pixels are cropped, and with `fast` may be decoded at a smaller size.
            return Decoded(pixels, notes, open_image(data, self._settings, thumbnail_of, header)[0])
        except (ImageRejectedError, CapacityError) as error:
            # The frames of a traceback hold the image until the request is answered.
            error.__cause__ = error.__context__ = None
            raise error.with_traceback(None) from None
