"""Parts of the responses of several routes."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from prompt_store.versions import Added
from service.errors import DrainingError
from service.http.context import ServiceContext


def etag(digest: str) -> str:
    """A strong ETag."""
    return f'"{digest}"'


def published(response: Response, context: ServiceContext, domain: str, added: Added) -> dict[str, Any]:
    """The fields of `PublishedOut` for a stored version; sets the headers `Location` and `ETag`."""
    response.headers["Location"] = f"{context.settings.root_path}/domains/{domain}/versions/{added.version}"
    response.headers["ETag"] = etag(added.digest)
    live = context.table.live(domain)
    return {
        "domain": domain,
        "version": added.version,
        "digest": added.digest,
        "is_new": added.created,
        "is_live": live is not None and live.version == added.version,
    }


def refuse_when_draining(context: ServiceContext) -> None:
    """Reject a change of a domain during shutdown.

    Raises:
        DrainingError: the process is shutting down.
    """
    if context.is_draining:
        raise DrainingError("The service is shutting down; retry after the restart.")
