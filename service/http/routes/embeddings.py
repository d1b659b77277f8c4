"""`POST /v1/embeddings`: image embeddings in the form of OpenAI's API, with images as infinity accepts them.

The model is a domain, and the embedding is that of its live version. As in inference requests, one invalid image fails
the request.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Query, Request, Response
from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import BaseModel, Field

from prompt_store.manifest import is_domain
from service.domains.live_table import unknown_domain
from service.errors import MediaTypeError, RequestInvalidError
from service.http.body import media_type_of, read_body
from service.http.context import HttpContext, actor_of
from service.http.routes.json_images import DATA_URL, MALFORMED, decode_body, malformed
from service.http.routes.multipart_images import UploadedImage, too_many_images
from service.http.routes.requests import DIGEST_DOCS, NoParameters, image_from_base64
from service.http.routes.scoring import answer_or_raise, score_in_time
from service.http.routes.tensors import list_items
from service.inference import ScoringOptions
from service.observability.logs import request_id
from service.settings import Settings

router = APIRouter(tags=["embeddings"])

EXAMPLE: Final = "data:image/jpeg;base64,..."
FORM: Final = f'{{"model": "<domain>", "input": ["{EXAMPLE}"], "encoding_format": "float"}}'
KEY: Final = re.compile(rb'"(?:model|input|encoding_format|modality)"\s*+:')
EMBEDDINGS_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "input"],
                    "properties": {
                        "model": {"type": "string", "description": "a domain"},
                        "input": {
                            "description": "images as `data:image/...;base64,` URLs",
                            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
                        },
                        "encoding_format": {"enum": ["float", "base64"], "default": "float"},
                        "modality": {"enum": ["image"], "default": "image"},
                    },
                }
            }
        },
    }
}


class _Body(Struct, forbid_unknown_fields=True):
    model: str
    input: Raw
    encoding_format: Literal["float", "base64"] | UnsetType = UNSET
    modality: Literal["image"] | UnsetType = UNSET


_DECODER: Final = msgspec.json.Decoder(_Body)


class EmbeddingOut(BaseModel):
    """The embedding of one image."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="unit norm; with `base64` float32, little endian")


class UsageOut(BaseModel):
    """Token counts, always 0: images have no tokens."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsOut(BaseModel):
    """Response of `POST /v1/embeddings`."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingOut]
    usage: UsageOut


@router.post("/v1/embeddings", openapi_extra={**EMBEDDINGS_DOCS, **DIGEST_DOCS}, response_model=EmbeddingsOut)
async def embed(request: Request, _: Annotated[NoParameters, Query()]) -> Response:
    """Embed one or several images with a domain's live version."""
    context: HttpContext = request.app.state.context
    if media_type_of(request) != "application/json":
        raise MediaTypeError(f"Send application/json of the form {FORM}.")
    body, files = await asyncio.to_thread(_parse, await read_body(request), context.settings)
    context.keys.require(actor_of(request), "classify", body.model)
    if not is_domain(body.model):
        raise unknown_domain(body.model)
    began_s = time.monotonic()
    deadline_s = began_s + context.settings.default_timeout_s
    options = ScoringOptions("cascade", (), 1, deadline_s, request_id=request_id.get(), embedding=True)
    async with context.backend.pin(body.model, None, deadline_s=deadline_s, priority=0) as pin:
        images = [(body.model, file) for file in files]
        outcome = await score_in_time(request, context, {body.model: pin}, images, options)
    scored = outcome.domains[body.model]
    if isinstance(scored, Exception):
        raise scored
    embeddings = [answer_or_raise(index, answer).embedding or b"" for index, answer in enumerate(outcome.answers)]
    is_base64 = body.encoding_format == "base64"
    content = {
        "object": "list",
        "model": body.model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(one).decode() if is_base64 else np.frombuffer(one, "<f4").tolist(),
            }
            for index, one in enumerate(embeddings)
        ],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    response = Response(msgspec.json.encode(content), media_type="application/json")
    response.headers["X-Bundle-Version"] = str(scored.version)
    response.headers["X-Bundle-Digest"] = scored.digest
    response.headers["Server-Timing"] = outcome.timing(context, began_s)[1]
    return response


def _parse(data: bytes, settings: Settings) -> tuple[_Body, list[UploadedImage]]:
    """Parse a body into its members and the images.

    Raises:
        RequestInvalidError: not JSON of this form, or no images.
        BodyTooLargeError: too many images.
    """
    body = decode_body(data, _DECODER, FORM, KEY, _n_keys)
    is_single = bytes(memoryview(body.input)[:1]) == b'"'
    try:
        items = [body.input] if is_single else list_items(body.input, settings.max_images + 1)
    except MALFORMED as error:
        raise malformed(error, FORM) from error
    if not items:
        raise RequestInvalidError("The input contains no images.")
    if len(items) > settings.max_images:
        raise too_many_images(settings)
    return body, [_file(raw, f"input[{index}]", settings) for index, raw in enumerate(items)]


def _n_keys(body: _Body) -> int:
    """The number of matches of `KEY` if no key occurs twice."""
    return sum(value is not UNSET for value in msgspec.structs.astuple(body))


def _file(raw: Raw, field: str, settings: Settings) -> UploadedImage:
    if not DATA_URL.match(memoryview(raw)[1:]):
        raise RequestInvalidError(
            f"{field} must be a data URL of an image, {EXAMPLE}. Texts and links are unsupported."
        )
    return image_from_base64(raw, field, settings)
