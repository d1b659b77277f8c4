"""The forms in which images arrive: raw, multipart and JSON, for one domain or for several.

Whatever the form, the result is a list of byte strings with the refusals of single images in between. Bytes stay in
memory; none reaches a disk.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import BodyTooLargeError, ImageRejectedError, MediaTypeError, RequestInvalidError
from service.http.schemas import ClassifyBody, MixedBody
from service.settings import Settings

Uploaded = TypeVar("Uploaded")

FILE: Final = {"type": "string", "format": "binary"}
BASE64: Final = {"type": "string", "contentEncoding": "base64"}


def _json_docs(**fields: object) -> dict[str, Any]:
    """A JSON body with a list of images of these fields."""
    image = {"type": "object", "required": list(fields), "properties": fields}
    images = {"type": "array", "items": image}
    return {"schema": {"type": "object", "required": ["images"], "properties": {"images": images}}}


BODY_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            **{f"image/{kind}": {"schema": FILE} for kind in ("jpeg", "png", "webp")},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": FILE}},
                }
            },
            "application/json": _json_docs(b64=BASE64),
        },
    }
}
MIXED_BODY_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "every file in a field named by its domain",
                    "additionalProperties": {"type": "array", "items": FILE},
                }
            },
            "application/json": _json_docs(domain={"type": "string"}, b64=BASE64),
        },
    }
}
"""For the OpenAPI document: FastAPI does not parse these bodies."""


@dataclass(frozen=True)
class UploadedImage:
    """One image as it arrived: its bytes, or why there are none, and its file name in a multipart body."""

    data: bytes | ImageRejectedError
    name: str | None = None


async def read_images(request: Request, settings: Settings) -> list[UploadedImage]:
    """Read the images of a request about one domain.

    Raises:
        MediaTypeError: a content type that is none of the three forms.
        RequestInvalidError: malformed multipart or JSON, or no image in it.
        BodyTooLargeError: more images than one request may carry.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        parts = await _read_multipart(request, settings)
        if any(field != "images" for field, _ in parts):
            raise RequestInvalidError("Every part of the multipart body must be a file in the field `images`.")
        images = [image for _, image in parts]
    elif kind == "application/json":
        images = await asyncio.to_thread(_parse_images, await request.body())
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [UploadedImage(await request.body())]
    else:
        raise MediaTypeError(
            "Send one image as image/jpeg, image/png or image/webp, several as multipart/form-data (field `images`), "
            'or application/json {"images": [{"b64": "..."}]}.'
        )
    return _bounded(images, settings, "multipart fields must be named `images`")


async def read_mixed(request: Request, settings: Settings) -> list[tuple[str, UploadedImage]]:
    """Read the images of a request about several domains, each with the name of its domain.

    Raises:
        MediaTypeError: neither multipart nor JSON.
        RequestInvalidError: malformed multipart or JSON, or no image in it.
        BodyTooLargeError: more images than one request may carry.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        images = await _read_multipart(request, settings)
    elif kind == "application/json":
        images = await asyncio.to_thread(_parse_mixed, await request.body())
    else:
        raise MediaTypeError(
            "Name a domain per image: multipart/form-data with the domain as each file's field, or application/json "
            '{"images": [{"domain": "...", "b64": "..."}]}. A raw image goes to /classify/{domain}.'
        )
    return _bounded(images, settings, "multipart fields are named by their image's domain")


def _kind(request: Request) -> str:
    """The content type without its parameters."""
    return request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()


def _bounded(images: list[Uploaded], settings: Settings, hint: str) -> list[Uploaded]:
    if not images:
        raise RequestInvalidError(f"The request carries no image; {hint}.")
    if len(images) > settings.max_images:
        raise _too_many(settings)
    return images


async def _read_multipart(request: Request, settings: Settings) -> list[tuple[str, UploadedImage]]:
    """The files of a multipart body, each with the name of its field."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=settings.max_images + 1, max_fields=8)
    parser.spool_max_size = settings.max_request_bytes + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many(settings) from error
        raise RequestInvalidError("The multipart body is malformed or has too many parts.") from error
    images = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise RequestInvalidError("Every part of the multipart body must be a file.")
            # A body may name a charset with which names hold half characters, which no answer could repeat.
            name = value.filename and value.filename.encode(errors="replace").decode()
            images.append((field, UploadedImage(await value.read(), name)))
    finally:
        await form.close()
    return images


def _parse_images(body: bytes) -> list[UploadedImage]:
    try:
        asked = ClassifyBody.model_validate_json(body)
    except ValidationError as error:
        raise RequestInvalidError('Expected JSON of the form {"images": [{"b64": "..."}]}.') from error
    return [UploadedImage(_decode_base64(image.b64)) for image in asked.images]


def _parse_mixed(body: bytes) -> list[tuple[str, UploadedImage]]:
    try:
        asked = MixedBody.model_validate_json(body)
    except ValidationError as error:
        raise RequestInvalidError('Expected JSON of the form {"images": [{"domain": "...", "b64": "..."}]}.') from error
    return [(image.domain, UploadedImage(_decode_base64(image.b64))) for image in asked.images]


def _decode_base64(text: str) -> bytes | ImageRejectedError:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ImageRejectedError("`b64` is not base64; links and data: addresses are not read.", code="image_base64")


def _too_many(settings: Settings) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"One request carries at most {settings.max_images} images; send several requests.",
        code="too_many_images",
        extra={"limit": settings.max_images},
    )
