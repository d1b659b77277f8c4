"""What happens to every request before a route sees it: id, log line, metrics, key check, body limits.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` hides a client's hanging up. The order, outside in: `Envelope`
(turns whatever is raised into a problem), `Gate` (keys, from the first line and headers only),
`OpenRequestLimit` (refuses classify requests beyond a number), `BodyLimit` (counts bytes while they arrive).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
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

logger = logging.getLogger(__name__)

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE"})
"""The methods that metrics tell apart: what a client invents must not become a label."""
CLASSIFY: Final = "/classify"
QUIET_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})


def surround(app: FastAPI, front: HttpContext) -> None:
    """Put all four around an application's routes."""
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, front=front)
    app.add_middleware(OpenRequestLimit, front=front)
    app.add_middleware(Gate, front=front)
    app.add_middleware(Envelope, front=front)


class Envelope:
    """Gives a request its id and makes sure that it is answered, logged and counted exactly once."""

    def __init__(self, app: ASGIApp, front: HttpContext) -> None:
        self.app = app
        self.front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        token = request_id.set(given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}")
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
                failure = ClientGoneError("The client hung up.") if isinstance(error, ClientDisconnect) else error
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
        if self.front.is_draining:
            headers["Connection"] = "close"

    def _record(self, scope: Scope, status: int, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        metrics = self.front.metrics
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


class Gate:
    """Checks the API key before a byte of the body is read; without keys, that a request is of this machine."""

    def __init__(self, app: ASGIApp, front: HttpContext) -> None:
        self.app = app
        self.front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            UnauthorizedError: no key, or not one of ours.
            DeniedError: the key may not do this.
            ForeignRequestError: no key is needed, and another site's page asks.
        """
        if scope["type"] == "http":
            if self.front.keys.is_open:
                refuse_foreign(scope["method"], Headers(scope=scope))
            scope["caspl.actor"] = self.front.keys.check(
                method=scope["method"],
                path=scope["path"],
                authorization=Headers(scope=scope).get("authorization", ""),
            )
        await self.app(scope, receive, send)


def refuse_foreign(method: str, headers: Headers) -> None:
    """Refuse what any web page can make the browser of this machine send to an open service.

    A browser says whose page asks, and by which name it found us: a page elsewhere is another origin, and a name that
    was made to point here (DNS rebinding) is not one of this machine's. Following a link to us is harmless.

    Raises:
        ForeignRequestError: the Host is no loopback name, or the Origin or Sec-Fetch-Site is another site's.
    """
    host = headers.get("host", "")
    if host and not _is_loopback(host):
        raise ForeignRequestError(
            "Without API keys this service answers to localhost only, not to the name in this request's Host. "
            "Use http://localhost or http://127.0.0.1, or start it with --keys-file."
        )
    origin = headers.get("origin")
    is_link = method in {"GET", "HEAD"} and headers.get("sec-fetch-mode") == "navigate"
    is_foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
    if is_foreign or (headers.get("sec-fetch-site") == "cross-site" and not is_link):
        raise ForeignRequestError(
            "Without API keys this service does not answer to other sites' pages. Start it with --keys-file to use it "
            "from there."
        )


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    """Whether a Host header, with or without port, names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class OpenRequestLimit:
    """Bounds the number of classify requests that this process works on.

    Behind a small model HTTP takes longest, and requests pile up here instead of in the queue. Under overload most
    requests are refused, and a refusal before routing costs a quarter of the CPU time of one in the route (50 against
    200 us): at three times the capacity of an HTTP-bound process that is more than 5 % of its goodput.
    """

    def __init__(self, app: ASGIApp, front: HttpContext) -> None:
        self.app = app
        self._limit = front.settings.max_open_requests
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
            raise OverloadedError(f"{self._limit} requests are open already; try again.", retry_after_s=1.0)
        self._n_open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._n_open -= 1


class BodyLimit:
    """Bounds a body's size (announced and counted) and the time it takes to arrive.

    What reads the body may take the error for its own, and answer that the body is malformed; the error is answered.
    """

    def __init__(self, app: ASGIApp, front: HttpContext) -> None:
        self.app = app
        self.front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            MediaTypeError: a compressed body.
            BodyTooLargeError: more bytes are announced than allowed; while reading, more arrived.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        settings = self.front.settings
        limit = settings.body_limit(scope["path"])
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise MediaTypeError(
                "Compressed bodies are not read; send the bytes as they are, without Content-Encoding."
            )
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _too_large(limit)
        body = _CountedBody(scope, receive, send, limit=limit, max_s=settings.max_body_s)
        await self.app(scope, body.receive, body.send)


class _CountedBody:
    """The two ends of one request: counts what comes in, and answers itself once that was too much or too slow."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, limit: int, max_s: float) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._limit, self._max_s = limit, max_s
        self._deadline_s = time.monotonic() + max_s
        self._n_bytes = 0
        self._is_complete = False
        self._failure: BodyTooLargeError | SlowBodyError | None = None

    async def receive(self) -> Message:
        """The next message.

        Raises:
            BodyTooLargeError, SlowBodyError: more bytes, or later, than may be.
        """
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline_s - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            self._failure = SlowBodyError(f"The body did not arrive within {self._max_s:g} s.")
            raise self._failure from error
        self._n_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._n_bytes > self._limit:
            self._failure = _too_large(self._limit)
            raise self._failure
        return message

    async def send(self, message: Message) -> None:
        """Answer, with the failure if there was one."""
        if self._failure is None:
            await self._send(message)
        elif message["type"] == "http.response.start":
            await problems.respond(self._failure)(self._scope, self._receive, self._send)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body has more than {limit} bytes.", extra={"limit": limit})
