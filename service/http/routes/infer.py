"""`POST /v2/models/{domain}/infer`: classification by the Open Inference Protocol (KServe v2, Triton).

A domain is a model. The request takes the path of a classify request: admission, pin, decoding, batch. The protocol has
no errors of single images, so one invalid image fails the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from service.errors import RequestInvalidError
from service.http.context import HttpContext
from service.http.routes.infer_requests import HEADER_LENGTH, REQUEST_CONTENT, InferRequest, read_inference
from service.http.routes.requests import DIGEST_DOCS, PRIORITIES, NoParameters, check_classes
from service.http.routes.scoring import Outcome, answer_or_raise, score_in_time
from service.http.routes.tensors import Tensor, encode_response
from service.images.decoder import Decoded
from service.inference import ImageResult, ScoringOptions
from service.observability.logs import request_id

router = APIRouter(tags=["inference protocol"])

Version = Annotated[int, Path(ge=1, le=2**53)]


class TensorOut(BaseModel):
    """An output: in JSON with `data`, as binary data with the parameter `binary_data_size`."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str] | list[float] | list[int] | None = None
    parameters: dict[str, int] = {}


class InferOut(BaseModel):
    """Response of an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str]
    outputs: list[TensorOut]


NoQuery = Annotated[NoParameters, Query()]
INFER_DOCS: Final[dict[str, Any]] = {"requestBody": {"required": True, "content": REQUEST_CONTENT}, **DIGEST_DOCS}


@router.post("/v2/models/{domain}/infer", openapi_extra=INFER_DOCS, response_model=InferOut)
async def infer(request: Request, domain: str, _: NoQuery) -> Response:
    """Classify one or several images with a domain's live version."""
    return await _infer(request, domain, None)


@router.post("/v2/models/{domain}/versions/{version}/infer", openapi_extra=INFER_DOCS, response_model=InferOut)
async def infer_version(request: Request, domain: str, version: Version, _: NoQuery) -> Response:
    """Classify one or several images with a version of a domain."""
    return await _infer(request, domain, version)


async def _infer(request: Request, domain: str, version: int | None) -> Response:
    context: HttpContext = request.app.state.context
    # Priority and timeout are in the body, which is read after admission.
    deadline_s = time.monotonic() + context.settings.default_timeout_s
    uncertain = context.uncertain if version is None else None
    async with context.backend.pin(domain, version, deadline_s=deadline_s, priority=0) as pin:
        inference = await read_inference(request, context.settings)
        began_s = time.monotonic()
        options = _options(inference, context, began_s)
        images = [(domain, image) for image in inference.images]
        outcome = await score_in_time(request, context, {domain: pin}, images, options, uncertain=uncertain)
    scored = outcome.domains[domain]
    if isinstance(scored, Exception):
        raise scored
    answers = [answer_or_raise(index, answer) for index, answer in enumerate(outcome.answers)]
    head: dict[str, Any] = {"model_name": domain, "model_version": str(scored.version)}
    if inference.id is not None:
        head["id"] = inference.id
    head["parameters"] = {"digest": scored.digest, "request_id": request_id.get()} | _notes(outcome)
    if scored.is_candidate:
        head["parameters"]["is_candidate"] = "true"
    body, n_json = encode_response(head, _tensors(answers, inference), inference.outputs)
    is_binary = n_json < len(body)
    response = Response(body, media_type="application/octet-stream" if is_binary else "application/json")
    if is_binary:
        response.headers[HEADER_LENGTH] = str(n_json)
    response.headers["X-Bundle-Version"] = str(scored.version)
    response.headers["X-Bundle-Digest"] = scored.digest
    _, response.headers["Server-Timing"] = outcome.timing(context, began_s)
    return response


def _options(inference: InferRequest, context: HttpContext, began_s: float) -> ScoringOptions:
    parameters, settings = inference.parameters, context.settings
    labels = [] if parameters.labels is None else [parameters.labels]
    timeout_s = settings.default_timeout_s if parameters.timeout is None else parameters.timeout / 1e6
    if timeout_s > settings.max_timeout_s:
        limit = int(settings.max_timeout_s * 1e6)
        raise RequestInvalidError(f"parameters.timeout must be at most {limit} microseconds.", extra={"limit": limit})
    classes = check_classes(parameters.top_k, labels, settings)
    has_embeddings = "embeddings" in inference.outputs
    return ScoringOptions(
        stack=parameters.stack,
        labels=classes,
        top_k=parameters.top_k,
        deadline_s=began_s + timeout_s,
        priority=PRIORITIES[parameters.priority_name],
        request_id=request_id.get(),
        embedding=has_embeddings,
        rollout=not classes and parameters.stack == "cascade" and not has_embeddings,
    )


def _notes(outcome: Outcome) -> dict[str, str]:
    """Conversions of the images as a parameter, such as `2: cmyk`; none if no image was converted."""
    pictures = [picture for picture in outcome.pictures if isinstance(picture, Decoded)]
    notes = "; ".join(f"{index}: {note}" for index, picture in enumerate(pictures) for note in picture.notes)
    return {"notes": notes} if notes else {}


def _tensors(answers: Sequence[ImageResult], inference: InferRequest) -> list[Tensor]:
    """The requested outputs: [N, k] for k classes per image, and [N, E] embeddings."""
    top_k = inference.parameters.top_k
    predictions = [prediction for answer in answers for prediction in answer.predictions[:top_k]]
    shape = (len(answers), len(predictions) // len(answers))
    values: dict[str, Callable[[], NDArray[Any] | list[str]]] = {
        "labels": lambda: [one.label for one in predictions],
        "probabilities": lambda: np.array([one.probability for one in predictions], np.float32),
        "class_ids": lambda: np.array([one.class_id for one in predictions], np.int32),
        "embeddings": lambda: np.frombuffer(b"".join(answer.embedding or b"" for answer in answers), "<f4"),
    }
    tensors = []
    for name in inference.outputs:
        found = values[name]()
        tensors.append(
            Tensor(name, shape if name != "embeddings" else (len(answers), len(found) // len(answers)), found)
        )
    return tensors
