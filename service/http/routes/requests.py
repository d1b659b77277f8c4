"""Classify requests: the query, and images as raw, multipart or JSON bodies, for one or several domains.

All forms are parsed into a list of images or per-image errors, in memory.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import BodyTooLargeError, ImageRejectedError, MediaTypeError, RequestInvalidError
from service.http.schemas import ClassifyBody, MixedBody
from service.inference import StackKind
from service.settings import Settings

Uploaded = TypeVar("Uploaded")

FILE: Final = {"type": "string", "format": "binary"}
BASE64: Final = {"type": "string", "contentEncoding": "base64"}


def _json_docs(**fields: object) -> dict[str, Any]:
    """OpenAPI schema of a JSON body with a list of images."""
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
                    "description": "each file in a field named after its domain",
                    "additionalProperties": {"type": "array", "items": FILE},
                }
            },
            "application/json": _json_docs(domain={"type": "string"}, b64=BASE64),
        },
    }
}
"""For the OpenAPI document: FastAPI does not parse these bodies."""


PRIORITIES: Final = {"high": 1, "normal": 0, "low": -1}


class MixedQuery(BaseModel):
    """The query of `POST /classify`; unknown parameters are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int = Field(5, ge=1, description="maximum number of classes per image, most probable first")
    threshold: float = Field(0.0, ge=0, le=1, description="minimum probability; less probable classes are omitted")
    labels: list[str] = Field([], description="classify among these labels instead; repeat it, or separate by commas")
    stack: StackKind = Field("cascade", description="`boost` ignores the adapting prompts")
    timeout_ms: int | None = Field(None, ge=1, description="timeout from the last byte of the body")
    priority: Literal["high", "normal", "low"] = Field("normal", description="order in the queue")


class ClassifyQuery(MixedQuery):
    """The query of `POST /classify/{domain}`."""

    version: int | None = Field(None, ge=1, le=2**53, description="use this version instead of the live one")


@dataclass(frozen=True)
class UploadedImage:
    """One uploaded image: its bytes or an error, and its multipart file name."""

    data: bytes | ImageRejectedError
    name: str | None = None


async def read_images(request: Request, settings: Settings) -> list[UploadedImage]:
    """Read the images of a request for one domain.

    Raises:
        MediaTypeError: unsupported content type.
        RequestInvalidError: malformed multipart or JSON, or no images.
        BodyTooLargeError: too many images.
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
    return _bounded(images, settings, "name multipart fields `images`")


async def read_mixed(request: Request, settings: Settings) -> list[tuple[str, UploadedImage]]:
    """Read the images of a request for several domains, each with its domain.

    Raises:
        MediaTypeError: neither multipart nor JSON.
        RequestInvalidError: malformed multipart or JSON, or no images.
        BodyTooLargeError: too many images.
    """
    kind = _kind(request)
    if kind == "multipart/form-data":
        images = await _read_multipart(request, settings)
    elif kind == "application/json":
        images = await asyncio.to_thread(_parse_mixed, await request.body())
    else:
        raise MediaTypeError(
            "Send a domain per image: multipart/form-data with the domain as each field name, or application/json "
            '{"images": [{"domain": "...", "b64": "..."}]}. A raw image goes to /classify/{domain}.'
        )
    return _bounded(images, settings, "name multipart fields after the image's domain")


def _kind(request: Request) -> str:
    """The content type without parameters."""
    return request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()


def _bounded(images: list[Uploaded], settings: Settings, hint: str) -> list[Uploaded]:
    if not images:
        raise RequestInvalidError(f"The request contains no images; {hint}.")
    if len(images) > settings.max_images:
        raise _too_many(settings)
    return images


async def _read_multipart(request: Request, settings: Settings) -> list[tuple[str, UploadedImage]]:
    """Parse the files of a multipart body, each with its field name."""
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
            # With some charsets, names may contain lone surrogates, which a JSON response cannot contain.
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
    return [_decode_base64(image.b64) for image in asked.images]


def _parse_mixed(body: bytes) -> list[tuple[str, UploadedImage]]:
    try:
        asked = MixedBody.model_validate_json(body)
    except ValidationError as error:
        raise RequestInvalidError('Expected JSON of the form {"images": [{"domain": "...", "b64": "..."}]}.') from error
    return [(image.domain, _decode_base64(image.b64)) for image in asked.images]


def _decode_base64(text: str) -> UploadedImage:
    try:
        return UploadedImage(base64.b64decode(text, validate=True))
    except ValueError:
        message = "`b64` is not valid base64; URLs and data: URLs are not supported."
        return UploadedImage(ImageRejectedError(message, code="image_base64"))


def _too_many(settings: Settings) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"A request may contain at most {settings.max_images} images.",
        code="too_many_images",
        extra={"limit": settings.max_images},
    )


def check_query(query: MixedQuery, settings: Settings) -> tuple[tuple[str, ...], float]:
    """Check a query against the settings' limits.

    Returns:
        Labels (a single value is split at commas), and the timeout in seconds.

    Raises:
        RequestInvalidError: a number beyond its limit; too many labels, or a label that is too long, empty, duplicate
            or unprintable.
    """
    if query.top_k > settings.max_top_k:
        raise RequestInvalidError(f"top_k must be at most {settings.max_top_k}.", extra={"limit": settings.max_top_k})
    timeout_s = settings.default_timeout_s if query.timeout_ms is None else query.timeout_ms / 1000
    if timeout_s > settings.max_timeout_s:
        limit = int(settings.max_timeout_s * 1000)
        raise RequestInvalidError(f"timeout_ms must be at most {limit}.", extra={"limit": limit})
    if not query.labels:
        return (), timeout_s
    parts = query.labels[0].split(",") if len(query.labels) == 1 else query.labels
    labels = tuple(" ".join(part.split()) for part in parts)
    if len(labels) > settings.max_labels:
        raise RequestInvalidError(f"At most {settings.max_labels} labels are allowed.", code="too_many_labels")
    is_fine = all(label and len(label) <= settings.max_label_chars and label.isprintable() for label in labels)
    if not is_fine or len(set(labels)) != len(labels):
        raise RequestInvalidError(
            f"Labels must be different, printable and 1 to {settings.max_label_chars} characters long.",
            code="label_invalid",
        )
    return labels, timeout_s
