"""`POST /domains/{domain}/examples`: from images to a domain's examples. Web processes have this route, too.

The features of the images are computed with the live version, at low priority: the images queue behind classify
requests.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from prompt_store.class_names import spellings
from service.examples.connections import in_thread
from service.examples.records import Added, NewExample
from service.http.context import HttpContext, actor_of
from service.http.problems import describe
from service.http.routes.multipart_images import UploadedImage
from service.http.routes.requests import (
    LABELLED_BODY_DOCS,
    PRIORITIES,
    check_timeout,
    read_labelled,
)
from service.http.routes.scoring import Outcome, score_in_time
from service.http.schemas import Input, PredictionOut
from service.images.decoder import Decoded
from service.inference import ImageResult, ScoringOptions
from service.observability.logs import request_id

logger = logging.getLogger(__name__)
router = APIRouter(tags=["examples"])

LOW: Final = PRIORITIES["low"]
MAX_NAME_CHARS: Final = 255
"""Of the file name that is kept."""


class AddQuery(Input):
    """The query of `POST /domains/{domain}/examples`."""

    timeout_ms: int | None = Field(
        None, ge=1, description="timeout from the last byte of the body; by default the longest that is allowed"
    )


class AddedExampleOut(BaseModel):
    """The example made from one image, or an error."""

    index: int
    name: str | None = Field(description="file name of a multipart image")
    id: int | None = Field(description="null if this image failed")
    status: str | None = Field(description="`added`, `exists` (the domain had this image already) or `relabelled`")
    label: str | None = Field(description="null for an unlabelled example")
    prediction: PredictionOut | None = Field(description="the live version's most probable class")
    error: dict[str, Any] | None = Field(description="a problem (RFC 9457) if this image failed")


class AddedExamplesOut(BaseModel):
    """Response of `POST /domains/{domain}/examples`."""

    domain: str
    version: int = Field(description="the live version, whose image prompts the features depend on")
    digest: str
    examples: list[AddedExampleOut]


@router.post("/domains/{domain}/examples", status_code=201, openapi_extra=LABELLED_BODY_DOCS)
async def add(request: Request, domain: str, query: Annotated[AddQuery, Query()]) -> AddedExamplesOut:
    """Add images to a domain's examples, labelled or not; an image that the domain has already is one example."""
    context: HttpContext = request.app.state.context
    settings = context.settings
    timeout_s = settings.max_timeout_s if query.timeout_ms is None else check_timeout(query.timeout_ms, settings)
    async with context.backend.pin(domain, None, deadline_s=time.monotonic() + timeout_s, priority=LOW) as pin:
        labelled = await read_labelled(request, settings)
        images = [(domain, image) for _, image in labelled]
        deadline_s = time.monotonic() + timeout_s
        options = ScoringOptions("cascade", (), 1, deadline_s, LOW, request_id.get(), embedding=True)
        outcome = await score_in_time(request, context, {domain: pin}, images, options, with_thumbnails=True)
        labels = [label for label, _ in labelled if label is not None]
        classes = await pin.spellings(labels) if labels else {}
    scored = outcome.domains[domain]
    if isinstance(scored, Exception):
        raise scored
    actor = actor_of(request)
    feature_key = scored.feature_key
    added = await in_thread(_store, context, domain, labelled, classes, outcome, feature_key, actor)
    counts = Counter(one.status for one in added)
    for status, n in counts.items():
        context.metrics.examples_counted(domain, status, n)
    logger.info(
        "example.added", extra={"domain": domain, "actor": actor, **{f"n_{name}": n for name, n in counts.items()}}
    )
    return AddedExamplesOut(
        domain=domain, version=scored.version, digest=scored.digest, examples=_results(labelled, outcome, added)
    )


def _store(
    context: HttpContext,
    domain: str,
    labelled: Sequence[tuple[str | None, UploadedImage]],
    classes: Mapping[str, str],
    outcome: Outcome,
    feature_key: str,
    actor: str,
) -> list[Added]:
    """Add the images that have an answer to the database, labelled as `classes` or else other examples spell it."""
    others = [label for label, _ in labelled if label is not None and label not in classes]
    known = context.examples.counts(domain).by_label if others else {}
    spelled = {**classes, **spellings(others, [*known, *others])}
    keeps_pictures = context.settings.keep_examples == "pictures"
    new = []
    for (label, image), picture, answer in zip(labelled, outcome.pictures, outcome.answers, strict=True):
        if isinstance(answer, ImageResult) and isinstance(picture, Decoded) and isinstance(image.data, bytes):
            new.append(
                NewExample(
                    label=None if label is None else spelled[label],
                    sha256=hashlib.sha256(image.data).hexdigest(),
                    thumbnail=picture.thumbnail or b"",
                    picture=image.data if keeps_pictures else None,
                    features={feature_key: answer.embedding or b""},
                    name=_file_name(image.name),
                )
            )
    return context.examples.add(domain, new, actor=actor, source="upload")


def _file_name(sent: str | None) -> str | None:
    """The last part of a client's path, at most its last `MAX_NAME_CHARS`, with `?` for characters without a glyph."""
    last = (sent or "").replace("\\", "/").rpartition("/")[2][-MAX_NAME_CHARS:]
    return "".join(char if char.isprintable() else "?" for char in last) or None


def _results(
    labelled: Sequence[tuple[str | None, UploadedImage]], outcome: Outcome, added: Sequence[Added]
) -> list[AddedExampleOut]:
    """An entry per image, in order."""
    results, kept = [], iter(added)
    for index, ((_, image), answer) in enumerate(zip(labelled, outcome.answers, strict=True)):
        example = None if isinstance(answer, Exception) else next(kept)
        results.append(
            AddedExampleOut(
                index=index,
                name=image.name,
                id=example.id if example else None,
                status=example.status if example else None,
                label=example.label if example else None,
                prediction=_most_probable(answer) if isinstance(answer, ImageResult) else None,
                error=describe(answer) if isinstance(answer, Exception) else None,
            )
        )
    return results


def _most_probable(answer: ImageResult) -> PredictionOut:
    return PredictionOut(**answer.predictions[0]._asdict())
