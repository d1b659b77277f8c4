"""`POST /classify/{domain}` and `POST /classify`.

A request is admitted and pins its versions before its images are decoded, and keeps these versions to the end,
whatever is activated meanwhile. Most requests for one domain pass `DirectClassify`
instead of FastAPI's router.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_store.manifest import is_domain
from service.domains.live_table import unknown_domain
from service.http.context import HttpContext, actor_of
from service.http.problems import EXPECTED, describe
from service.http.routes.multipart_images import UploadedImage
from service.http.routes.requests import (
    BODY_DOCS,
    DIGEST_DOCS,
    MIXED_BODY_DOCS,
    PRIORITIES,
    ClassifyQuery,
    MixedQuery,
    check_query,
    read_images,
    read_mixed,
)
from service.http.routes.scoring import Outcome, PinOrError, score_in_time
from service.http.schemas import ClassifyOut, MixedOut
from service.images.decoder import Decoded
from service.inference import ImageResult, Scored, ScoringOptions
from service.observability.logs import request_id

router = APIRouter(tags=["classify"])

PATH: Final = re.compile(r"/classify/([^/]+)")


@router.post("/classify/{domain}", openapi_extra={**BODY_DOCS, **DIGEST_DOCS}, response_model=ClassifyOut)
async def classify(request: Request, domain: str, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Classify one or several images among a domain's classes."""
    context: HttpContext = request.app.state.context
    labels, timeout_s = check_query(query, request.scope["query_string"], context.settings)
    deadline_s, priority = time.monotonic() + timeout_s, PRIORITIES[query.priority]
    uncertain = context.uncertain if query.version is None else None
    async with context.backend.pin(domain, query.version, deadline_s=deadline_s, priority=priority) as pin:
        images = [(domain, image) for image in await read_images(request, context.settings)]
        began_s = time.monotonic()
        options = _options(query, labels, began_s + timeout_s)
        outcome = await score_in_time(request, context, {domain: pin}, images, options, uncertain=uncertain)
    scored = outcome.domains[domain]
    if isinstance(scored, Exception):
        raise scored
    body = {
        "request_id": request_id.get(),
        "domain": domain,
        "version": scored.version,
        "digest": scored.digest,
        "stack": query.stack,
        "results": _results(images, outcome, query),
    }
    if scored.is_candidate:
        body["is_candidate"] = True
    response = _respond(context, body, outcome, began_s)
    response.headers["X-Bundle-Version"] = str(scored.version)
    response.headers["X-Bundle-Digest"] = scored.digest
    return response


@router.post("/classify", openapi_extra={**MIXED_BODY_DOCS, **DIGEST_DOCS}, response_model=MixedOut)
async def classify_mixed(request: Request, query: Annotated[MixedQuery, Query()]) -> Response:
    """Classify images of several domains in one request, each among the classes of its domain."""
    context: HttpContext = request.app.state.context
    labels, timeout_s = check_query(query, request.scope["query_string"], context.settings)
    images = await read_mixed(request, context.settings)
    began_s = time.monotonic()
    options = _options(query, labels, began_s + timeout_s)
    async with AsyncExitStack() as held:
        domains = list(dict.fromkeys(domain for domain, _ in images))
        pinning = (_pin(held, context, actor_of(request), domain, options) for domain in domains)
        pins = dict(zip(domains, await asyncio.gather(*pinning), strict=True))
        outcome = await score_in_time(request, context, pins, images, options, uncertain=context.uncertain)
    results = _results(images, outcome, query)
    for (domain, _), result in zip(images, results, strict=True):
        scored = outcome.domains[domain]
        version, digest = (None, None) if isinstance(scored, Exception) else (scored.version, scored.digest)
        result |= {"domain": domain if is_domain(domain) else None, "version": version, "digest": digest}
        if not isinstance(scored, Exception) and scored.is_candidate:
            result["is_candidate"] = True
    body = {"request_id": request_id.get(), "stack": query.stack, "results": results}
    return _respond(context, body, outcome, began_s)


