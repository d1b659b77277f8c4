"""Requests with images: the query, and raw, multipart or JSON bodies, for one or several domains or with labels.

All forms are parsed into a list of images or per-image errors, in memory.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Request
from msgspec import Raw
from pydantic import Field

from prompt_store.class_names import UNLABELLED, check_name, comparison_key, normalize_labels, normalize_name
from prompt_store.errors import BundleInvalidError
from service.errors import ImageRejectedError, MediaTypeError, RequestInvalidError
from service.http.body import media_type_of, read_body
from service.http.routes.json_images import (
    Base64Image,
    LabelledImage,
    MixedImage,
    decode_base64,
    parse_images,
)
from service.http.routes.multipart_images import UploadedImage, read_multipart, too_many_images
from service.http.schemas import Input
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

DIGEST_DOCS: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "If-Bundle-Digest",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "accepted digests of bundles, separated by commas; 412 if another one classified an image",
        }
    ]
}
"""`If-Bundle-Digest`, which `scoring` reads, for the OpenAPI document."""


def _named_docs(description: str, **fields: object) -> dict[str, Any]:
    """OpenAPI request body with a name for each image: in multipart its field, in JSON another member."""
    files = {"type": "object", "description": description, "additionalProperties": {"type": "array", "items": FILE}}
    content = {"multipart/form-data": {"schema": files}, "application/json": _json_docs(**fields, b64=BASE64)}
    return {"requestBody": {"required": True, "content": content}}


MIXED_BODY_DOCS: Final = _named_docs("each file in a field named after its domain", domain={"type": "string"})
LABELLED_BODY_DOCS: Final = _named_docs(
    "each file in a field named after its class, or `unlabelled`", label={"type": ["string", "null"]}
)
"""For the OpenAPI document: FastAPI does not parse these bodies."""


PRIORITIES: Final = {"high": 1, "normal": 0, "low": -1}


class MixedQuery(Input):
    """The query of `POST /classify`."""

    top_k: int = Field(5, ge=1, description="maximum number of classes per image, most probable first")
    threshold: float = Field(0.0, ge=0, le=1, description="minimum probability; less probable classes are omitted")
    labels: list[str] = Field([], description="classify among these labels instead; repeat it, or separate by commas")
    stack: StackKind = Field("cascade", description="`boost` ignores the adapting prompts")
    timeout_ms: int | None = Field(None, ge=1, description="timeout from the last byte of the body")
    priority: Literal["high", "normal", "low"] = Field("normal", description="order in the queue")
    abstain: float | None = Field(
        None, gt=0, lt=1, description="abstention rate, one of the bundle's: the most uncertain images get no label"
    )
    returns: Literal["embedding"] | None = Field(None, alias="return", description="also return image embeddings")


class NoParameters(Input):
    """The query of requests whose parameters are in the body; any parameter is rejected."""


class ClassifyQuery(MixedQuery):
    """The query of `POST /classify/{domain}`."""

    version: int | None = Field(None, ge=1, le=2**53, description="use this version instead of the live one")


async def read_images(request: Request, settings: Settings) -> list[UploadedImage]:
    """Read the images of a request for one domain.

    Raises:
        MediaTypeError: unsupported content type.
        RequestInvalidError: malformed or incomplete multipart or JSON, or no images.
        BodyTooLargeError: too many images.
    """
    kind = media_type_of(request)
    if kind == "multipart/form-data":
        parts = await read_multipart(request, settings)
        if any(field != "images" for field, _ in parts):
            raise RequestInvalidError("Every part of the multipart body must be a file in the field `images`.")
        images = [image for _, image in parts]
    elif kind == "application/json":
        images = await asyncio.to_thread(_parse_images, await read_body(request), settings)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [UploadedImage(await read_body(request))]
    else:
        raise MediaTypeError(
            "Send one image as image/jpeg, image/png or image/webp, several as multipart/form-data (field `images`), "
            'or application/json {"images": [{"b64": "..."}]}.'
        )
    return _bounded(images, settings, "name multipart fields `images`")


async def read_mixed(request: Request, settings: Settings) -> list[tuple[str, UploadedImage]]:
    """Read the images of a request for several domains, each with its domain; raises as `read_labelled` does."""
    return await _read_named(request, settings, MixedImage, "domain", "A raw image goes to /classify/{domain}.")


async def read_labelled(request: Request, settings: Settings) -> list[tuple[str | None, UploadedImage]]:
    """Read the images of a request, each with its label, or None.

    Raises:
        MediaTypeError: neither multipart nor JSON.
        RequestInvalidError: malformed or incomplete multipart or JSON, no images, or an invalid label.
        BodyTooLargeError: too many images.
    """
    hint = "An image without a label has the field name `unlabelled`, in JSON the label null."
    images = await _read_named(request, settings, LabelledImage, "label", hint)
    return [(check_label(label, f"images[{index}].label"), image) for index, (label, image) in enumerate(images)]


async def _read_named(
    request: Request, settings: Settings, kind: type[MixedImage | LabelledImage], name: str, hint: str
) -> list[tuple[str, UploadedImage]]:
    """Read images that have a name each: in multipart the field's, in JSON a member called `name`."""
    form = f'{{"images": [{{"{name}": "...", "b64": "..."}}]}}'

    def parse(body: bytes) -> list[tuple[str, UploadedImage]]:
        images = parse_images(body, kind, settings.max_images, form)
        return [(image.name(index), _decode(image, index, settings)) for index, image in enumerate(images)]

    media_type = media_type_of(request)
    if media_type == "multipart/form-data":
        images = await read_multipart(request, settings)
    elif media_type == "application/json":
        images = await asyncio.to_thread(parse, await read_body(request))
    else:
        raise MediaTypeError(
            f"Send a {name} per image: multipart/form-data with the {name} as each field name, or "
            f"application/json {form}. {hint}"
        )
    return _bounded(images, settings, f"name multipart fields after the image's {name}")


