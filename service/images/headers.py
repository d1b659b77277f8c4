"""Reads the headers of image files and limits the work of decoding them, before any decoder runs.

The number of pixels alone does not bound the work: a decoder processes all pixels of a JPEG once per scan, and Pillow
runs Python for every PNG chunk. Metadata that does not affect the pixels is removed from PNGs rather than parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from prompted_clip.preprocess import PNG_MAGIC, without_metadata
from service.errors import ImageFormatError, ImageRejectedError, ImageTooLargeError
from service.images import webp
from service.settings import Settings

Format = Literal["JPEG", "PNG", "WEBP"]

MAX_JUNK_BYTES: Final = 10_000
MAX_SEGMENTS: Final = 5_000
MAX_HEADER_SEGMENTS: Final = 250
"""JPEG segments before the first scan; 10 MiB are 160 full ones. Pillow takes quadratic time for them."""
FULL_SCANS: Final = 20
"""A JPEG with the maximum number of pixels may have this many scans, a smaller one more; encoders write 10 to 18."""
ARITHMETIC_COST: Final = 100
"""A scan with arithmetic coding counts as this many: its data may be almost empty, and no browser reads such files."""
MAX_CHUNKS: Final = 20_000
"""Chunks of a PNG or WebP. libpng writes 8 KiB of pixels per chunk; some encoders write a chunk per row."""
CODES_BYTES: Final = 6 * 1024
"""libwebp's tables for one group of Huffman codes."""
ALPHA: Final = 0x10
ANIMATION: Final = 0x02
"""Flags of an extended WebP; an animation of one frame is a still image."""

MANY_CHUNKS: Final = f"The image file has more than {MAX_CHUNKS} chunks. Save it again with another program."
DAMAGED: Final = "The image file is damaged and cannot be decoded."

MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""A JPEG marker with a length field, or the end of the image: not stuffing, padding, restart or start of image."""
FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE_MARKERS: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
END_OF_IMAGE: Final = 0xD9
START_OF_SCAN: Final = 0xDA
APP1: Final = 0xE1


@dataclass(frozen=True, slots=True)
class Header:
    """Format, and width and height in pixels as stored; (0, 0) if the header is damaged.

    `n_bytes` bounds the memory that decoding takes, all copies together, up to an upright RGB image. `pixel_cost` is
    the time per pixel, relative to other files of the format.
    """

    kind: Format
    size: tuple[int, int] = (0, 0)
    n_bytes: int = 0
    pixel_cost: int = 1

    @property
    def n_pixels(self) -> int:
        """Width times height."""
        return self.size[0] * self.size[1]


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
        raise ImageRejectedError("The image is empty or too short. Send a JPEG, PNG or WebP file.")
    raise ImageFormatError("The image is not a JPEG, PNG or WebP file. Convert it to one of these.")


def too_large(n_bytes: int, max_bytes: int) -> ImageTooLargeError:
    """The error for an image file with too many bytes."""
    message = f"The image has {n_bytes} bytes; the limit is {max_bytes}. Scale it down."
    return ImageTooLargeError(message, extra={"limit": max_bytes})


def read_header(data: bytes, max_bytes: int) -> Header:
    """Read the format and the size, in less than a millisecond.

    Raises:
        ImageTooLargeError: the file has more than `max_bytes`.
        ImageRejectedError: see `sniff`.
    """
    if len(data) > max_bytes:
        raise too_large(len(data), max_bytes)
    kind = sniff(data)
    if kind == "JPEG":
        return _jpeg_header(data)
    return _png_header(data) if kind == "PNG" else _webp_header(data)


def _jpeg_header(data: bytes) -> Header:
    size, n_components, frame, has_exif = (0, 0), 0, 0, False
    for marker, at in _jpeg_segments(data):
        if marker in FRAME_MARKERS:
            frame, n_components = marker, _number(data, at + 7, 1)
            size = (_number(data, at + 5, 2), _number(data, at + 3, 2))
        elif marker == APP1:
            has_exif |= data.startswith(b"Exif\0\0", at + 2)
        elif marker == START_OF_SCAN:
            # Pillow has 1 byte for grey, else 4. A rotated or converted copy has 4; coefficients of all scans have 2.
            per_pixel = 4 if n_components == 3 and not has_exif else 8
            if frame in PROGRESSIVE_MARKERS or _number(data, at + 2, 1) < n_components:
                per_pixel = max(per_pixel, 4 + 2 * n_components)
            return Header("JPEG", size, per_pixel * size[0] * size[1], ARITHMETIC_COST if frame > 0xC8 else 1)
    return Header("JPEG")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of the length of each segment, and of each scan's header.

    Raises:
        ImageRejectedError: too many segments, or bytes between them.
    """
    end, n_junk, n_segments, has_scan = 2, 0, 0, False
    while found := MARKER.search(data, end, len(data) if has_scan else end + MAX_JUNK_BYTES - n_junk):
        at, marker = found.end(), data[found.end() - 1]
        if marker == END_OF_IMAGE:
            return
        has_scan |= marker == START_OF_SCAN
        n_segments += 1
        if n_segments > (MAX_SEGMENTS if has_scan else MAX_HEADER_SEGMENTS):
            raise ImageRejectedError("The JPEG has too many segments. Save it without metadata.", code="image_scans")
        yield marker, at
        n_junk += found.start() - end
        end = at + max(_number(data, at, 2), 2)
    if not has_scan and end + MAX_JUNK_BYTES - n_junk < len(data):
        raise ImageRejectedError(DAMAGED)


