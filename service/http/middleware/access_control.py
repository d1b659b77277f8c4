"""Access control from method, path and headers, before the body is read.

Only routes in `service/access/rules.py` get further. Without keys, requests of foreign web pages are rejected instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from service.access.rates import RateLimits
from service.access.rules import UNMATCHED, Endpoint
from service.errors import ForeignRequestError, UnauthorizedError
from service.http import problems
from service.http.context import HttpContext
from service.settings import Settings

HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::\d{0,5})?")
"""An IPv6 address in brackets, or a name or an IPv4 address; and a port."""
DOCUMENTATION: Final = frozenset({"/docs", "/openapi.json"})


class AccessControl:
    """Checks API keys and rate limits; without keys, rejects foreign hosts and cross-site requests."""

    def __init__(self, context: HttpContext) -> None:
        self._keys, self._settings = context.keys, context.settings
        self._rates = RateLimits(context.settings)

    def check(self, scope: Scope, endpoint: Endpoint) -> Callable[[int], None] | None:
        """Check a request; `scope` gets its key's id as `caspl.actor`.

        Returns:
            Counts the bytes of the body as they arrive; None if they are not limited.

        Raises:
            UnauthorizedError: missing, unknown or expired key.
            DeniedError: the key lacks the scope or the domain.
            RateLimitedError: the key, or wrong keys of the client's address, exceed their rate.
            ForeignRequestError: without keys: a foreign host or a cross-site request.
        """
        method, headers = scope["method"], Headers(scope=scope)
        if self._keys.is_open:
            reject_foreign(method, headers, self._settings.cors_origins)
            return None
        is_preflight = endpoint is not UNMATCHED and method == "OPTIONS"  # browsers send it without a key
        required = endpoint.scopes.get(method)
        authorization = headers.get("authorization", "")
        try:
            key = self._keys.authenticate(authorization)
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
        if required:
            self._keys.require(key.id, required, endpoint.domain)
        return count_bytes


def refusal(method: str, endpoint: Endpoint, settings: Settings) -> Response | None:
    """The response to an unknown path, a method that the path does not support, or OPTIONS."""
    if endpoint is UNMATCHED or (endpoint.template in DOCUMENTATION and not settings.api_docs):
        return problems.http_problem(HTTPStatus.NOT_FOUND)
    if method == "OPTIONS":
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": endpoint.allow})
    if method not in endpoint.scopes:
        return problems.http_problem(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": endpoint.allow})
    return None


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
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = (found[1] or found[2]).lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
