"""Routes for a domain's examples: list, thumbnails, label, remove. `examples.py` adds them."""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field

from prompt_store.class_names import spellings
from service.errors import ExampleNotFoundError, RequestInvalidError
from service.examples.connections import in_thread
from service.examples.records import DomainFit, Example
from service.http.context import Context, ServiceContext, actor_of
from service.http.routes.requests import check_label, check_utf8
from service.http.routes.responses import etag
from service.http.schemas import Input

logger = logging.getLogger(__name__)
router = APIRouter(tags=["examples"])

MAX_ID: Final = 2**53
MAX_PAGE: Final = 1000
THUMBNAIL_TYPE: Final = "image/webp"
THUMBNAIL_DOCS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {THUMBNAIL_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "the image is that of the ETag"},
}
THUMBNAIL_CACHE: Final = "private, no-cache"
"""Browsers compare the ETag: after another database was put in place, an id may be that of another image."""

ExampleId = Annotated[int, Path(ge=1, le=MAX_ID)]


class ExamplesQuery(Input):
    """The query of `GET /domains/{domain}/examples`."""

    after: int = Field(0, ge=0, le=MAX_ID, description="`next` of the previous page")
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="maximum number of examples")
    label: str | None = Field(None, description="only examples with this label; `unlabelled` for those without one")
    labelled: bool | None = Field(None, description="only examples with a label, or only those without one")
    suspect: bool = Field(
        False, description="only examples whose label the others contradict and nobody confirmed, worst first"
    )
    order: Literal["id", "uncertain"] = Field(
        "id", description="`uncertain` lists unlabelled examples, the smallest margin first"
    )


class RemoveQuery(Input):
    """The query of `DELETE /domains/{domain}/examples`."""

    ids: list[Annotated[str, Field(pattern=r"^[0-9]{1,15}(,[0-9]{1,15})*$")]] = Field(
        [], description="separated by commas, or repeated"
    )
    all: bool = Field(False, description="remove all examples of the domain")


class ExampleOut(BaseModel):
    """One example of a domain."""

    id: int
    label: str | None
    predicted: str | None = Field(description="class in a fit without this example; null without a current fit")
    margin: float | None = Field(description="by how much `predicted` is more probable than the next class")
    is_confirmed: bool = Field(description="whether a person confirmed the label, so that it is no suspect")
    source: str = Field(description="`upload`, or `traffic` if it was kept from a classify request")
    added_by: str = Field(description="id of the API key; empty without one")
    added_at: str
    name: str | None = Field(description="file name that it was added under last; null without one")


class ExampleCountsOut(BaseModel):
    """Numbers of a domain's examples."""

    labelled: int
    unlabelled: int
    by_label: dict[str, int]
    n_bytes: int


class ExamplesOut(BaseModel):
    """Response of `GET /domains/{domain}/examples`."""

    domain: str
    examples: list[ExampleOut]
    next: int | None = Field(description="`after` of the next page; null on the last one")
    counts: ExampleCountsOut
    based_on: int | None = Field(description="the version that `predicted` is based on; null without a current fit")


class RelabelBody(Input):
    """The body of `PATCH /domains/{domain}/examples`."""

    label: str | None = Field(description="null removes the label")
    ids: list[Annotated[int, Field(ge=1, le=MAX_ID, strict=True)]] = Field(min_length=1)
    confirmed: bool | None = Field(
        None, strict=True, description="`true`: the label is right, so it is no suspect; `false`: it may be one again"
    )


class RelabelledOut(BaseModel):
    """Response of `PATCH /domains/{domain}/examples`."""

    domain: str
    label: str | None = Field(description="as it was stored")
    changed: int = Field(description="number of examples that had another label")


class RemovedOut(BaseModel):
    """Response of `DELETE /domains/{domain}/examples`."""

    domain: str
    removed: int


@router.get("/domains/{domain}/examples", response_model=ExamplesOut)
async def list_examples(
    request: Request, domain: str, query: Annotated[ExamplesQuery, Query()], context: Context
) -> Response:
    """List a domain's examples by ascending id, or in the order of a fit, which is computed first."""
    context.table.state(domain)
    check_utf8(request.scope["query_string"])
    label, is_labelled = _chosen(query)
    if label is not None:
        label = await in_thread(_stored, context, domain, label)
    is_ordered = query.suspect or query.order == "uncertain"
    fit = await (context.fitter.report(domain) if is_ordered else context.fitter.current(domain))
    by_fit = fit if is_ordered else None
    found, following = await in_thread(_page, context, domain, query, label, is_labelled, by_fit)
    counts = await in_thread(context.examples.counts, domain)
    shown = {
        "domain": domain,
        "examples": [_shown(example, fit) for example in found],
        "next": following,
        "counts": counts,
        "based_on": fit.base_version if fit else None,
    }
    # A page may have a thousand examples and thousands of labels, so it is encoded without validation.
    return Response(msgspec.json.encode(shown), media_type="application/json")


