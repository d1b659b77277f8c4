"""`POST /classify/{domain}` and `POST /classify`: from a request to its answer, read from top to bottom.

A request pins its versions at the start, or as soon as its body says of which domains, and keeps them to
the end, whatever is activated meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from prompt_store.manifest import is_domain
from service.answering import PRIORITIES, StackKind, Urgency, Wanted
from service.domains.live_table import unknown_domain
from service.errors import ClientGoneError, RequestInvalidError
from service.http.context import Front, Serving, actor_of
from service.http.problems import EXPECTED
from service.http.routes.bodies import SentImage, read_images, read_mixed
from service.http.routes.scoring import Asked, Held, Result, answer, milliseconds
from service.http.schemas import ClassifyOut, MixedOut, MixedResultOut, TimingOut
from service.observability.logs import request_id
from service.settings import Settings

router = APIRouter(tags=["classify"])

T = TypeVar("T")

FILE: Final = {"type": "string", "format": "binary"}
BASE64: Final = {"type": "string", "contentEncoding": "base64"}


def _json_docs(**fields: object) -> dict[str, Any]:
    """A JSON body with a list of images of these fields."""
    image = {"type": "object", "required": list(fields), "properties": fields}
    images = {"type": "array", "items": image}
    return {"schema": {"type": "object", "required": ["images"], "properties": {"images": images}}}


BODY_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            **{f"image/{kind}": {"schema": FILE} for kind in ("jpeg", "png", "webp")},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": FILE}},
                }
            },
            "application/json": _json_docs(b64=BASE64),
        },
    }
}
MIXED_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "every file in a field named by its domain",
                    "additionalProperties": {"type": "array", "items": FILE},
                }
            },
            "application/json": _json_docs(domain={"type": "string"}, b64=BASE64),
        },
    }
}


class MixedQuery(BaseModel):
    """The query of a request about several domains; an unknown parameter is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int = Field(5, ge=1, description="most classes per image, most probable first")
    threshold: float = Field(0.0, ge=0, le=1, description="leave out classes less probable than this")
    labels: list[str] = Field([], description="choose among these instead; repeated, or one value with commas")
    stack: StackKind = Field("cascade", description="`boost` leaves the adapting prompts out")
    timeout_ms: int | None = Field(None, ge=1, description="deadline, counted from the body's last byte")
    priority: Urgency = Field("normal", description="who goes first where images wait for the device")


class ClassifyQuery(MixedQuery):
    """The query of a request about one domain."""

    version: int | None = Field(None, ge=1, le=2**53, description="answer with this version instead of the live one")


@router.post("/classify/{domain}", openapi_extra=BODY_DOCS)
async def classify(
    request: Request, response: Response, domain: str, ask: Annotated[ClassifyQuery, Query()], front: Serving
) -> ClassifyOut:
    """Classify one or several images among a domain's classes."""
    asking = _Asking(ask, front.settings)
    async with front.answerer.pin(domain, ask.version, asking.wanted) as pin:
        front.decoder.check_room(1)
        images = await read_images(request, front.settings)
        asking.begin()
        results, timing = await asking.answers(request, response, front, [(pin, image) for image in images])
    served = next(version for version, _ in results if version is not None)
    response.headers["X-Bundle-Version"] = str(served.version)
    response.headers["X-Bundle-Digest"] = served.digest
    return ClassifyOut(
        request_id=request_id.get(),
        domain=served.domain,
        version=served.version,
        digest=served.digest,
        stack=ask.stack,
        results=[result for _, result in results],
        timing_ms=timing,
    )


@router.post("/classify", openapi_extra=MIXED_DOCS)
async def classify_mixed(
    request: Request, response: Response, ask: Annotated[MixedQuery, Query()], front: Serving
) -> MixedOut:
    """Classify images of several domains in one call, each among the classes of its own."""
    asking = _Asking(ask, front.settings)
    front.decoder.check_room(1)
    images = await read_mixed(request, front.settings)
    asking.begin()
    async with AsyncExitStack() as held:
        domains = list(dict.fromkeys(domain for domain, _ in images))
        actor, wanted = actor_of(request), asking.wanted
        holding = await asyncio.gather(*(_hold(held, front, actor, domain, wanted) for domain in domains))
        pins = dict(zip(domains, holding, strict=True))
        held_images = [(pins[domain], image) for domain, image in images]
        results, timing = await asking.answers(request, response, front, held_images)
    return MixedOut(
        request_id=request_id.get(),
        stack=ask.stack,
        results=[
            MixedResultOut(
                **dict(result),
                domain=domain if is_domain(domain) else None,
                version=served.version if served else None,
                digest=served.digest if served else None,
            )
            for (domain, _), (served, result) in zip(images, results, strict=True)
        ],
        timing_ms=timing,
    )


async def _hold(held: AsyncExitStack, front: Front, actor: str, domain: str, wanted: Wanted) -> Held:
    """Pin what is live in a domain for as long as `held` is open, or say why that cannot be."""
    try:
        front.keys.require(actor, "classify", domain)
        if not is_domain(domain):
            return unknown_domain(domain)
        return await held.enter_async_context(front.answerer.pin(domain, None, wanted))
    except EXPECTED as error:
        return error


class _Asking:
    """A query that was found sound, and is asked once the body is there; its time is counted from then on.

    Raises:
        RequestInvalidError: it asks for more than settings allow.
    """

    def __init__(self, ask: MixedQuery, settings: Settings) -> None:
        self._ask = ask
        self._labels = check_labels(ask.labels, settings)
        self._timeout_s = _check_numbers(ask, settings)
        self._began_s = time.monotonic()

    def begin(self) -> None:
        """Start the clock anew: the body is there."""
        self._began_s = time.monotonic()

    @property
    def wanted(self) -> Wanted:
        """How an image is to be scored."""
        return Wanted(self._ask.top_k, self._began_s + self._timeout_s, PRIORITIES[self._ask.priority])

    async def answers(
        self, request: Request, response: Response, front: Front, images: Sequence[tuple[Held, SentImage]]
    ) -> tuple[list[Result], TimingOut]:
        """A result per image, and where the time went, which a header says too."""
        asked = Asked(self._ask.stack, self._labels, self.wanted, self._ask.threshold)
        results, timing = await _unless_gone(request, answer(front, asked, images))
        timing.total = milliseconds(time.monotonic() - self._began_s)
        response.headers["Server-Timing"] = ", ".join(f"{name};dur={value}" for name, value in timing)
        return results, timing


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


def _check_numbers(ask: MixedQuery, settings: Settings) -> float:
    """The request's time in seconds, after a look at the numbers that settings bound."""
    if ask.top_k > settings.max_top_k:
        raise RequestInvalidError(f"top_k is at most {settings.max_top_k}.", extra={"limit": settings.max_top_k})
    timeout_s = settings.timeout_s(ask.timeout_ms)
    if timeout_s is None:
        limit = int(settings.max_timeout_s * 1000)
        raise RequestInvalidError(f"timeout_ms is at most {limit}.", extra={"limit": limit})
    return timeout_s


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
