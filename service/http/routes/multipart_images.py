"""Multipart bodies with images, parsed in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import BodyTooLargeError, ImageRejectedError, RequestInvalidError
from service.images.headers import too_large
from service.settings import Settings

MAX_BOUNDARIES: Final = 1_000
"""Boundaries in a multipart body; the parser takes microseconds for each, even if it does not end a part."""


@dataclass(frozen=True)
class UploadedImage:
    """One uploaded image: its bytes or an error, and its multipart file name."""

    data: bytes | ImageRejectedError
    name: str | None = None


def too_many_images(settings: Settings) -> BodyTooLargeError:
    """The error for a request with more images than allowed."""
    return BodyTooLargeError(
        f"A request may contain at most {settings.max_images} images.",
        code="too_many_images",
        extra={"limit": settings.max_images},
    )


class _MultipartParser(MultiPartParser):
    """Notes whether the closing boundary came; Starlette's parser also accepts a body that ends before it."""

    is_complete = False

    def on_end(self) -> None:
        """Called at the closing boundary."""
        self.is_complete = True


async def read_multipart(request: Request, settings: Settings) -> list[tuple[str, UploadedImage]]:
    """Parse the files of a multipart body, each with its field name."""

    async def complete_stream() -> AsyncGenerator[bytes, None]:
        n_boundaries = 0
        async for part in request.stream():
            n_boundaries += part.count(delimiter)
            if n_boundaries > MAX_BOUNDARIES:
                raise too_many_images(settings)
            yield part
        if not parser.is_complete:
            raise RequestInvalidError("The multipart body is incomplete: it ends before its closing boundary.")

    delimiter = b"--" + parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    parser = _MultipartParser(request.headers, complete_stream(), max_files=settings.max_images + 1, max_fields=8)
    parser.spool_max_size = settings.max_request_bytes + 1
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:  # some charsets reject names with the second
        if str(getattr(error, "message", "")).startswith("Too many files"):
            raise too_many_images(settings) from error
        raise RequestInvalidError("The multipart body is malformed or has too many parts.") from error
    images = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise RequestInvalidError("Every part of the multipart body must be a file.")
            # With some charsets, names may contain lone surrogates, which a JSON response cannot contain.
            name = value.filename and value.filename.encode(errors="replace").decode()
            image = UploadedImage(await _read_file(value, settings.max_image_bytes), name)
            # Browsers, curl and httpx escape a quote in a name, and only that, as the HTML standard has it.
            images.append((field.replace("%22", '"'), image))
    finally:
        await form.close()
    return images


async def _read_file(file: UploadFile, max_bytes: int) -> bytes | ImageRejectedError:
    """A part's bytes, which are then no longer in the form: at most one file is twice in memory."""
    if file.size and file.size > max_bytes:
        return too_large(file.size, max_bytes)
    data = await file.read()
    await file.close()
    return data
