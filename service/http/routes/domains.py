"""Routes for domains and versions: list, upload, download, activate, roll back, delete."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response

from prompt_store.bundle import read_bundle
from prompt_store.errors import SignatureError, VersionNotFoundError
from prompt_store.signers import signature_infos
from prompt_store.versions import VersionInfo
from service.domains.live_table import DomainState, LoadedVersion
from service.errors import MediaTypeError, RequestInvalidError
from service.http.body import media_type_of, read_body
from service.http.context import Context, ServiceContext, actor_of
from service.http.routes.responses import etag, published, refuse_when_draining
from service.http.schemas import (
    BaseVersionOut,
    DomainDetailOut,
    DomainOut,
    DomainsOut,
    HistoryEntryOut,
    HistoryOut,
    LiveBody,
    LiveOut,
    NewDomainBody,
    NewDomainOut,
    PublishedOut,
    SignatureOut,
    VersionDetailOut,
    VersionOut,
    VersionsOut,
)

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
async def list_domains(request: Request, context: Context) -> DomainsOut:
    """List the domains that the key covers, with their live versions."""
    states = sorted(context.table.states.items())
    visible = [(name, state) for name, state in states if context.keys.allows(actor_of(request), "any", name)]
    return DomainsOut(domains=[DomainOut(**_summary(name, state)) for name, state in visible])


@router.get("/domains/{domain}")
async def show_domain(domain: str, context: Context, response: Response) -> DomainDetailOut:
    """Show one domain with its classes; the ETag is the live version's digest."""
    state = context.table.state(domain)
    live = state.live
    if live is not None:
        response.headers["ETag"] = etag(live.digest)
    return DomainDetailOut(
        **_summary(domain, state),
        classes=list(live.stack.class_names) if live else [],
        nbytes=live.stack.nbytes if live else None,
    )


@router.put("/domains/{domain}", status_code=201)
async def create(
    request: Request, response: Response, domain: str, body: NewDomainBody, context: Context
) -> NewDomainOut:
    """Create a domain from class names alone, live at once; requires the scope `activate` as well."""
    actor = actor_of(request)
    context.keys.require(actor, "activate", domain)
    if body.boosted_by is not None:
        context.keys.require(actor, "publish", body.boosted_by)
    refuse_when_draining(context)
    new = await context.creator.create(domain, body.classes, body.templates, body.boosted_by, actor=actor)
    source = new.boosted_by
    return NewDomainOut(
        **published(response, context, domain, new.added),
        classes=list(new.classes),
        templates=list(new.templates),
        boosted_by=BaseVersionOut.model_validate(source, from_attributes=True) if source else None,
    )


@router.post("/domains/{domain}/versions", status_code=201, openapi_extra=UPLOAD_DOCS)
async def publish(
    request: Request,
    response: Response,
    domain: str,
    context: Context,
    activate: Annotated[bool, Query(description="also make it live; requires the scope `activate`")] = False,
    caspl_signature: Annotated[
        str | None, Header(description="signature file of `caspl bundle sign`, in base64; stored with the version")
    ] = None,
) -> PublishedOut:
    """Upload a bundle, validated and warmed up before it is stored; 200 if the newest version has this content."""
    if media_type_of(request) not in UPLOAD_TYPES:
        raise MediaTypeError("Send the bundle's bytes as application/octet-stream.")
    if activate:
        context.keys.require(actor_of(request), "activate", domain)
    refuse_when_draining(context)
    signature = None if caspl_signature is None else _signature(caspl_signature)
    body = await read_body(request)
    added = await context.publisher.publish(
        domain, body, activate=activate, actor=actor_of(request), signature=signature
    )
    response.status_code = 201 if added.created else 200
    return PublishedOut(**published(response, context, domain, added))


@router.get("/domains/{domain}/versions")
async def list_versions(domain: str, context: Context) -> VersionsOut:
    """List all versions with their signatures, oldest first."""
    infos = await _infos(context, domain)
    signatures = await asyncio.to_thread(lambda: [_signatures(context, info.digest) for info in infos])
    return VersionsOut(
        domain=domain,
        versions=[
            VersionOut(domain=domain, **vars(info), signatures=some)
            for info, some in zip(infos, signatures, strict=True)
        ],
    )


