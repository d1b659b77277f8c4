"""Authentication, from headers only, before the body is read; without keys, protection from foreign web pages."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from service.errors import ForeignRequestError
from service.http.middleware.base import Middleware


class AuthMiddleware(Middleware):
    """Checks the API key before the body is read; without keys, rejects foreign hosts and cross-site requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            UnauthorizedError: missing or unknown key.
            DeniedError: the key lacks the scope or the domain.
            ForeignRequestError: without keys: a foreign host or a cross-site request.
        """
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if self.context.keys.is_open:
                reject_foreign(scope["method"], headers)
            else:
                authorization = headers.get("authorization", "")
                scope["caspl.actor"] = self.context.keys.check(
                    method=scope["method"], path=scope["path"], authorization=authorization
                )
        await self.app(scope, receive, send)


def reject_foreign(method: str, headers: Headers) -> None:
    """Reject requests that a foreign web page could make a local browser send to a service without keys.

    Browsers send the page's origin, and the host name they resolved: a cross-site request has another origin, a DNS
    rebinding attack a host that is not a loopback name. Following a link to the service is allowed.

    Raises:
        ForeignRequestError: Host is not a loopback name, or Origin or Sec-Fetch-Site is another site.
    """
    host = headers.get("host", "")
    if host and not _is_loopback(host):
        raise ForeignRequestError(
            "Without API keys this service accepts requests to localhost only. "
            "Use http://localhost or http://127.0.0.1, or start it with --keys-file."
        )
    origin = headers.get("origin")
    is_link = method in {"GET", "HEAD"} and headers.get("sec-fetch-mode") == "navigate"
    is_foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
    if is_foreign or (headers.get("sec-fetch-site") == "cross-site" and not is_link):
        raise ForeignRequestError(
            "Without API keys this service rejects cross-site requests. Start it with --keys-file to allow them."
        )


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    """Whether a Host header, with or without port, is a loopback name or address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