def _page(
    context: ServiceContext,
    domain: str,
    query: ExamplesQuery,
    label: str | None,
    is_labelled: bool | None,
    by_fit: DomainFit | None,
) -> tuple[list[Example], int | None]:
    """A page, and `after` of the next one: an id, or in the order of a fit the number of examples so far."""
    page = partial(context.examples.page, domain, label=label, is_labelled=is_labelled)
    if by_fit is None:
        found = page(after=query.after, limit=query.limit + 1)
        shown = found[: query.limit]
        return shown, shown[-1].id if len(found) > query.limit else None
    order = list(by_fit.suspects(context.examples.confirmed(domain))) if query.suspect else by_fit.uncertain_ids
    if label is not None:
        known = {example.id for example in page(limit=len(order), ids=order)}
        order = [number for number in order if number in known]
    end = query.after + query.limit
    chosen = order[query.after : end]
    by_id = {example.id: example for example in page(limit=len(chosen), ids=chosen)}
    return [by_id[number] for number in chosen if number in by_id], end if len(order) > end else None


@router.get("/domains/{domain}/examples/{example}/thumbnail", response_class=Response, responses=THUMBNAIL_DOCS)
async def show_thumbnail(
    domain: str,
    example: ExampleId,
    context: Context,
    if_none_match: Annotated[str | None, Header(description="ETag of a known thumbnail; 304 if it is the same")] = None,
) -> Response:
    """Show an example as a WebP of at most 320 pixels per side."""
    context.table.state(domain)
    data = await in_thread(context.examples.thumbnail, domain, example)
    headers = {"Cache-Control": THUMBNAIL_CACHE, "ETag": etag(hashlib.sha256(data).hexdigest())}
    if if_none_match is not None and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=THUMBNAIL_TYPE, headers=headers)


@router.patch("/domains/{domain}/examples")
async def relabel(request: Request, domain: str, body: RelabelBody, context: Context) -> RelabelledOut:
    """Label examples, remove their labels, or confirm them: all or none. Another label ends a confirmation."""
    context.table.state(domain)
    label = None if body.label is None else check_label(body.label, "label")
    if label is None and body.confirmed:
        raise RequestInvalidError("An example without a label has nothing to confirm. Send its label as well.")
    if label is not None:
        label = await in_thread(_spelled, context, domain, label)
    n_changed = await in_thread(context.examples.relabel, domain, body.ids, label, is_confirmed=body.confirmed)
    _record(context, request, domain, "relabelled", n_changed)
    if body.confirmed is not None:
        facts = {"domain": domain, "actor": actor_of(request), "n": len(body.ids), "is_confirmed": body.confirmed}
        logger.info("example.confirmed", extra=facts)
    return RelabelledOut(domain=domain, label=label, changed=n_changed)


@router.delete("/domains/{domain}/examples")
async def remove_examples(
    request: Request, domain: str, query: Annotated[RemoveQuery, Query()], context: Context
) -> RemovedOut:
    """Remove some examples or all; ids that do not exist are ignored, so that the call can be repeated."""
    context.table.state(domain)
    if bool(query.ids) is query.all:
        raise RequestInvalidError("Send either ids=1,2,3 or all=true.")
    ids = None if query.all else [int(one) for some in query.ids for one in some.split(",")]
    n_removed = await in_thread(context.examples.remove, domain, ids)
    _record(context, request, domain, "removed", n_removed)
    return RemovedOut(domain=domain, removed=n_removed)


@router.delete("/domains/{domain}/examples/{example}", status_code=204)
async def remove_example(request: Request, domain: str, example: ExampleId, context: Context) -> None:
    """Remove one example."""
    context.table.state(domain)
    if not await in_thread(context.examples.remove, domain, [example]):
        raise ExampleNotFoundError(f"{domain} has no example {example}.", ids=[example])
    _record(context, request, domain, "removed", 1)


def _chosen(query: ExamplesQuery) -> tuple[str | None, bool | None]:
    """The label and whether examples are labelled; None for any.

    Raises:
        RequestInvalidError: an invalid label, or parameters that contradict each other.
    """
    label = None if query.label is None else check_label(query.label, "label")
    wanted = {
        "label": None if query.label is None else label is not None,
        "labelled": query.labelled,
        "suspect": query.suspect or None,
        "order": False if query.order == "uncertain" else None,
    }
    chosen = {name: is_labelled for name, is_labelled in wanted.items() if is_labelled is not None}
    if len(set(chosen.values())) > 1:
        raise RequestInvalidError(f"{' and '.join(chosen)} contradict each other: no example has and lacks a label.")
    return label, next(iter(chosen.values()), None)


def _spelled(context: ServiceContext, domain: str, label: str) -> str:
    """A label as a class of the live version or another example spells it."""
    live = context.table.live(domain)
    for known in (live.stack.class_names if live else (), context.examples.counts(domain).by_label):
        if found := spellings([label], known):
            return found[label]
    return label


def _stored(context: ServiceContext, domain: str, label: str) -> str:
    """A label as examples spell it."""
    known = context.examples.counts(domain).by_label
    return label if label in known else spellings([label], known).get(label, label)


def _shown(example: Example, fit: DomainFit | None) -> dict[str, Any]:
    """The fields of `ExampleOut`."""
    left_out = fit.predictions.get(example.id) if fit else None
    return {
        "id": example.id,
        "label": example.label,
        "predicted": left_out.predicted if left_out else None,
        "margin": left_out.margin if left_out else None,
        "is_confirmed": example.is_confirmed,
        "source": example.source,
        "added_by": example.added_by,
        "added_at": example.added_at,
        "name": example.name,
    }


def _record(
    context: ServiceContext, request: Request, domain: str, result: Literal["relabelled", "removed"], n: int
) -> None:
    context.metrics.examples_counted(domain, result, n)
    logger.info("example.%s", result, extra={"domain": domain, "actor": actor_of(request), "n": n})
