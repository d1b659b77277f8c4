"""What an image file says of itself in its first bytes: format and size, without decoding a pixel."""

from __future__ import annotations

import re
import struct
from typing import Final, Literal

from service.errors import ImageFormatError, ImageRejectedError

Format = Literal["JPEG", "PNG", "WEBP"]

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN: Final = 0xDA
END_OF_IMAGE: Final = 0xD9
FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""A JPEG marker that has a length (or ends the image): neither stuffing, padding, restart nor start of image."""
MAX_SEGMENTS: Final = 5_000


def sniff(data: bytes) -> Format:
    """Tell the format from the first bytes.

    Raises:
        ImageFormatError: none of the three; empty input is `image_undecodable`.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(PNG_MAGIC):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if len(data) < len(PNG_MAGIC) or not any(data[:64]):
        raise ImageRejectedError("The image is empty or too short to be one.")
    raise ImageFormatError("Expected a JPEG, PNG or WebP file; the first bytes are of none of them.")


def jpeg_header(data: bytes, max_scans: int) -> tuple[int, int]:
    """Walk a JPEG's markers: its size, and a refusal when it has more scans than any honest file.

    Returns:
        Width and height in pixels of the largest frame that is declared.

    Raises:
        ImageRejectedError: no frame, or more scans or segments than allowed.
    """
    size = (0, 0)
    n_scans = n_segments = 0
    found = MARKER.search(data, 2)
    while found and (marker := data[found.start() + 1]) != END_OF_IMAGE and found.end() + 2 <= len(data):
        at = found.start()
        n_scans += marker == START_OF_SCAN
        n_segments += 1
        if n_scans > max_scans or n_segments > MAX_SEGMENTS:
            raise ImageRejectedError(
                f"The JPEG has more than {max_scans} scans or far too many parts.", code="image_scans"
            )
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in FRAME_MARKERS and at + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = max(size, (width, height), key=lambda pair: pair[0] * pair[1])
        found = MARKER.search(data, at + 2 + max(length, 2))
    if size == (0, 0):
        raise ImageRejectedError("The JPEG declares no size.")
    return size


def png_header(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that a PNG declares; whether it is animated is seen once its chunks are read.

    Raises:
        ImageRejectedError: no header chunk.
    """
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageRejectedError("The PNG has no header.")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def webp_header(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that a WebP declares.

    Raises:
        ImageRejectedError: an unknown first chunk, or an animation.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise ImageRejectedError("The WebP ends inside its header.", code="image_truncated")
    if kind == b"VP8X":
        if body[0] & 0x02:
            raise ImageRejectedError("Animated images are not served; send one frame.", code="image_animated")
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageRejectedError("The WebP starts with an unknown chunk.")


def declared_size(kind: Format, data: bytes, *, max_scans: int) -> tuple[int, int]:
    """Width and height in pixels that a file of this format declares.

    Raises:
        ImageRejectedError: see `jpeg_header`, `png_header`, `webp_header`.
    """
    match kind:
        case "PNG":
            return png_header(data)
        case "WEBP":
            return webp_header(data)
        case "JPEG":
            return jpeg_header(data, max_scans)
