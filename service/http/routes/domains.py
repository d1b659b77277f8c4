"""Routes for domains and versions: list, upload, download, activate, roll back, delete."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response

from prompt_store.bundle import read_bundle
from prompt_store.errors import DomainNotFoundError, VersionNotFoundError
from prompt_store.store import VersionInfo
from service.domains.live_table import DomainState, ServedStack
from service.errors import DrainingError, MediaTypeError, RequestInvalidError
from service.http.context import actor_of
from service.http.schemas import (
    DomainDetailOut,
    DomainOut,
    DomainsOut,
    HistoryEntryOut,
    HistoryOut,
    LiveBody,
    LiveOut,
    PublishedOut,
    VersionDetailOut,
    VersionOut,
    VersionsOut,
)
from service.runtime import Running, Runtime

router = APIRouter(tags=["domains"])

BUNDLE_TYPE: Final = "application/vnd.caspl.bundle+safetensors"
UPLOAD_TYPES: Final = frozenset({BUNDLE_TYPE, "application/octet-stream", "application/x-safetensors"})
UPLOAD_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
CONTENT_DOCS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {BUNDLE_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}

Version = Annotated[int, Path(ge=1, le=2**53)]


@router.get("/domains")
async def list_domains(runtime: Running) -> DomainsOut:
    """List all domains with their live versions."""
    table = runtime.live.table
    return DomainsOut(domains=[DomainOut(**_glance(domain, table[domain])) for domain in sorted(table)])


@router.get("/domains/{domain}")
async def show_domain(domain: str, runtime: Running, response: Response) -> DomainDetailOut:
    """Show one domain with its classes; the ETag is the live version's digest."""
    state = _state(runtime, domain)
    served = state.served
    if served is not None:
        response.headers["ETag"] = _etag(served.digest)
    return DomainDetailOut(
        **_glance(domain, state),
        classes=list(served.stack.class_names) if served else [],
        nbytes=served.stack.nbytes if served else None,
    )


