"""`POST /classify/{domain}` and `POST /classify`: from a request to its answer, read from top to bottom.

A request is admitted and pins its versions before its images are decoded, and keeps these versions to the end,
whatever is activated meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from prompt_store.manifest import is_domain
from service.domains.live_table import unknown_domain
from service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    RequestInvalidError,
)
from service.http.context import HttpContext, actor_of, context_of
from service.http.problems import EXPECTED, describe
from service.http.routes.bodies import BODY_DOCS, MIXED_BODY_DOCS, UploadedImage, read_images, read_mixed
from service.http.routes.scoring import Outcome, PinOrError, count_images, score_images
from service.http.schemas import ClassifyOut, MixedOut
from service.images.decoder import Decoded
from service.inference import Answer, ScoringOptions, StackKind
from service.observability.logs import request_id
from service.settings import Settings

router = APIRouter(tags=["classify"])

PRIORITIES: Final = {"high": 1, "normal": 0, "low": -1}


class MixedQuery(BaseModel):
    """The query of a request about several domains; an unknown parameter is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int = Field(5, ge=1, description="most classes per image, most probable first")
    threshold: float = Field(0.0, ge=0, le=1, description="leave out classes less probable than this")
    labels: list[str] = Field([], description="choose among these instead; repeated, or one value with commas")
    stack: StackKind = Field("cascade", description="`boost` leaves the adapting prompts out")
    timeout_ms: int | None = Field(None, ge=1, description="deadline, counted from the body's last byte")
    priority: Literal["high", "normal", "low"] = Field("normal", description="order in the queue for the device")


class ClassifyQuery(MixedQuery):
    """The query of a request about one domain."""

    version: int | None = Field(None, ge=1, le=2**53, description="answer with this version instead of the live one")


