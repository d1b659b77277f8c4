"""Probes and metrics; the probes do not use the device and require no key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.http.context import Context, actor_of
from service.http.schemas import ReadyOut, SourceOut
from service.observability.metrics import only_domains

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez(context: Context, response: Response) -> dict[str, bool]:
    """Liveness: 503 if the device is lost or hung, or the event loop is, and the process should be restarted."""
    response.status_code = 200 if context.is_alive else 503
    return {"is_alive": context.is_alive}


@router.get("/readyz", response_model_exclude_unset=True)
async def readyz(request: Request, context: Context, response: Response) -> ReadyOut:
    """Readiness: 503 while draining or without a device. With a valid key also the state of the domains it covers."""
    reason = context.not_ready_because()
    response.status_code = 503 if reason else 200
    if not (context.keys.is_open or actor_of(request)):
        return ReadyOut(is_ready=reason is None, reason=reason)
    states = {
        domain: state.name
        for domain, state in sorted(context.table.states.items())
        if context.keys.allows(actor_of(request), "any", domain)
    }
    sources = [
        SourceOut(state=source.state.name, **vars(source.state))
        for source in context.sources
        if context.keys.allows(actor_of(request), "any", source.state.domain or "")
    ]
    lists: dict[str, Any] = {"stuck": context.watchdog.stuck, "sources": sources}
    shown = {name: values for name, values in lists.items() if values}
    return ReadyOut(is_ready=reason is None, reason=reason, domains=states, **shown)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, context: Context) -> Response:
    """Metrics in the Prometheus text format; those of single domains only for domains that the key covers."""
    text = only_domains(
        await context.metrics_text(), lambda domain: context.keys.allows(actor_of(request), "metrics", domain)
    )
    return Response(text, media_type=CONTENT_TYPE_LATEST)
