"""`POST /classify/{domain}`: from a request to its answer, read from top to bottom.

The request pins its version at the start and keeps it to the end, whatever is activated meanwhile. One bad image fails
alone; a request whose only image is bad fails as a whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from prompted_clip.stack import PromptStack
from service.batcher import Outcome
from service.engine import EngineRow, Prediction
from service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    ImageRejectedError,
    ImagesRejectedError,
    RequestInvalidError,
    ServiceError,
)
from service.images import Decoded
from service.live_table import ServedStack
from service.logs import request_id
from service.problems import describe
from service.routes.bodies import SentImage, read_images
from service.runtime import Running, Runtime
from service.schemas import ClassifyOut, PredictionOut, ResultOut, TimingOut
from service.settings import Settings

router = APIRouter(tags=["classify"])

T = TypeVar("T")
Answered = Outcome[list[Prediction]]

BODY_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "image/webp": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["b64"],
                                "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
                            },
                        }
                    },
                }
            },
        },
    }
}


class ClassifyQuery(BaseModel):
    """The query of a classify request; an unknown parameter is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int = Field(5, ge=1, description="most classes per image, most probable first")
    threshold: float = Field(0.0, ge=0, le=1, description="leave out classes less probable than this")
    labels: list[str] = Field([], description="choose among these instead; repeated, or one value with commas")
    stack: Literal["cascade", "boost"] = Field("cascade", description="`boost` leaves the adapting prompts out")
    version: int | None = Field(None, ge=1, description="answer with this version instead of the live one")
    timeout_ms: int | None = Field(None, ge=1, description="deadline, counted from the body's last byte")


@dataclass(frozen=True)
class Work:
    """What is done for one request: who answers, images and deadline.

    Args:
        domain: who is asked.
        version: the one that was live when the request came, or the number of the one it asks for.
        ask: the query.
        labels: other classes; empty takes the version's own.
        images: what to classify.
        deadline_s: reading of the monotonic clock after which nobody wants the answer.
    """

    domain: str
    version: ServedStack | int
    ask: ClassifyQuery
    labels: tuple[str, ...]
    images: Sequence[SentImage]
    deadline_s: float


@router.post("/classify/{domain}", openapi_extra=BODY_DOCS)
async def classify(
    request: Request, response: Response, domain: str, ask: Annotated[ClassifyQuery, Query()], runtime: Running
) -> ClassifyOut:
    """Classify one or several images among a domain's classes."""
    settings = runtime.settings
    labels = check_labels(ask.labels, settings)
    timeout_s = _check_numbers(ask, settings)
    version = runtime.domains.pin(domain) if ask.version is None else ask.version
    runtime.decoder.check_room(1)
    images = await read_images(request, settings)
    started_s = time.monotonic()
    work = Work(domain, version, ask, labels, images, started_s + timeout_s)
    served, results, timing = await _unless_gone(request, _answer(runtime, work))
    timing.total = _ms(time.monotonic() - started_s)
    response.headers["X-Bundle-Version"] = str(served.version)
    response.headers["X-Bundle-Digest"] = served.digest
    response.headers["Server-Timing"] = ", ".join(f"{name};dur={value}" for name, value in timing)
    return ClassifyOut(
        request_id=request_id.get(),
        domain=served.domain,
        version=served.version,
        digest=served.digest,
        stack=ask.stack,
        results=results,
        timing_ms=timing,
    )


