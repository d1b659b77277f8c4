"""From the images of one request to one result each, by way of whoever answers.

The request's version was pinned before its body was read and is kept to the end. One bad image fails alone; a request
whose only image is bad fails as a whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from service.answering import Answered, Pin, Served, StackKind, Wanted
from service.errors import DeadlineExceededError, ImageRejectedError, ImagesRejectedError, ServiceError
from service.front import Front
from service.images import Decoded
from service.problems import describe
from service.routes.bodies import SentImage
from service.schemas import PredictionOut, ResultOut, TimingOut


@dataclass(frozen=True)
class Work:
    """What is done for one request: who answers, images and deadline.

    Args:
        pin: the version the request holds.
        kind: `boost` leaves the adapting prompts out.
        labels: other classes; empty takes the version's own.
        images: what to classify.
        wanted: how, and by when.
        threshold: classes less probable than this are left out.
    """

    pin: Pin
    kind: StackKind
    labels: tuple[str, ...]
    images: Sequence[SentImage]
    wanted: Wanted
    threshold: float


async def answer(front: Front, work: Work) -> tuple[Served, list[ResultOut], TimingOut]:
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
        async with asyncio.timeout(work.wanted.deadline_s - time.monotonic()):
            served = await work.pin.settle(work.kind, work.labels)
            decoded, decode_s = await _decode(front, work.images)
            answers = await _score(work, decoded)
    except TimeoutError as error:
        raise DeadlineExceededError("The answer was not ready within the request's time.") from error
    _count(front, served.domain, answers)
    _fail_if_none(answers)
    answered = [answer for answer in answers if isinstance(answer, Answered)]
    timing = TimingOut(
        decode=milliseconds(decode_s),
        queue=milliseconds(max(answer.queued_s for answer in answered)),
        device=milliseconds(max(answer.ran_s for answer in answered)),
        total=0.0,
    )
    front.metrics.stage_s.labels("decode").observe(decode_s)
    front.metrics.stage_s.labels("device").observe(timing.device / 1000)
    results = [
        _shape(index, sent, picture, answer, work.threshold)
        for index, (sent, picture, answer) in enumerate(zip(work.images, decoded, answers, strict=True))
    ]
    return served, results, timing


async def _decode(front: Front, images: Sequence[SentImage]) -> tuple[list[Decoded | ImageRejectedError], float]:
    """Pixels or a refusal per image, and the seconds that took."""

    async def one(image: SentImage) -> Decoded | ImageRejectedError:
        if isinstance(image.data, ImageRejectedError):
            return image.data
        try:
            return await front.decoder.decode(image.data)
        except ImageRejectedError as error:
            return error

    started_s = time.monotonic()
    with front.decoder.places(len(images)):
        return list(await asyncio.gather(*(one(image) for image in images))), time.monotonic() - started_s


async def _score(work: Work, decoded: Sequence[Decoded | ImageRejectedError]) -> list[Answered | ServiceError]:
    """Have scored what could be decoded; an answer or an error per image, in order."""
    pixels = [item.pixels for item in decoded if isinstance(item, Decoded)]
    scored = iter(await work.pin.score(pixels, work.wanted) if pixels else ())
    return [item if isinstance(item, ImageRejectedError) else next(scored) for item in decoded]


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
        for found in answer.found
        if found.probability >= threshold
    ]
    return ResultOut(index=index, name=sent.name, predictions=predictions, notes=notes, error=None)


def _count(front: Front, domain: str, answers: Sequence[Answered | ServiceError]) -> None:
    for answer in answers:
        if isinstance(answer, ImageRejectedError):
            result = "rejected"
        else:
            result = "failed" if isinstance(answer, ServiceError) else "answered"
        front.metrics.images.labels(domain, result).inc()


def milliseconds(seconds: float) -> float:
    """Seconds as what answers show, to the microsecond."""
    return round(seconds * 1000, 3)