def check_label(label: str, field: str) -> str | None:
    """Normalize and validate a label as a class name; None for `unlabelled` in any case. `field` is for the message.

    Raises:
        RequestInvalidError: empty, too long or unprintable.
    """
    name = normalize_name(label)
    try:
        check_name(name, field=field)
    except BundleInvalidError as error:
        raise _label_invalid(error) from error
    return None if comparison_key(name) == UNLABELLED else name


def _bounded(images: list[Uploaded], settings: Settings, hint: str) -> list[Uploaded]:
    if not images:
        raise RequestInvalidError(f"The request contains no images; {hint}.")
    if len(images) > settings.max_images:
        raise too_many_images(settings)
    return images


def _parse_images(body: bytes, settings: Settings) -> list[UploadedImage]:
    images = parse_images(body, Base64Image, settings.max_images, '{"images": [{"b64": "..."}]}')
    return [_decode(image, index, settings) for index, image in enumerate(images)]


def _decode(image: Base64Image, index: int, settings: Settings) -> UploadedImage:
    return image_from_base64(image.b64, f"images[{index}].b64", settings)


def image_from_base64(raw: Raw, name: str, settings: Settings) -> UploadedImage:
    """Decode an image as `decode_base64` does, or keep its ImageRejectedError."""
    try:
        return UploadedImage(decode_base64(raw, name, settings.max_image_bytes))
    except ImageRejectedError as error:
        return UploadedImage(error)


def check_query(query: MixedQuery, raw: bytes, settings: Settings) -> tuple[tuple[str, ...], float]:
    """Check a query, as parsed and as sent, against the settings' limits.

    Returns:
        Labels as of `check_classes`, and the timeout in seconds.

    Raises:
        RequestInvalidError: not UTF-8; a timeout beyond its limit; see `check_classes`; `abstain` with other classes or
            prompts than those it was calibrated for.
    """
    check_utf8(raw)
    if query.abstain is not None and (query.labels or query.stack == "boost"):
        raise RequestInvalidError(
            "abstain is calibrated for the bundle's own classes and all of its prompts; omit labels and stack=boost.",
            code="abstain_unsupported",
        )
    return check_classes(query.top_k, query.labels, settings), check_timeout(query.timeout_ms, settings)


def check_utf8(raw: bytes) -> None:
    """Check a query as sent, since invalid bytes are replaced when it is parsed.

    Raises:
        RequestInvalidError: not UTF-8.
    """
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise RequestInvalidError(f"The query must be percent-encoded UTF-8; found the byte %{byte:02X}.") from error


def check_timeout(timeout_ms: int | None, settings: Settings) -> float:
    """The timeout in seconds.

    Raises:
        RequestInvalidError: beyond the limit.
    """
    timeout_s = settings.default_timeout_s if timeout_ms is None else timeout_ms / 1000
    if timeout_s > settings.max_timeout_s:
        limit = int(settings.max_timeout_s * 1000)
        raise RequestInvalidError(f"timeout_ms must be at most {limit}.", extra={"limit": limit})
    return timeout_s


def check_classes(top_k: int, given: list[str], settings: Settings) -> tuple[str, ...]:
    """Check the number of classes to return, and the labels, of which a single value is split at commas.

    Returns:
        The labels, normalized as class names.

    Raises:
        RequestInvalidError: too many, or a label that is too long, empty, duplicate or unprintable.
    """
    if top_k > settings.max_top_k:
        raise RequestInvalidError(f"top_k must be at most {settings.max_top_k}.", extra={"limit": settings.max_top_k})
    if not given:
        return ()
    parts = given[0].split(",") if len(given) == 1 else given
    if len(parts) > settings.max_labels:
        message = f"Expected at most {settings.max_labels} labels, found {len(parts)}."
        raise RequestInvalidError(message, code="too_many_labels", extra={"limit": settings.max_labels})
    try:
        labels = normalize_labels(parts)
    except BundleInvalidError as error:
        raise _label_invalid(error) from error
    for index, label in enumerate(labels):
        if len(label) > settings.max_label_chars:
            message = f"labels[{index}] has {len(label)} characters; the limit is {settings.max_label_chars}."
            raise RequestInvalidError(message, code="label_invalid", extra={"field": f"labels[{index}]"})
    return labels


def _label_invalid(error: BundleInvalidError) -> RequestInvalidError:
    return RequestInvalidError(str(error), code="label_invalid", extra={"field": error.field})
