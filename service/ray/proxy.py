"""Middleware of Ray's HTTP proxies: the domain as the routing key, and answers for requests that no replica answers.

Ray loads it into every proxy whose environment has `CALLBACK`; `caspl serve --ray` sets it. Imports no Ray.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK: Final = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "service.ray.proxy:middlewares")
"""The environment variable that loads the middleware, and its value."""
DOMAIN_PATH: Final = re.compile(r"/(?:classify|domains|v2/models)/(?P<domain>[a-z0-9-]{1,64})(?:/|$)")
ROUTING_KEY: Final = b"x-session-id"
"""The header that Ray passes on to its request routers."""
REQUEST_ID: Final = b"x-request-id"
NO_ROUTE: Final = b"Path '"
"""Ray's response to a path without an application begins with it."""

LOST: Final = {
    "type": "about:blank",
    "title": "Replica lost",
    "status": 502,
    "code": "replica_lost",
    "detail": (
        "The replica with this request ended before it answered; it may have executed the request. Send it again."
    ),
}
STOPPED: Final = {
    "type": "about:blank",
    "title": "Service not running",
    "status": 503,
    "code": "draining",
    "detail": "No replica serves this path: the service is starting or stopping. Retry later.",
}


def middlewares() -> list[Middleware]:
    """The middleware, for Ray."""
    return [Middleware(ProxyMiddleware)]


class ProxyMiddleware:
    """Adds the domain in the path as the routing key; answers 502 for a lost replica and 503 without an application.

    Ray itself answers 500 and 404 then, which clients do not retry.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != ROUTING_KEY]
        if domain := DOMAIN_PATH.search(scope["path"]):
            headers.append((ROUTING_KEY, domain["domain"].encode()))
        response = _Response(send)
        await self._app({**scope, "headers": headers}, receive, response.send)
        if not response.has_begun:
            await response.send_problem(LOST)


class _Response:
    """One response; the start of a 404 is held back until its body shows that it is not Ray's own."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self.has_begun = self._is_replaced = False

    async def send(self, message: Message) -> None:
        """Pass an ASGI message on, unless it belongs to a response of Ray's that is replaced."""
        if self._is_replaced:
            return
        if message["type"] == "http.response.start":
            self.has_begun = True
            message = {**message, "headers": _with_one_id(message.get("headers", []))}
            if message["status"] == 404:
                self._held = message
                return
        elif self._held:
            start, self._held = self._held, None
            if bytes(message.get("body", b"")).startswith(NO_ROUTE):
                self._is_replaced = True
                await self.send_problem(STOPPED)
                return
            await self._send(start)
        await self._send(message)

    async def send_problem(self, problem: dict[str, Any]) -> None:
        """Send a problem (RFC 9457)."""
        body = json.dumps(problem).encode()
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
        if problem["status"] == 503:
            headers.append((b"retry-after", b"1"))
        await self._send({"type": "http.response.start", "status": problem["status"], "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _with_one_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without the second request id, which Ray appends to the service's."""
    kept, has_id = [], False
    for name, value in headers:
        is_id = bytes(name).lower() == REQUEST_ID
        if not (is_id and has_id):
            kept.append((name, value))
        has_id = has_id or is_id
    return kept
