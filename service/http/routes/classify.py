"""`POST /classify/{domain}` and `POST /classify`: from a request to its answer.

A request is admitted and pins its versions before its images are decoded, and keeps these versions to the end,
whatever is activated meanwhile. One bad image or version leaves the others alone; a request without a single answer
fails as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
from fastapi import APIRouter, Query, Request, Response

from prompt_store.manifest import is_domain
from service.domains.live_table import unknown_domain
from service.errors import (
    CapacityError,
    ClientGoneError,
    DeadlineExceededError,
    DrainingError,
    ImageRejectedError,
    ImagesRejectedError,
    OverloadedError,
)
from service.http.context import HttpContext, actor_of
from service.http.problems import EXPECTED, describe
from service.http.routes.requests import (
    BODY_DOCS,
    MIXED_BODY_DOCS,
    PRIORITIES,
    ClassifyQuery,
    MixedQuery,
    UploadedImage,
    check_query,
    read_images,
    read_mixed,
)
from service.http.schemas import ClassifyOut, MixedOut
from service.images.decoder import Decoded
from service.images.preprocessing import Pixels
from service.inference import ImageResult, Pin, Scored, ScoringOptions
from service.observability.logs import request_id

logger = logging.getLogger(__name__)
router = APIRouter(tags=["classify"])

PinOrError: TypeAlias = Pin | Exception


class Outcome(NamedTuple):
    """The results of one request.

    Args:
        domains: version and answers of each domain, or its error.
        pictures: each image decoded, or its error.
        answers: answer or error of each image.
        decode_s: seconds until all images were decoded.
        ended_s: monotonic time when the last answer was ready.
    """

    domains: Mapping[str, Scored | Exception]
    pictures: Sequence[Decoded | Exception]
    answers: Sequence[ImageResult | Exception]
    decode_s: float
    ended_s: float


@router.post("/classify/{domain}", openapi_extra=BODY_DOCS, response_model=ClassifyOut)
async def classify(request: Request, domain: str, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Classify one or several images among a domain's classes."""
    context: HttpContext = request.app.state.context
    labels, timeout_s = check_query(query, request.scope["query_string"], context.settings)
    deadline_s, priority = time.monotonic() + timeout_s, PRIORITIES[query.priority]
    async with context.backend.pin(domain, query.version, deadline_s=deadline_s, priority=priority) as pin:
        context.decoder.places.check(request.scope["caspl.tenant"], 1)
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
    """Classify images of several domains in one request, each among the classes of its domain."""
    context: HttpContext = request.app.state.context
    labels, timeout_s = check_query(query, request.scope["query_string"], context.settings)
    context.decoder.places.check(request.scope["caspl.tenant"], 1)
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
    return ScoringOptions(query.stack, labels, query.top_k, deadline_s, PRIORITIES[query.priority], request_id.get())