class DirectClassify:
    """Middleware that calls `classify` for valid queries without lists; FastAPI's router answers all other requests.

    This saves the CPU time of router, dependencies, exit stacks and exception handlers, which counts for requests with
    one small JPEG. `RequestMiddleware` gives errors the same responses.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        match = PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        query = plain_query(QueryParams(scope["query_string"])) if match else None
        if match is None or query is None:
            await self.app(scope, receive, send)
            return
        scope["path_params"] = {"domain": match[1]}
        response = await classify(Request(scope, receive, send), match[1], query)
        await response(scope, receive, send)


def plain_query(parameters: QueryParams) -> ClassifyQuery | None:
    """Validate a query in which every parameter has one value; None if it is invalid, repeats one, or has `labels`."""
    values = dict(parameters)
    if len(values) < len(parameters.multi_items()):
        return None
    try:
        return ClassifyQuery.model_validate(values)
    except ValidationError:  # also of `labels`, a list
        return None


async def _pin(
    held: AsyncExitStack, context: HttpContext, actor: str, domain: str, options: ScoringOptions
) -> PinOrError:
    """Pin a domain's live version while `held` is open, or return the error."""
    try:
        context.keys.require(actor, "classify", domain)
        if not is_domain(domain):
            return unknown_domain(domain)
        pin = context.backend.pin(domain, None, deadline_s=options.deadline_s, priority=options.priority)
        return await held.enter_async_context(pin)
    except EXPECTED as error:
        return error


def _options(query: MixedQuery, labels: tuple[str, ...], deadline_s: float) -> ScoringOptions:
    return ScoringOptions(
        stack=query.stack,
        labels=labels,
        top_k=query.top_k,
        deadline_s=deadline_s,
        priority=PRIORITIES[query.priority],
        request_id=request_id.get(),
        abstain=query.abstain,
        embedding=query.returns == "embedding",
        rollout=not labels and query.stack == "cascade" and query.returns is None,
    )


def _results(images: Sequence[tuple[str, UploadedImage]], outcome: Outcome, query: MixedQuery) -> list[dict[str, Any]]:
    """A `ResultOut` per image, as JSON values."""
    results = []
    for index, ((domain, image), picture, answer) in enumerate(
        zip(images, outcome.pictures, outcome.answers, strict=True)
    ):
        error, predictions = None, []
        if isinstance(answer, Exception):
            error = describe(answer)
        else:
            predictions = [
                one._asdict() for one in answer.predictions[: query.top_k] if one.probability >= query.threshold
            ]
        results.append(
            {
                "index": index,
                "name": image.name,
                "predictions": predictions,
                "notes": list(picture.notes) if isinstance(picture, Decoded) else [],
                "error": error,
            }
        )
        if query.abstain is not None or query.returns is not None:
            results[-1] |= _requested_fields(query, outcome.domains[domain], answer)
    return results


def _requested_fields(query: MixedQuery, scored: Scored | Exception, answer: ImageResult | Exception) -> dict[str, Any]:
    """The fields of a `ResultOut` that only `abstain` and `return` add."""
    fields: dict[str, Any] = {"abstained": False, "label": None} if query.abstain is not None else {}
    if query.returns == "embedding":
        fields["embedding"] = None
    if isinstance(scored, Exception) or isinstance(answer, Exception):
        return fields
    if scored.abstain_below is not None:
        best = answer.predictions[0]
        is_uncertain = best.probability < scored.abstain_below
        fields |= {"abstained": is_uncertain, "label": None if is_uncertain else best.label}
    if query.returns == "embedding" and answer.embedding is not None:
        fields["embedding"] = np.frombuffer(answer.embedding, dtype="<f4").tolist()
    return fields


def _respond(context: HttpContext, body: dict[str, Any], outcome: Outcome, began_s: float) -> Response:
    """The response with its timing, also as a header; not validated against the schema again, which would be slower."""
    timing_ms, server_timing = outcome.timing(context, began_s)
    response = Response(msgspec.json.encode({**body, "timing_ms": timing_ms}), media_type="application/json")
    response.headers["Server-Timing"] = server_timing
    return response