@router.post("/classify/{domain}", openapi_extra=BODY_DOCS, response_model=ClassifyOut)
async def classify(request: Request, domain: str, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Classify one or several images among a domain's classes."""
    context = context_of(request)
    labels, timeout_s = check_query(query, context.settings)
    deadline_s, priority = time.monotonic() + timeout_s, PRIORITIES[query.priority]
    async with context.backend.pin(domain, query.version, deadline_s=deadline_s, priority=priority) as pin:
        context.decoder.check_room(1)
        images = [(domain, image) for image in await read_images(request, context.settings)]
        began_s = time.monotonic()
        options = _options(query, labels, began_s + timeout_s)
        outcome = await _score_in_time(request, context, {domain: pin}, images, options)
    scored = outcome.domains[domain]
    if isinstance(scored, Exception):
        raise scored
    body = {
        "request_id": request_id.get(),
        "domain": domain,
        "version": scored.version,
        "digest": scored.digest,
        "stack": query.stack,
        "results": _results(images, outcome, query.threshold),
    }
    response = _respond(context, body, outcome, began_s)
    response.headers["X-Bundle-Version"] = str(scored.version)
    response.headers["X-Bundle-Digest"] = scored.digest
    return response


@router.post("/classify", openapi_extra=MIXED_BODY_DOCS, response_model=MixedOut)
async def classify_mixed(request: Request, query: Annotated[MixedQuery, Query()]) -> Response:
    """Classify images of several domains in one call, each among the classes of its own."""
    context = context_of(request)
    labels, timeout_s = check_query(query, context.settings)
    context.decoder.check_room(1)
    images = await read_mixed(request, context.settings)
    began_s = time.monotonic()
    options = _options(query, labels, began_s + timeout_s)
    async with AsyncExitStack() as held:
        domains = list(dict.fromkeys(domain for domain, _ in images))
        pinning = (_pin(held, context, actor_of(request), domain, options) for domain in domains)
        pins = dict(zip(domains, await asyncio.gather(*pinning), strict=True))
        outcome = await _score_in_time(request, context, pins, images, options)
    results = _results(images, outcome, query.threshold)
    for (domain, _), result in zip(images, results, strict=True):
        scored = outcome.domains[domain]
        version, digest = (None, None) if isinstance(scored, Exception) else (scored.version, scored.digest)
        result |= {"domain": domain if is_domain(domain) else None, "version": version, "digest": digest}
    body = {"request_id": request_id.get(), "stack": query.stack, "results": results}
    return _respond(context, body, outcome, began_s)


async def _pin(
    held: AsyncExitStack, context: HttpContext, actor: str, domain: str, options: ScoringOptions
) -> PinOrError:
    """Pin what is live in a domain for as long as `held` is open, or return why that is impossible."""
    try:
        context.keys.require(actor, "classify", domain)
        if not is_domain(domain):
            return unknown_domain(domain)
        pin = context.backend.pin(domain, None, deadline_s=options.deadline_s, priority=options.priority)
        return await held.enter_async_context(pin)
    except EXPECTED as error:
        return error


def check_query(query: MixedQuery, settings: Settings) -> tuple[tuple[str, ...], float]:
    """Check what only settings bound.

    Returns:
        Labels (one value is split at commas, several are taken as they are), and the request's time in seconds.

    Raises:
        RequestInvalidError: a number beyond its limit; labels that are too many, too long, empty, doubled or
            unprintable.
    """
    if query.top_k > settings.max_top_k:
        raise RequestInvalidError(f"top_k is at most {settings.max_top_k}.", extra={"limit": settings.max_top_k})
    timeout_s = settings.timeout_s(query.timeout_ms)
    if timeout_s is None:
        limit = int(settings.max_timeout_s * 1000)
        raise RequestInvalidError(f"timeout_ms is at most {limit}.", extra={"limit": limit})
    if not query.labels:
        return (), timeout_s
    parts = query.labels[0].split(",") if len(query.labels) == 1 else query.labels
    labels = tuple(" ".join(part.split()) for part in parts)
    if len(labels) > settings.max_labels:
        raise RequestInvalidError(f"At most {settings.max_labels} labels per request.", code="too_many_labels")
    is_fine = all(label and len(label) <= settings.max_label_chars and label.isprintable() for label in labels)
    if not is_fine or len(set(labels)) != len(labels):
        raise RequestInvalidError(
            f"Labels must be different, printable and 1 to {settings.max_label_chars} characters long.",
            code="label_invalid",
        )
    return labels, timeout_s


def _options(query: MixedQuery, labels: tuple[str, ...], deadline_s: float) -> ScoringOptions:
    return ScoringOptions(query.stack, labels, query.top_k, deadline_s, PRIORITIES[query.priority], request_id.get())


async def _score_in_time(
    request: Request,
    context: HttpContext,
    pins: Mapping[str, PinOrError],
    images: Sequence[tuple[str, UploadedImage]],
    options: ScoringOptions,
) -> Outcome:
    """Run `score_images` until the deadline, or until the client hangs up.

    Raises:
        ClientGoneError: the client hung up.
        DeadlineExceededError: not ready in time.
        Exception: see `score_images`.
    """
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        timeout.reschedule(0)

    try:
        async with asyncio.timeout_at(options.deadline_s) as timeout:
            watching = asyncio.ensure_future(watch())
            try:
                return await score_images(context, pins, images, options)
            finally:
                watching.cancel()
    except TimeoutError as error:
        if is_gone:
            raise ClientGoneError("The client hung up before the answer was ready.") from error
        if "version" not in request.query_params:  # which could be of a domain that does not exist
            count_images(context, images, pins, [error] * len(images))
        raise DeadlineExceededError("The answer was not ready within the request's time.") from error


def _results(images: Sequence[tuple[str, UploadedImage]], outcome: Outcome, threshold: float) -> list[dict[str, Any]]:
    """A `ResultOut` per image, as JSON values."""
    results = []
    for index, ((_, image), picture, answer) in enumerate(zip(images, outcome.pictures, outcome.answers, strict=True)):
        error, predictions = None, []
        if isinstance(answer, Exception):
            error = describe(answer)
        else:
            predictions = [one._asdict() for one in answer.predictions if one.probability >= threshold]
        results.append(
            {
                "index": index,
                "name": image.name,
                "predictions": predictions,
                "notes": list(picture.notes) if isinstance(picture, Decoded) else [],
                "error": error,
            }
        )
    return results


def _respond(context: HttpContext, body: dict[str, Any], outcome: Outcome, began_s: float) -> Response:
    """The answer with its times, which a header repeats; plain values, as validating them again would be slower."""
    queued_s = ran_s = 0.0
    for answer in outcome.answers:
        if isinstance(answer, Answer):
            queued_s, ran_s = max(queued_s, answer.queued_s), max(ran_s, answer.ran_s)
    now_s = time.monotonic()
    for stage, stage_s in (("decode", outcome.decode_s), ("device", ran_s), ("shape", now_s - outcome.ended_s)):
        context.metrics.stage_s.labels(stage).observe(stage_s)
    seconds = {"decode": outcome.decode_s, "queue": queued_s, "device": ran_s, "total": now_s - began_s}
    timing_ms = {stage: round(one * 1000, 3) for stage, one in seconds.items()}
    response = Response(msgspec.json.encode({**body, "timing_ms": timing_ms}), media_type="application/json")
    response.headers["Server-Timing"] = ", ".join([f"{stage};dur={one}" for stage, one in timing_ms.items()])
    return response
