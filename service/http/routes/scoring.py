"""From the images of one request to an answer or an error each: decode, then score per domain.

One bad image or version leaves the others alone; a request without a single answer fails as a whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from service.errors import DrainingError, ImageRejectedError, ImagesRejectedError, OverloadedError
from service.http.context import HttpContext
from service.http.problems import EXPECTED, describe
from service.http.routes.bodies import UploadedImage
from service.images.decoder import Decoded
from service.images.preprocessing import Pixels
from service.inference import Answer, Pin, Scored, ScoringOptions

PinOrError: TypeAlias = Pin | Exception


class Outcome(NamedTuple):
    """The results of one request.

    Args:
        domains: the version that answered for each domain, or why none could.
        pictures: each image decoded, or why it could not be.
        answers: of each image, or why there is none.
        decode_s: seconds until all images were decoded.
        ended_s: reading of the monotonic clock once all was known.
    """

    domains: Mapping[str, Scored | Exception]
    pictures: Sequence[Decoded | Exception]
    answers: Sequence[Answer | Exception]
    decode_s: float
    ended_s: float


async def score_images(
    context: HttpContext,
    pins: Mapping[str, PinOrError],
    images: Sequence[tuple[str, UploadedImage]],
    options: ScoringOptions,
) -> Outcome:
    """Decode, queue and score the images of one request, each with its domain.

    Raises:
        ImagesRejectedError: all of several images are bad.
        Exception: what went wrong with the only image, or with all of them for another reason than the images.
    """
    began_s = time.monotonic()
    with context.decoder.places(len(images)):
        decoding = [_decode(context, pins[domain], image) for domain, image in images]
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
    answers: list[Answer | Exception] = []
    for (domain, _), picture in zip(images, pictures, strict=True):
        of_domain = domains[domain]
        if isinstance(of_domain, Exception):
            answers.append(of_domain)
        else:
            answers.append(next(remaining[domain]) if isinstance(picture, Decoded) else picture)
    count_images(context, images, domains, answers)
    _fail_if_none(answers)
    return Outcome(domains, pictures, answers, decode_s, time.monotonic())


async def _decode(context: HttpContext, pin: PinOrError, image: UploadedImage) -> Decoded | Exception:
    """Pixels or the reason for none; an image that no domain can answer is not decoded."""
    if isinstance(pin, Exception):
        return pin
    if isinstance(image.data, ImageRejectedError):
        return image.data
    try:
        return await context.decoder.decode(image.data)
    except ImageRejectedError as error:
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
    answers: Sequence[Answer | Exception],
) -> None:
    """Count images by domain, except refusals, which the scheduler counts, and names that may be no domain's."""
    for (domain, _), answer in zip(images, answers, strict=True):
        if isinstance(domains[domain], Exception) or isinstance(answer, OverloadedError | DrainingError):
            continue
        result = "answered"
        if isinstance(answer, Exception):
            result = "rejected" if isinstance(answer, ImageRejectedError) else "failed"
        context.metrics.image_counted(domain, result)


def _fail_if_none(answers: Sequence[Answer | Exception]) -> None:
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
