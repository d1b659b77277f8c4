"""Decodes, queues and scores the images of one request, which may be for several domains.

An invalid image or a failed version does not affect the others; a request fails only if all of its images fail.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from fastapi import Request

from prompt_store.digest import is_digest
from service.errors import (
    CapacityError,
    ClientGoneError,
    DeadlineExceededError,
    DrainingError,
    ImageRejectedError,
    ImagesRejectedError,
    OverloadedError,
    PreconditionFailedError,
    RequestInvalidError,
)
from service.examples.uncertain import UncertainImages
from service.http.context import HttpContext, actor_of
from service.http.problems import EXPECTED, describe
from service.http.routes.multipart_images import UploadedImage
from service.images.decoder import Decoded
from service.images.preprocessing import Pixels
from service.inference import ImageResult, Pin, Scored, ScoringOptions

logger = logging.getLogger(__name__)

DIGEST_HEADER: Final = "if-bundle-digest"

PinOrError: TypeAlias = Pin | Exception
Picture: TypeAlias = UploadedImage | Pixels
"""A file, or an image that is decoded already: uint8 [H, W, 3]."""


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

    def timing(self, context: HttpContext, began_s: float) -> tuple[dict[str, float], str]:
        """Milliseconds of each stage for its slowest image, and as `Server-Timing`; recorded in metrics and traces."""
        queued_s = ran_s = 0.0
        for answer in self.answers:
            if isinstance(answer, ImageResult):
                queued_s, ran_s = max(queued_s, answer.queued_s), max(ran_s, answer.ran_s)
        now_s = time.monotonic()
        for stage, stage_s in (("decode", self.decode_s), ("device", ran_s), ("shape", now_s - self.ended_s)):
            context.metrics.stage_s.labels(stage).observe(stage_s)
        if context.traces:
            context.traces.add_stages({"decode": self.decode_s, "queue": queued_s, "device": ran_s}, began_s)
        decode, queue, device, total = (
            round(1000 * self.decode_s, 3),
            round(1000 * queued_s, 3),
            round(1000 * ran_s, 3),
            round(1000 * (now_s - began_s), 3),
        )
        header = f"decode;dur={decode}, queue;dur={queue}, device;dur={device}, total;dur={total}"
        return {"decode": decode, "queue": queue, "device": device, "total": total}, header


async def score_in_time(
    request: Request,
    context: HttpContext,
    pins: Mapping[str, PinOrError],
    images: Sequence[tuple[str, Picture]],
    options: ScoringOptions,
    *,
    with_thumbnails: bool = False,
    uncertain: UncertainImages | None = None,
) -> Outcome:
    """Run `score_images` until the deadline, or until the client disconnects; offer its images to `uncertain`.

    Raises:
        ClientGoneError: the client disconnected.
        DeadlineExceededError: the deadline passed.
        RequestInvalidError, PreconditionFailedError: `If-Bundle-Digest` is invalid, or lists no bundle that was used.
        Exception: see `score_images`.
    """
    is_gone = False
    digests = _accepted_digests(request) if DIGEST_HEADER in request.headers else frozenset()
    if uncertain:
        options = uncertain.widened(options)
    if digests:  # the client chose its versions
        options = dataclasses.replace(options, rollout=False)

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
                client = request.scope["caspl.tenant"][0]
                outcome = await score_images(context, pins, images, options, client, with_thumbnails=with_thumbnails)
            finally:
                watching.cancel()
    except TimeoutError as error:
        if is_gone:
            raise ClientGoneError("The client disconnected before the response was ready.") from error
        if "version" not in {*request.query_params, *request.path_params}:  # a numbered version's domain may not exist
            count_images(context, images, pins, [error] * len(images))
        raise DeadlineExceededError(
            "The request was not finished within its timeout. Retry later, or with a longer timeout_ms."
        ) from error
    if digests:
        _require_digests(digests, outcome)
    if uncertain:
        _offer(uncertain, options, images, outcome, actor_of(request))
    return outcome


def _accepted_digests(request: Request) -> frozenset[str]:
    """The digests in `If-Bundle-Digest`.

    Raises:
        RequestInvalidError: not a list of digests.
    """
    lines = request.headers.getlist(DIGEST_HEADER)
    digests = frozenset(part.strip().strip('"') for line in lines for part in line.split(","))
    if not all(map(is_digest, digests)):
        raise RequestInvalidError(
            "If-Bundle-Digest must be one or several digests of the form sha256:..., separated by commas."
        )
    return digests


def _require_digests(digests: frozenset[str], outcome: Outcome) -> None:
    """Check that each version that was used is one that the client accepts.

    Raises:
        PreconditionFailedError: another one was used.
    """
    for scored in outcome.domains.values():
        if isinstance(scored, Scored) and scored.digest not in digests:
            raise PreconditionFailedError(
                f"Version {scored.version} was used, {scored.digest}, which If-Bundle-Digest does not list. If it was "
                "replaced moments ago, retry: every server follows within seconds."
            )


async def score_images(
    context: HttpContext,
    pins: Mapping[str, PinOrError],
    images: Sequence[tuple[str, Picture]],
    options: ScoringOptions,
    client: str,
    *,
    with_thumbnails: bool = False,
) -> Outcome:
    """Decode, queue and score the images of one request, each with its domain; `with_thumbnails` as in `Decoder`.

    Decoding is shared fairly between pairs of client and domain.

    Raises:
        ImagesRejectedError: all of several images are invalid.
        Exception: the error of the only image, or the first one that is not an image's fault if all failed.
    """
    began_s = time.monotonic()
    tenants = [(client, domain) for domain, _ in images if not isinstance(pins[domain], Exception)]
    with context.decoder.places.holding(tenants):
        decoding = [
            _decode(context, pins[domain], image, (client, domain), with_thumbnail=with_thumbnails)
            for domain, image in images
        ]
        pictures = [await decoding[0]] if len(decoding) == 1 else await asyncio.gather(*decoding)
    decode_s = time.monotonic() - began_s
    pixels: dict[str, list[Pixels]] = defaultdict(list)
    for (domain, _), picture in zip(images, pictures, strict=True):
        if isinstance(picture, Decoded):
            pixels[domain].append(picture.pixels)
    scoring = [_score(pin, pixels[domain], options) for domain, pin in pins.items()]
    scored = [await scoring[0]] if len(scoring) == 1 else await asyncio.gather(*scoring)
    domains = dict(zip(pins, scored, strict=True))
    remaining = {domain: iter(one.answers) for domain, one in domains.items() if isinstance(one, Scored)}
    answers: list[ImageResult | Exception] = []
    failures: list[Exception] = []
    for (domain, _), picture in zip(images, pictures, strict=True):
        answer: ImageResult | Exception
        if isinstance(of_domain := domains[domain], Exception):
            answer = of_domain
        else:
            answer = next(remaining[domain]) if isinstance(picture, Decoded) else picture
        answers.append(answer)
        if isinstance(answer, Exception):
            failures.append(answer)
    count_images(context, images, domains, answers)
    if len(failures) == len(answers):
        raise _failure(failures)
    return Outcome(domains, pictures, answers, decode_s, time.monotonic())


async def _decode(
    context: HttpContext, pin: PinOrError, image: Picture, tenant: tuple[str, str], *, with_thumbnail: bool
) -> Decoded | Exception:
    """Pixels or the error; without a pinned version the image is not decoded."""
    if isinstance(pin, Exception):
        return pin
    try:
        if not isinstance(image, UploadedImage):
            return await context.decoder.resize(image, tenant)
        if isinstance(image.data, ImageRejectedError):
            return image.data
        return await context.decoder.decode(image.data, tenant, with_thumbnail=with_thumbnail)
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


def answer_or_raise(index: int, answer: ImageResult | Exception) -> ImageResult:
    """The answer; raises an error, with the index of the image if the image is the cause."""
    if isinstance(answer, ImageRejectedError):
        raise type(answer)(f"Image {index}: {answer}", code=answer.code, extra=answer.extra)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _offer(
    uncertain: UncertainImages,
    options: ScoringOptions,
    images: Sequence[tuple[str, Picture]],
    outcome: Outcome,
    actor: str,
) -> None:
    """Offer the files that were scored by live versions as examples."""
    if not uncertain.is_eligible(options):
        return
    for (domain, image), answer in zip(images, outcome.answers, strict=True):
        scored = outcome.domains[domain]
        if not isinstance(scored, Scored) or scored.is_candidate or not isinstance(answer, ImageResult):
            continue
        if isinstance(image, UploadedImage) and isinstance(image.data, bytes):
            uncertain.offer(domain, image.data, answer, scored, actor)


def count_images(
    context: HttpContext,
    images: Sequence[tuple[str, Picture]],
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


def _failure(failures: Sequence[Exception]) -> Exception:
    """The error of a request without an answer, from those of its images."""
    ours = [error for error in failures if not isinstance(error, ImageRejectedError)]
    if ours or len(failures) == 1:
        return [*ours, *failures][0]
    errors = [{"index": index, **describe(error)} for index, error in enumerate(failures)]
    return ImagesRejectedError("All images are invalid; see `errors`.", extra={"errors": errors})