async def _score_in_time(
    request: Request,
    context: HttpContext,
    pins: Mapping[str, PinOrError],
    images: Sequence[tuple[str, UploadedImage]],
    options: ScoringOptions,
) -> Outcome:
    """Run `score_images` until the deadline, or until the client disconnects.

    Raises:
        ClientGoneError: the client disconnected.
        DeadlineExceededError: the deadline passed.
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
                return await score_images(context, pins, images, options, request.scope["caspl.tenant"][0])
            finally:
                watching.cancel()
    except TimeoutError as error:
        if is_gone:
            raise ClientGoneError("The client disconnected before the response was ready.") from error
        if "version" not in request.query_params:  # the domain of a numbered version may not exist
            count_images(context, images, pins, [error] * len(images))
        raise DeadlineExceededError(
            "The request was not finished within its timeout. Retry later, or with a longer timeout_ms."
        ) from error


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
    """The response with its timing, also as a header; not validated against the schema again, which would be slower."""
    queued_s = ran_s = 0.0
    for answer in outcome.answers:
        if isinstance(answer, ImageResult):
            queued_s, ran_s = max(queued_s, answer.queued_s), max(ran_s, answer.ran_s)
    now_s = time.monotonic()
    for stage, stage_s in (("decode", outcome.decode_s), ("device", ran_s), ("shape", now_s - outcome.ended_s)):
        context.metrics.stage_s.labels(stage).observe(stage_s)
    seconds = {"decode": outcome.decode_s, "queue": queued_s, "device": ran_s, "total": now_s - began_s}
    timing_ms = {stage: round(one * 1000, 3) for stage, one in seconds.items()}
    response = Response(msgspec.json.encode({**body, "timing_ms": timing_ms}), media_type="application/json")
    response.headers["Server-Timing"] = ", ".join([f"{stage};dur={one}" for stage, one in timing_ms.items()])
    return response


async def score_images(
    context: HttpContext,
    pins: Mapping[str, PinOrError],
    images: Sequence[tuple[str, UploadedImage]],
    options: ScoringOptions,
    client: str,
) -> Outcome:
    """Decode, queue and score the images of one request, each with its domain.

    Decoding is shared fairly between pairs of client and domain.

    Raises:
        ImagesRejectedError: all of several images are invalid.
        Exception: the error of the only image, or the first one that is not an image's fault if all failed.
    """
    began_s = time.monotonic()
    tenants = [(client, domain) for domain, _ in images if not isinstance(pins[domain], Exception)]
    with context.decoder.places.holding(tenants):
        decoding = [_decode(context, pins[domain], image, (client, domain)) for domain, image in images]
        pictures = [await decoding[0]] if len(decoding) == 1 else await asyncio.gather(*decoding)
    decode_s = time.monotonic() - began_s
    pixels: dict[str, list[Pixels]] = {domain: [] for domain in pins}
    for (domain, _), picture in zip(images, pictures, strict=True):
        if isinstance(picture, Decoded):
            pixels[domain].append(picture.pixels)
    scoring = [_score(pin, pixels[domain], options) for domain, pin in pins.items()]
    scored = [await scoring[0]] if len(scoring) == 1 else await asyncio.gather(*scoring)
    domains = dict(zip(pins, scored, strict=True))
    remaining = {domain: iter(one.answers) for domain, one in domains.items() if isinstance(one, Scored)}
    answers: list[ImageResult | Exception] = []
    for (domain, _), picture in zip(images, pictures, strict=True):
        of_domain = domains[domain]
        if isinstance(of_domain, Exception):
            answers.append(of_domain)
        else:
            answers.append(next(remaining[domain]) if isinstance(picture, Decoded) else picture)
    count_images(context, images, domains, answers)
    _fail_if_none(answers)
    return Outcome(domains, pictures, answers, decode_s, time.monotonic())


async def _decode(
    context: HttpContext, pin: PinOrError, image: UploadedImage, tenant: tuple[str, str]
) -> Decoded | Exception:
    """Pixels or the error; without a pinned version the image is not decoded."""
    if isinstance(pin, Exception):
        return pin
    if isinstance(image.data, ImageRejectedError):
        return image.data
    try:
        return await context.decoder.decode(image.data, tenant)
    except (ImageRejectedError, CapacityError) as error:
        return error
    except Exception as error:
        logger.exception("image.failed")  # a bug; it must not fail the other images
        return error


async def _score(pin: PinOrError, pixels: Sequence[Pixels], options: ScoringOptions) -> Scored | Exception:
    if isinstance(pin, Exception):
        return pin
    try:
        return await pin.score(pixels, options)
    except EXPECTED as error:
        return error


def count_images(
    context: HttpContext,
    images: Sequence[tuple[str, UploadedImage]],
    domains: Mapping[str, object],
    answers: Sequence[ImageResult | Exception],
) -> None:
    """Count images by domain, except rejected requests, which the scheduler counts, and names of unknown domains."""
    for (domain, _), answer in zip(images, answers, strict=True):
        if isinstance(domains[domain], Exception) or isinstance(answer, OverloadedError | DrainingError):
            continue
        result = "answered"
        if isinstance(answer, Exception):
            result = "rejected" if isinstance(answer, ImageRejectedError) else "failed"
        context.metrics.image_counted(domain, result)


def _fail_if_none(answers: Sequence[ImageResult | Exception]) -> None:
    """Raise an error for the whole request if no image has an answer."""
    failures = [answer for answer in answers if isinstance(answer, Exception)]
    if len(failures) < len(answers):
        return
    ours = [error for error in failures if not isinstance(error, ImageRejectedError)]
    if ours or len(failures) == 1:
        raise [*ours, *failures][0]
    errors = [{"index": index, **describe(error)} for index, error in enumerate(failures)]
    raise ImagesRejectedError("All images are invalid; see `errors`.", extra={"errors": errors})
