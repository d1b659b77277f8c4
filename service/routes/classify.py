"""`POST /classify/{domain}`: from a request to its answer, read from top to bottom.

The request pins its version at the start and keeps it to the end, whatever is activated meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.answering import PRIORITIES, StackKind, Urgency, Wanted
from service.errors import ClientGoneError, RequestInvalidError
from service.front import Serving
from service.logs import request_id
from service.routes.bodies import read_images
from service.routes.scoring import Work, answer, milliseconds
from service.schemas import ClassifyOut
from service.settings import Settings

router = APIRouter(tags=["classify"])

T = TypeVar("T")

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
    stack: StackKind = Field("cascade", description="`boost` leaves the adapting prompts out")
    version: int | None = Field(None, ge=1, le=2**53, description="answer with this version instead of the live one")
    timeout_ms: int | None = Field(None, ge=1, description="deadline, counted from the body's last byte")
    priority: Urgency = Field("normal", description="who goes first where images wait for the device")


@router.post("/classify/{domain}", openapi_extra=BODY_DOCS)
async def classify(
    request: Request, response: Response, domain: str, ask: Annotated[ClassifyQuery, Query()], front: Serving
) -> ClassifyOut:
    """Classify one or several images among a domain's classes."""
    labels = check_labels(ask.labels, front.settings)
    timeout_s = _check_numbers(ask, front.settings)
    async with front.answerer.pin(domain, ask.version) as pin:
        front.decoder.check_room(1)
        images = await read_images(request, front.settings)
        started_s = time.monotonic()
        wanted = Wanted(ask.top_k, started_s + timeout_s, PRIORITIES[ask.priority])
        work = Work(pin, ask.stack, labels, images, wanted, ask.threshold)
        served, results, timing = await _unless_gone(request, answer(front, work))
    timing.total = milliseconds(time.monotonic() - started_s)
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
