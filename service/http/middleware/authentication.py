"""Access control from method, path and headers, before the body is read.

Only routes in `service/access/rules.py` get further. Without keys, requests of foreign web pages are rejected instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.rates import RateLimits
from service.access.rules import Endpoint
from service.errors import ForeignRequestError, UnauthorizedError
from service.http import problems
from service.http.context import HttpContext
from service.http.middleware.asgi import Middleware

DOCUMENTATION: Final = frozenset({"/docs", "/openapi.json"})


class AuthMiddleware(Middleware):
    """Checks path, method, API key and rate limits; without keys, rejects foreign hosts and cross-site requests."""

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        super().__init__(app, context)
        self._rates = RateLimits(context.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            UnauthorizedError: missing, unknown or expired key.
            DeniedError: the key lacks the scope or the domain.
            RateLimitedError: the key, or wrong keys of the client's address, exceed their rate.
            ForeignRequestError: without keys: a foreign host or a cross-site request.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        endpoint: Endpoint | None = scope["caspl.endpoint"]
        headers = Headers(scope=scope)
        count_bytes = None
        if self.context.keys.is_open:
            reject_foreign(scope["method"], headers, self.context.settings.cors_origins)
        else:
            count_bytes = self._check_key(scope, endpoint, headers)
        if (refusal := self._refusal(scope["method"], endpoint)) is not None:
            await refusal(scope, receive, send)
        else:
            await self.app(scope, _counted(receive, count_bytes) if count_bytes else receive, send)

    def _check_key(self, scope: Scope, endpoint: Endpoint | None, headers: Headers) -> Callable[[int], None] | None:
        """Check key, scope and rates; returns a function that counts the bytes of the body, if they are limited."""
        is_preflight = endpoint is not None and scope["method"] == "OPTIONS"  # browsers send it without a key
        required = endpoint.scopes.get(scope["method"]) if endpoint else None
        authorization = headers.get("authorization", "")
        try:
            key = self.context.keys.authenticate(authorization)
        except UnauthorizedError as error:
            if required == "none" or is_preflight:
                return None
            if authorization and error.code == UnauthorizedError.default_code:
                self._rates.count_failure(scope["client"][0] if scope.get("client") else "")
            raise
        scope["caspl.actor"] = key.id
        if required == "none":
            return None
        length = headers.get("content-length", "")
        count_bytes = self._rates.admit(key, int(length) if length.isdecimal() else 0)
        if endpoint and required:
            self.context.keys.require(key.id, required, endpoint.domain)
        return count_bytes

    def _refusal(self, method: str, endpoint: Endpoint | None) -> Response | None:
        """The response to an unknown path, a method that the path does not support, or OPTIONS."""
        if endpoint is None or (endpoint.template in DOCUMENTATION and not self.context.settings.api_docs):
            return problems.http_problem(HTTPStatus.NOT_FOUND)
        if method == "OPTIONS":
            return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": endpoint.allow})
        if method not in endpoint.scopes:
            return problems.http_problem(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": endpoint.allow})
        return None


def _counted(receive: Receive, count_bytes: Callable[[int], None]) -> Receive:
    async def receive_counted() -> Message:
        message = await receive()
        count_bytes(len(message.get("body", b"")))
        return message

    return receive_counted


def reject_foreign(method: str, headers: Headers, allowed_origins: tuple[str, ...]) -> None:
    """Reject requests that a foreign web page could make a local browser send to a service without keys.

    Browsers send the page's origin, and the host name they resolved: a cross-site request has another origin, a DNS
    rebinding attack a host that is not a loopback name. Following a link to the service is allowed.

    Raises:
        ForeignRequestError: Host is not a loopback name, or Origin or Sec-Fetch-Site is another site, and the origin is
            not listed in `allowed_origins`.
    """
    host = headers.get("host", "")
    if host and not _is_loopback(host):
        raise ForeignRequestError(
            "Without API keys this service accepts requests to localhost only. "
            "Use http://localhost or http://127.0.0.1, or start it with --keys-file."
        )
    origin = headers.get("origin")
    if origin in allowed_origins:
        return
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
