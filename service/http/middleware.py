"""Middleware: request id, access log and metrics, authentication, limits for open requests and bodies.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` hides client disconnects. Order from the outside:
`RequestContextMiddleware` (also converts exceptions to problems), `AuthMiddleware` (keys, from headers only),
`RequestLimitMiddleware` (number of open classify requests), `BodyLimitMiddleware` (size and time of a body).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import re
import time
from functools import lru_cache
from types import SimpleNamespace
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    BodyTooLargeError,
    ClientGoneError,
    ForeignRequestError,
    MediaTypeError,
    OverloadedError,
    SlowBodyError,
)
from service.http import problems
from service.http.context import HttpContext
from service.observability.logs import request_id
from service.settings import Settings

logger = logging.getLogger(__name__)

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE"})
"""Methods that become metric labels; others are client input."""
CLASSIFY: Final = "/classify"
QUIET_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})


def install_middleware(app: FastAPI, context: HttpContext) -> None:
    """Add all middleware to an application."""
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware, context=context)
    app.add_middleware(RequestLimitMiddleware, context=context)
    app.add_middleware(AuthMiddleware, context=context)
    app.add_middleware(RequestContextMiddleware, context=context)


class _Middleware:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        self.app = app
        self.context = context


class RequestContextMiddleware(_Middleware):
    """Assigns a request id, and ensures that every request is answered, logged and counted exactly once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        token = request_id.set(given if REQUEST_ID.fullmatch(given) else f"req-{random.getrandbits(64):016x}")
        started_s = time.monotonic()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(MutableHeaders(scope=message))
            await send(message)

        try:
            try:
                await self.app(scope, receive, send_marked)
            except Exception as error:
                failure = ClientGoneError("The client disconnected.") if isinstance(error, ClientDisconnect) else error
                if status:
                    logger.exception("response.broken")
                    raise
                await problems.respond(failure)(scope, receive, send_marked)
            self._record(scope, status, time.monotonic() - started_s)
        finally:
            request_id.reset(token)

    def _mark(self, headers: MutableHeaders) -> None:
        headers["X-Request-Id"] = request_id.get()
        headers.setdefault("X-Content-Type-Options", "nosniff")
        headers.setdefault("Cache-Control", "no-store")
        if self.context.is_draining:
            headers["Connection"] = "close"

    def _record(self, scope: Scope, status: int, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        metrics = self.context.metrics
        method = scope["method"] if scope["method"] in METHODS else "other"
        metrics.requests.labels(route, method, str(status)).inc()
        metrics.request_s.labels(route).observe(took_s)
        code = scope.get("caspl.code")
        if code:
            metrics.errors.labels(code).inc()
        level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
        logger.log(
            level,
            "request.answered",
            extra={
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(took_s * 1000, 1),
                **({"code": code} if code else {}),
            },
        )


class AuthMiddleware(_Middleware):
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


class RequestLimitMiddleware(_Middleware):
    """Limits the number of open classify requests in this process.

    With a small model HTTP is the bottleneck, and requests accumulate here instead of in the queue. Under overload most
    requests are rejected, and rejecting one before routing takes a quarter of the CPU time of rejecting it in the route
    (50 against 200 us): at three times the capacity of an HTTP-bound process this is more than 5 % of its goodput.
    """

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        super().__init__(app, context)
        self._limit = context.settings.max_open_requests
        self._n_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            OverloadedError: too many classify requests are open.
        """
        if scope["type"] != "http" or not scope["path"].startswith(CLASSIFY):
            await self.app(scope, receive, send)
            return
        if self._n_open >= self._limit:
            scope["route"] = SimpleNamespace(path=CLASSIFY if scope["path"] == CLASSIFY else f"{CLASSIFY}/{{domain}}")
            raise OverloadedError(
                f"Server overloaded: {self._limit} requests are open. Retry later.", retry_after_s=1.0
            )
        self._n_open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._n_open -= 1


class BodyLimitMiddleware(_Middleware):
    """Limits the size of a body, declared and received, and the time to receive it.

    The response is this error even if the body's reader handles the exception and reports a malformed body.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            MediaTypeError: a compressed body.
            BodyTooLargeError, SlowBodyError: the declared or received size, or the time, exceeds its limit.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        settings = self.context.settings
        limit, deadline_s = body_limit(scope["path"], settings), time.monotonic() + settings.max_body_s
        _check_headers(Headers(scope=scope), limit)
        n_bytes, is_complete = 0, False
        failure: BodyTooLargeError | SlowBodyError | None = None

        async def receive_counted() -> Message:
            nonlocal n_bytes, is_complete, failure
            if is_complete:
                return await receive()
            try:
                async with asyncio.timeout(deadline_s - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                failure = SlowBodyError(f"The body did not arrive within {settings.max_body_s:g} s.")
                raise failure from error
            n_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if n_bytes > limit:
                failure = _too_large(limit)
                raise failure
            return message

        async def send_unless_failed(message: Message) -> None:
            if failure is None:
                await send(message)
            elif message["type"] == "http.response.start":
                await problems.respond(failure)(scope, receive, send)

        await self.app(scope, receive_counted, send_unless_failed)


def body_limit(path: str, settings: Settings) -> int:
    """Most bytes in the body of a request to `path`."""
    if path.startswith(CLASSIFY):
        return settings.max_request_bytes
    if path.startswith("/domains/") and path.endswith("/versions"):
        return settings.max_bundle_bytes
    return 64 * 1024


def _check_headers(headers: Headers, limit: int) -> None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("Compressed bodies are not supported. Send the body without Content-Encoding.")
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is larger than {limit} bytes.", extra={"limit": limit})