@router.get("/domains/{domain}/versions/{version}")
async def show_version(domain: str, version: Version, context: Context, response: Response) -> VersionDetailOut:
    """Show one version with its manifest and signatures; the ETag is its digest."""
    info = await _info(context, domain, version)
    data = await asyncio.to_thread(context.store.read, domain, version)
    bundle = await asyncio.to_thread(read_bundle, data)
    response.headers["ETag"] = etag(info.digest)
    signatures = await asyncio.to_thread(_signatures, context, info.digest)
    manifest = bundle.manifest.model_dump(mode="json")
    return VersionDetailOut(domain=domain, **vars(info), signatures=signatures, manifest=manifest)


@router.get("/domains/{domain}/versions/{version}/content", response_class=Response, responses=CONTENT_DOCS)
async def download(domain: str, version: Version, context: Context) -> Response:
    """Download the bundle."""
    info = await _info(context, domain, version)
    data = await asyncio.to_thread(context.store.read, domain, version)
    name = f'attachment; filename="{domain}-{version}.safetensors"'
    return Response(data, media_type=BUNDLE_TYPE, headers={"ETag": etag(info.digest), "Content-Disposition": name})


@router.put("/domains/{domain}/live")
async def activate(
    request: Request,
    response: Response,
    domain: str,
    body: LiveBody,
    context: Context,
    if_match: Annotated[
        str | None, Header(description="ETag of the current live version; 412 if another version is live")
    ] = None,
) -> LiveOut:
    """Make a version live; responds once it serves. Ends a rollout."""
    refuse_when_draining(context)
    live = await context.publisher.activate(domain, body.version, expected=_expected(if_match), actor=actor_of(request))
    return _live(live, response)


@router.post("/domains/{domain}/rollback")
async def rollback(request: Request, response: Response, domain: str, context: Context) -> LiveOut:
    """Make the previously live version live; responds once it serves. Ends a rollout."""
    refuse_when_draining(context)
    return _live(await context.publisher.rollback(domain, actor=actor_of(request)), response)


@router.get("/domains/{domain}/history")
async def history(
    domain: str,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=1000, description="maximum number of changes; the newest are returned")] = 100,
    before: Annotated[int | None, Query(ge=1, description="only changes with a smaller `seq`")] = None,
) -> HistoryOut:
    """Show the history of a domain, oldest first."""
    context.table.state(domain)
    entries = await asyncio.to_thread(context.store.history, domain, limit=limit, before=before)
    return HistoryOut(domain=domain, history=[HistoryEntryOut(**vars(entry)) for entry in entries])


@router.delete("/domains/{domain}/versions/{version}", status_code=204)
async def retire(request: Request, domain: str, version: Version, context: Context) -> None:
    """Delete a version that is not live."""
    await context.publisher.retire(domain, version, actor=actor_of(request))


def _summary(domain: str, state: DomainState) -> dict[str, Any]:
    live = state.live
    return {
        "domain": domain,
        "state": state.name,
        "version": live.version if live else None,
        "digest": live.digest if live else None,
        "n_classes": len(live.stack.class_names) if live else None,
        "live_since": state.since,
        "candidate": state.running.candidate.version if state.running else None,
        "has_boosting": live is not None and live.stack.has_boosting,
        "error": state.error,
    }


def _signatures(context: ServiceContext, digest: str) -> list[SignatureOut]:
    found = signature_infos(context.store, digest, context.backend.loader.signing.known)
    return [SignatureOut(**vars(one), is_verified=one.is_verified) for one in found]


async def _infos(context: ServiceContext, domain: str) -> list[VersionInfo]:
    context.table.state(domain)
    return list(await asyncio.to_thread(context.store.versions, domain))


async def _info(context: ServiceContext, domain: str, version: int) -> VersionInfo:
    for info in await _infos(context, domain):
        if info.version == version:
            return info
    raise VersionNotFoundError(f"{domain} has no version {version}. GET /domains/{domain}/versions lists all versions.")


def _live(live: LoadedVersion, response: Response) -> LiveOut:
    response.headers["ETag"] = etag(live.digest)
    return LiveOut(domain=live.domain, version=live.version, digest=live.digest)


def _signature(text: str) -> bytes:
    """Decode the header.

    Raises:
        SignatureError: not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise SignatureError("The header Caspl-Signature is not base64 of a signature file.") from error


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