def _png_header(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        return Header("PNG")
    width, height = _number(data, 16, 4), _number(data, 20, 4)
    is_one_byte = data[24:25] <= b"\x08" and data[25:26] in {b"\0", b"\3"}
    pixel_cost = 2 if data[24:26] in {b"\x10\2", b"\x10\6"} else 1  # 16-bit RGB or RGBA
    return Header("PNG", (width, height), (5 if is_one_byte else 8) * width * height, pixel_cost)


def _webp_header(data: bytes) -> Header:
    width = height = 0
    if data[12:16] == b"VP8 ":
        width, height = _number(data, 26, 2, "little") & 0x3FFF, _number(data, 28, 2, "little") & 0x3FFF
    elif data[12:16] == b"VP8X":
        width, height = _number(data, 24, 3, "little") + 1, _number(data, 27, 3, "little") + 1
    elif data[12:16] == b"VP8L":
        width, height = (
            (_number(data, 21, 4, "little") & 0x3FFF) + 1,
            (_number(data, 21, 4, "little") >> 14 & 0x3FFF) + 1,
        )
    # Each 4 x 4 pixels of a lossless image may have their own Huffman codes, which take 4 bytes of the file.
    n_codes = 0 if data[12:16] == b"VP8 " else min(65_536, width * height // 16, len(data) // 4)
    # libwebp has the codes beside the result and its own pixels, or those of the alpha channel and that channel.
    flags = data[20] if data[12:16] == b"VP8X" and len(data) > 20 else 0
    n_bytes = (9 if flags & ALPHA else 8) * width * height + CODES_BYTES * n_codes
    if flags & ANIMATION or not webp.IS_AVAILABLE:  # libwebp has two canvases, without the codes, and Pillow two copies
        n_bytes = max(n_bytes, 16 * width * height)
    return Header("WEBP", (width, height), n_bytes)


def _number(data: bytes, at: int, n_bytes: int, order: Literal["big", "little"] = "big") -> int:
    return int.from_bytes(data[at : at + n_bytes], order)


def check_size(size: tuple[int, int], settings: Settings) -> None:
    """Reject an image whose width and height in pixels are beyond the limits.

    Raises:
        ImageTooLargeError: too many pixels or too long a side.
        ImageRejectedError: no pixels, or an aspect ratio beyond the limit.
    """
    width, height = size
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


def check_work(data: bytes, header: Header, settings: Settings) -> bytes:
    """Check that a file takes no more work than usual for its size, and remove metadata that need not be parsed.

    Raises:
        ImageRejectedError: too many scans or chunks, or too many pixels for the kind of file.
    """
    n_pixels, max_cost = header.n_pixels, settings.max_image_pixels
    cost = n_pixels * header.pixel_cost
    if header.kind == "PNG":
        if n_pixels <= max_cost < cost:
            limit = max_cost // header.pixel_cost
            message = f"The PNG has 16-bit colour and {n_pixels} pixels; the limit is {limit}. Save it with 8 bits."
            raise ImageTooLargeError(message, code="image_pixels", extra={"limit": limit})
        try:
            return without_metadata(data, MAX_CHUNKS)
        except ValueError as error:
            raise ImageRejectedError(MANY_CHUNKS, code="image_chunks") from error
    if header.kind == "WEBP":
        _check_chunks(data)
    else:
        max_scans = settings.max_image_scans
        if 0 < n_pixels <= max_cost:
            max_scans = min(max_scans, FULL_SCANS * max_cost // cost)
        _check_scans(data, max_scans)
    return data


def _check_chunks(data: bytes) -> None:
    at, end = 12, min(len(data), 8 + _number(data, 4, 4, "little"))
    for _ in range(MAX_CHUNKS):
        n_bytes = _number(data, at + 4, 4, "little")
        at += 8 + n_bytes + n_bytes % 2
        if at >= end:
            return
    raise ImageRejectedError(MANY_CHUNKS, code="image_chunks")


def _check_scans(data: bytes, max_scans: int) -> None:
    if data.count(bytes((0xFF, START_OF_SCAN))) <= max_scans:
        return
    scans = (at for marker, at in _jpeg_segments(data) if marker == START_OF_SCAN)
    if len(list(islice(scans, max_scans + 1))) > max_scans:
        message = f"The JPEG has more than {max_scans} scans, the limit for its size. Save it as a baseline JPEG."
        raise ImageRejectedError(message, code="image_scans")