def check_labels(given: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Labels of an open-vocabulary request: one value is split at commas, several are taken as they are.

    Raises:
        RequestInvalidError: too many, too long, empty, doubled or unprintable.
    """
    parts = given[0].split(",") if len(given) == 1 else given
    labels = tuple(" ".join(part.split()) for part in parts)
    if len(labels) > settings.max_labels:
        raise RequestInvalidError(f"At most {settings.max_labels} labels per request.", code="too_many_labels")
    is_fine = all(label and len(label) <= settings.max_label_chars and label.isprintable() for label in labels)
    if not is_fine or len(set(labels)) != len(labels):
        raise RequestInvalidError(
            f"Labels must be different, printable and 1 to {settings.max_label_chars} characters long.",
            code="label_invalid",
        )
    return labels


def _check_numbers(ask: ClassifyQuery, settings: Settings) -> float:
    """The request's time in seconds, after a look at the numbers that settings bound."""
    if ask.top_k > settings.max_top_k:
        raise RequestInvalidError(f"top_k is at most {settings.max_top_k}.", extra={"limit": settings.max_top_k})
    if ask.timeout_ms is None:
        return settings.default_timeout_s
    if ask.timeout_ms > settings.max_timeout_s * 1000:
        limit = int(settings.max_timeout_s * 1000)
        raise RequestInvalidError(f"timeout_ms is at most {limit}.", extra={"limit": limit})
    return ask.timeout_ms / 1000


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or stop it when the client hangs up.

    Raises:
        ClientGoneError: nobody waits for the answer any more.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("The client hung up before the answer was ready.")
    finally:
        for task in (working, leaving):
            task.cancel()


async def _answer(runtime: Runtime, work: Work) -> tuple[ServedStack, list[ResultOut], TimingOut]:
    """Decode, queue and score the images of one request within its deadline.

    Raises:
        DomainNotFoundError, VersionNotFoundError, StackMismatchError, BackboneMismatchError: the version that is asked
            for is not there, or cannot run here.
        DeadlineExceededError: not ready in time.
        ImageRejectedError: the only image is bad.
        ImagesRejectedError: all of several are.
        OverloadedError: a queue is full.
    """
    try:
        async with asyncio.timeout(work.deadline_s - time.monotonic()):
            served = await _pinned(runtime, work)
            stack = await runtime.variant(served, work.ask.stack, work.labels)
            decoded, decode_s = await _decode(runtime, work.images)
            answers = await _score(runtime, work, stack, decoded)
    except TimeoutError as error:
        raise DeadlineExceededError("The answer was not ready within the request's time.") from error
    _count(runtime, served.domain, answers)
    _fail_if_none(answers)
    outcomes = [answer for answer in answers if isinstance(answer, Outcome)]
    timing = TimingOut(
        decode=_ms(decode_s),
        queue=_ms(max(outcome.queued_s for outcome in outcomes)),
        device=_ms(max(outcome.ran_s for outcome in outcomes)),
        total=0.0,
    )
    runtime.metrics.stage_s.labels("decode").observe(decode_s)
    runtime.metrics.stage_s.labels("device").observe(timing.device / 1000)
    results = [
        _shape(index, sent, picture, answer, work.ask.threshold)
        for index, (sent, picture, answer) in enumerate(zip(work.images, decoded, answers, strict=True))
    ]
    return served, results, timing


async def _pinned(runtime: Runtime, work: Work) -> ServedStack:
    if isinstance(work.version, ServedStack):
        return work.version
    return await runtime.domains.pin_version(work.domain, work.version)


async def _decode(runtime: Runtime, images: Sequence[SentImage]) -> tuple[list[Decoded | ImageRejectedError], float]:
    """Pixels or a refusal per image, and the seconds that took."""

    async def one(image: SentImage) -> Decoded | ImageRejectedError:
        if isinstance(image.data, ImageRejectedError):
            return image.data
        try:
            return await runtime.decoder.decode(image.data)
        except ImageRejectedError as error:
            return error

    started_s = time.monotonic()
    with runtime.decoder.places(len(images)):
        return list(await asyncio.gather(*(one(image) for image in images))), time.monotonic() - started_s


async def _score(
    runtime: Runtime, work: Work, stack: PromptStack, decoded: Sequence[Decoded | ImageRejectedError]
) -> list[Answered | ServiceError]:
    """Queue what could be decoded; an outcome or an error per image, in order."""
    rows = [EngineRow(item.pixels, stack, work.ask.top_k) for item in decoded if isinstance(item, Decoded)]
    futures = runtime.batcher.submit(rows, lane=stack.lane, deadline_s=work.deadline_s)
    try:
        settled = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        for future in futures:
            future.cancel()
    scored = iter(settled)
    answers: list[Answered | ServiceError] = []
    for item in decoded:
        answer = item if isinstance(item, ImageRejectedError) else next(scored)
        if isinstance(answer, BaseException) and not isinstance(answer, ServiceError):
            raise answer
        answers.append(answer)
    return answers


def _fail_if_none(answers: Sequence[Answered | ServiceError]) -> None:
    """Fail the request as a whole when no image was answered."""
    failures = [answer for answer in answers if isinstance(answer, ServiceError)]
    if len(failures) < len(answers):
        return
    ours = [error for error in failures if not isinstance(error, ImageRejectedError)]
    if ours or len(failures) == 1:
        raise [*ours, *failures][0]
    errors = [{"index": index, **describe(error)} for index, error in enumerate(failures)]
    raise ImagesRejectedError(
        "None of the images can be used; `errors` says why, one by one.", extra={"errors": errors}
    )


def _shape(
    index: int,
    sent: SentImage,
    picture: Decoded | ImageRejectedError,
    answer: Answered | ServiceError,
    threshold: float,
) -> ResultOut:
    notes = list(picture.notes) if isinstance(picture, Decoded) else []
    if isinstance(answer, ServiceError):
        return ResultOut(index=index, name=sent.name, notes=notes, error=describe(answer))
    predictions = [
        PredictionOut(label=found.label, class_id=found.class_id, probability=found.probability)
        for found in answer.answer
        if found.probability >= threshold
    ]
    return ResultOut(index=index, name=sent.name, predictions=predictions, notes=notes, error=None)


def _count(runtime: Runtime, domain: str, answers: Sequence[Answered | ServiceError]) -> None:
    for answer in answers:
        if isinstance(answer, ImageRejectedError):
            result = "rejected"
        else:
            result = "failed" if isinstance(answer, ServiceError) else "answered"
        runtime.metrics.images.labels(domain, result).inc()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
