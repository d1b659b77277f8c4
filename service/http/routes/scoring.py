"""From the images of one request to one result each, by way of whoever answers.

Every image comes with the version that is to answer it, which was pinned before and is kept to the end. Whatever is
wrong with one image or one version leaves the others alone; a request of which nothing can be answered fails as a
whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.answering import Answered, Pin, Served, StackKind, Wanted
from service.errors import (
    DeadlineExceededError,
    DrainingError,
    ImageRejectedError,
    ImagesRejectedError,
    OverloadedError,
)
from service.http.context import Front
from service.http.problems import EXPECTED, describe
from service.http.routes.bodies import SentImage
from service.http.schemas import PredictionOut, ResultOut, TimingOut
from service.images.decoder import Decoded

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What a request asks about each of its images.

    Args:
        kind: `boost` leaves the adapting prompts out.
        labels: other classes; empty takes a version's own.
        wanted: how, and by when.
        threshold: classes less probable than this are left out.
    """

    kind: StackKind
    labels: tuple[str, ...]
    wanted: Wanted
    threshold: float


Held: TypeAlias = Pin | Exception
"""What is to answer an image, or why nothing can."""
Result: TypeAlias = tuple[Served | None, ResultOut]
"""What became of an image, and the version that was asked about it, if there was one."""


async def answer(
    front: Front, asked: Asked, images: Sequence[tuple[Held, SentImage]]
) -> tuple[list[Result], TimingOut]:
    """Decode, queue and score the images of one request within its deadline.

    Returns:
        A result per image, in order, and where the time went but for the total.

    Raises:
        DeadlineExceededError: not ready in time.
        ImagesRejectedError: all of several images are bad.
        Exception: what went wrong with the only image, or with all of them for another reason than the images.
    """
    pins = [pin for pin, _ in images]
    served: list[Served | Exception] = []
    try:
        async with asyncio.timeout(asked.wanted.deadline_s - time.monotonic()):
            settled = await _settle_all(pins, asked)
            served = [settled[pin] for pin in pins]
            pictures, decode_s = await _decode(front, served, [image for _, image in images])
            outcomes = await _score(pins, pictures, asked.wanted)
    except TimeoutError as error:
        late = DeadlineExceededError("The answer was not ready within the request's time.")
        _count(front, served, [late] * len(served))
        raise late from error
    began_s = time.monotonic()
    _count(front, served, outcomes)
    _fail_if_none(outcomes)
    results: list[Result] = []
    for index, (version, (_, sent), picture, outcome) in enumerate(
        zip(served, images, pictures, outcomes, strict=True)
    ):
        who = None if isinstance(version, Exception) else version
        results.append((who, _shape(index, sent, picture, outcome, asked.threshold)))
    timing = _timing(front, decode_s, outcomes)
    front.metrics.stage_s.labels("shape").observe(time.monotonic() - began_s)
    return results, timing


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of several coroutines that run at the same time; where one fails, the others end with it."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _settle_all(pins: Sequence[Held], asked: Asked) -> dict[Held, Served | Exception]:
    """The version behind each pin, or why it cannot answer; who would be refused is refused before anything is done."""

    async def settle(pin: Held) -> Served | Exception:
        if isinstance(pin, Exception):
            return pin
        try:
            pin.check(pins.count(pin), asked.wanted)
            return await pin.settle(asked.kind, asked.labels)
        except EXPECTED as error:
            return error

    each = list(dict.fromkeys(pins))
    return dict(zip(each, await _together([settle(pin) for pin in each]), strict=True))


async def _decode(
    front: Front, served: Sequence[Served | Exception], images: Sequence[SentImage]
) -> tuple[list[Decoded | Exception], float]:
    """Pixels or a refusal per image, and the seconds that took; an image that nobody can answer is left alone."""

    async def one(version: Served | Exception, image: SentImage) -> Decoded | Exception:
        if isinstance(version, Exception):
            return version
        if isinstance(image.data, ImageRejectedError):
            return image.data
        try:
            return await front.decoder.decode(image.data)
        except ImageRejectedError as error:
            return error

    started_s = time.monotonic()
    with front.decoder.places(len(images)):
        pictures = await _together([one(*pair) for pair in zip(served, images, strict=True)])
    return pictures, time.monotonic() - started_s


async def _score(
    pins: Sequence[Held], pictures: Sequence[Decoded | Exception], wanted: Wanted
) -> list[Answered | Exception]:
    """Have scored what could be decoded, all of one version together; an answer or an error per image, in order."""

    async def score(pin: Held, pixels: Sequence[NDArray[np.uint8]]) -> Sequence[Answered | Exception]:
        try:
            return [pin] * len(pixels) if isinstance(pin, Exception) else await pin.score(pixels, wanted)
        except EXPECTED as error:
            return [error] * len(pixels)

    pixels: dict[Held, list[NDArray[np.uint8]]] = {}
    for pin, picture in zip(pins, pictures, strict=True):
        if isinstance(picture, Decoded):
            pixels.setdefault(pin, []).append(picture.pixels)
    scored = await _together([score(*pair) for pair in pixels.items()])
    rest = {pin: iter(answers) for pin, answers in zip(pixels, scored, strict=True)}
    return [
        next(rest[pin]) if isinstance(picture, Decoded) else picture
        for pin, picture in zip(pins, pictures, strict=True)
    ]


def _fail_if_none(answers: Sequence[Answered | Exception]) -> None:
    """Fail the request as a whole when no image was answered."""
    failures = [answer for answer in answers if isinstance(answer, Exception)]
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
    index: int, sent: SentImage, picture: Decoded | Exception, answer: Answered | Exception, threshold: float
) -> ResultOut:
    notes = list(picture.notes) if isinstance(picture, Decoded) else []
    if isinstance(answer, Exception):
        return ResultOut(index=index, name=sent.name, notes=notes, error=describe(answer))
    predictions = [
        PredictionOut(label=found.label, class_id=found.class_id, probability=found.probability)
        for found in answer.found
        if found.probability >= threshold
    ]
    return ResultOut(index=index, name=sent.name, predictions=predictions, notes=notes, error=None)


def _timing(front: Front, decode_s: float, answers: Sequence[Answered | Exception]) -> TimingOut:
    answered = [answer for answer in answers if isinstance(answer, Answered)]
    timing = TimingOut(
        decode=milliseconds(decode_s),
        queue=milliseconds(max(answer.queued_s for answer in answered)),
        device=milliseconds(max(answer.ran_s for answer in answered)),
        total=0.0,
    )
    front.metrics.stage_s.labels("decode").observe(decode_s)
    front.metrics.stage_s.labels("device").observe(timing.device / 1000)
    return timing


def _count(front: Front, served: Sequence[Served | Exception], outcomes: Sequence[Answered | Exception]) -> None:
    """Count images by domain; a name that nobody answers to must not become a label, and refusals count elsewhere."""
    for version, outcome in zip(served, outcomes, strict=True):
        if isinstance(version, Exception) or isinstance(outcome, OverloadedError | DrainingError):
            continue
        if isinstance(outcome, ImageRejectedError):
            result = "rejected"
        else:
            result = "failed" if isinstance(outcome, Exception) else "answered"
        front.metrics.image_counted(version.domain, result)


def milliseconds(seconds: float) -> float:
    """Seconds as what answers show, to the microsecond."""
    return round(seconds * 1000, 3)