@router.post("/domains/{domain}/versions", status_code=201, openapi_extra=UPLOAD_DOCS)
async def publish(
    request: Request,
    response: Response,
    domain: str,
    runtime: Running,
    activate: Annotated[bool, Query(description="also make it live; requires the scope `activate`")] = False,
) -> PublishedOut:
    """Upload a bundle, validated and warmed up before it is stored; 200 if the newest version has this content."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind not in UPLOAD_TYPES:
        raise MediaTypeError("Send the bundle's bytes as application/octet-stream.")
    if activate:
        runtime.keys.require(actor_of(request), "activate", domain)
    _refuse_when_draining(runtime)
    published = await runtime.domains.publish(domain, await request.body(), activate=activate, actor=actor_of(request))
    added = published.added
    response.status_code = 201 if added.created else 200
    response.headers["Location"] = f"/domains/{domain}/versions/{added.version}"
    response.headers["ETag"] = _etag(added.digest)
    served = runtime.live.table[domain].served
    return PublishedOut(
        domain=domain,
        version=added.version,
        digest=added.digest,
        is_new=added.created,
        is_live=served is not None and served.version == added.version,
    )


@router.get("/domains/{domain}/versions")
async def list_versions(domain: str, runtime: Running) -> VersionsOut:
    """List all versions, oldest first."""
    return VersionsOut(domain=domain, versions=[_version(domain, info) for info in await _infos(runtime, domain)])


@router.get("/domains/{domain}/versions/{version}")
async def show_version(domain: str, version: Version, runtime: Running, response: Response) -> VersionDetailOut:
    """Show one version with its manifest; the ETag is its digest."""
    info = await _info(runtime, domain, version)
    data = await asyncio.to_thread(runtime.live.store.read, domain, version)
    bundle = await asyncio.to_thread(read_bundle, data)
    response.headers["ETag"] = _etag(info.digest)
    return VersionDetailOut(**_version(domain, info).model_dump(), manifest=bundle.manifest.model_dump(mode="json"))


@router.get("/domains/{domain}/versions/{version}/content", response_class=Response, responses=CONTENT_DOCS)
async def download(domain: str, version: Version, runtime: Running) -> Response:
    """Download the bundle."""
    info = await _info(runtime, domain, version)
    data = await asyncio.to_thread(runtime.live.store.read, domain, version)
    name = f'attachment; filename="{domain}-{version}.safetensors"'
    return Response(data, media_type=BUNDLE_TYPE, headers={"ETag": _etag(info.digest), "Content-Disposition": name})


@router.put("/domains/{domain}/live")
async def activate(
    request: Request,
    response: Response,
    domain: str,
    body: LiveBody,
    runtime: Running,
    if_match: Annotated[
        str | None, Header(description="ETag of the current live version; 412 if another version is live")
    ] = None,
) -> LiveOut:
    """Make a version live; responds once it serves."""
    _refuse_when_draining(runtime)
    served = await runtime.domains.activate(domain, body.version, expected=_expected(if_match), actor=actor_of(request))
    return _live(served, response)


@router.post("/domains/{domain}/rollback")
async def rollback(request: Request, response: Response, domain: str, runtime: Running) -> LiveOut:
    """Make the previously live version live; responds once it serves."""
    _refuse_when_draining(runtime)
    return _live(await runtime.domains.rollback(domain, actor=actor_of(request)), response)


@router.get("/domains/{domain}/history")
async def history(
    domain: str,
    runtime: Running,
    limit: Annotated[int, Query(ge=1, le=1000, description="maximum number of changes; the newest are returned")] = 100,
    before: Annotated[int | None, Query(ge=1, description="only changes with a smaller `seq`")] = None,
) -> HistoryOut:
    """Show the history of a domain, oldest first."""
    _state(runtime, domain)
    entries = await asyncio.to_thread(runtime.live.store.history, domain, limit=limit, before=before)
    return HistoryOut(
        domain=domain,
        history=[
            HistoryEntryOut(
                seq=entry.seq,
                at=str(entry.at),
                actor=entry.actor,
                action=entry.action,
                from_version=entry.from_version,
                to_version=entry.to_version,
            )
            for entry in entries
        ],
    )


@router.delete("/domains/{domain}/versions/{version}", status_code=204)
async def retire(request: Request, domain: str, version: Version, runtime: Running) -> None:
    """Delete a version that is not live."""
    await runtime.domains.retire(domain, version, actor=actor_of(request))


def _state(runtime: Runtime, domain: str) -> DomainState:
    state = runtime.live.table.get(domain)
    if state is None:
        raise DomainNotFoundError("No such domain. GET /domains lists all domains.")
    return state


def _glance(domain: str, state: DomainState) -> dict[str, Any]:
    served = state.served
    return {
        "domain": domain,
        "state": state.name,
        "version": served.version if served else None,
        "digest": served.digest if served else None,
        "n_classes": len(served.stack.class_names) if served else None,
        "error": state.error,
    }


async def _infos(runtime: Runtime, domain: str) -> list[VersionInfo]:
    _state(runtime, domain)
    return list(await asyncio.to_thread(runtime.live.store.versions, domain))


async def _info(runtime: Runtime, domain: str, version: int) -> VersionInfo:
    for info in await _infos(runtime, domain):
        if info.version == version:
            return info
    raise VersionNotFoundError(f"{domain} has no version {version}. GET /domains/{domain}/versions lists all versions.")


def _version(domain: str, info: VersionInfo) -> VersionOut:
    return VersionOut(
        domain=domain,
        version=info.version,
        digest=info.digest,
        size_bytes=info.size_bytes,
        created_at=str(info.created_at),
        is_live=info.is_live,
    )


def _live(served: ServedStack, response: Response) -> LiveOut:
    response.headers["ETag"] = _etag(served.digest)
    return LiveOut(domain=served.domain, version=served.version, digest=served.digest)


def _etag(digest: str) -> str:
    return f'"{digest}"'


def _expected(if_match: str | None) -> str | None:
    """Parse If-Match into a digest; None for `*` or no header.

    Raises:
        RequestInvalidError: not a single strong ETag in quotes.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip()
    if len(text) < 2 or not (text[0] == text[-1] == '"') or '"' in text[1:-1]:
        raise RequestInvalidError('If-Match must be a single ETag in quotes, such as "sha256:...".')
    return text[1:-1]


def _refuse_when_draining(runtime: Runtime) -> None:
    if runtime.is_draining:
        raise DrainingError("The service is shutting down; retry after the restart.")
