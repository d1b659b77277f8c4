"""Checks on an image file's first bytes and markers, before Pillow parses it."""

import re
from typing import Final, Literal

from service.errors import ImageFormatError, ImageRejectedError

Format = Literal["JPEG", "PNG", "WEBP"]

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN: Final = 0xDA
END_OF_IMAGE: Final = 0xD9
MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""A JPEG marker with a length field, or the end of the image: not stuffing, padding, restart or start of image."""
MAX_SEGMENTS: Final = 5_000
MAX_JUNK_BYTES: Final = 10_000


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
    """Bound the work that a JPEG can cause.

    A decoder passes over all pixels for every scan, and Pillow over every byte between header segments.

    Raises:
        ImageRejectedError: more scans, segments or bytes between them than a camera or encoder writes.
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
