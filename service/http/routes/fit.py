"""Routes that fit a few-shot head to a domain's examples: report it, or publish it as a version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response

from service.examples.connections import in_thread
from service.examples.records import DomainFit, FitOptions
from service.http.context import Context, ServiceContext, actor_of
from service.http.routes.responses import etag, published, refuse_when_draining
from service.http.schemas import FitBody, FitOut, FitQuery, FittedOut

router = APIRouter(tags=["fit"])

DEFAULTS: Final = FitBody.model_validate({})


@router.get(
    "/domains/{domain}/fit", response_model=FitOut, responses={304: {"description": "the report is that of the ETag"}}
)
async def report(
    domain: str,
    query: Annotated[FitQuery, Query()],
    context: Context,
    if_none_match: Annotated[str | None, Header(description="ETag of a known report; 304 if it is current")] = None,
) -> Response:
    """Report the fit to the labelled examples without making a version."""
    fit = await context.fitter.report(domain, _options(query))
    suspects = await in_thread(_suspects, context, domain, fit)
    headers = {"ETag": etag(_digest(fit, suspects))}
    if if_none_match is not None and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(msgspec.json.encode(_shown(domain, fit, suspects)), headers=headers, media_type="application/json")


@router.post("/domains/{domain}/fit", status_code=201, response_model=FittedOut)
async def fit(
    request: Request, response: Response, domain: str, context: Context, body: FitBody = DEFAULTS
) -> Response:
    """Fit a head to the labelled examples and publish it as a version; responds once it serves."""
    actor = actor_of(request)
    if body.activate:
        context.keys.require(actor, "activate", domain)
    refuse_when_draining(context)
    added, fitted = await context.fitter.fit(domain, _options(body), activate=body.activate, actor=actor)
    suspects = await in_thread(_suspects, context, domain, fitted)
    content = msgspec.json.encode(published(response, context, domain, added) | _shown(domain, fitted, suspects))
    headers = dict(response.headers)
    return Response(content, 201 if added.created else 200, headers, media_type="application/json")


def _options(query: FitQuery) -> FitOptions:
    based_on = None if query.based_on == "live" else query.based_on
    return FitOptions(based_on, query.method, query.classes, query.unlabelled)


def _suspects(context: ServiceContext, domain: str, fit: DomainFit) -> list[dict[str, Any]]:
    """The suspects of a report, without confirmed ones, the most suspicious first."""
    found = fit.suspects(context.examples.confirmed(domain))
    names = context.examples.names(domain, found)
    return [
        {
            "id": number,
            "label": one.label,
            "predicted": one.predicted,
            "probability": one.probability,
            "name": names.get(number),
        }
        for number, one in found.items()
    ]


def _shown(domain: str, fit: DomainFit, suspects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of `FitOut`; the report may be large, so it is encoded without validation."""
    found = {field.name: getattr(fit.report, field.name) for field in fields(fit.report)}
    found["suspects"] = suspects
    return {
        "domain": domain,
        "based_on": {"domain": domain, "version": fit.base_version, "digest": fit.base.digest},
        "revision": fit.revision,
        "examples_digest": fit.digests["examples"],
        "classes": fit.options.classes,
        "method": fit.options.method,
        "unlabelled": fit.options.unlabelled,
        "new_classes": fit.new_classes,
        "report": found,
    }


def _digest(fit: DomainFit, suspects: Sequence[Mapping[str, Any]]) -> str:
    """Of everything that a report depends on."""
    parts = (fit.revision, fit.digests, fit.base.digest, fit.options, [(one["id"], one["name"]) for one in suspects])
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
