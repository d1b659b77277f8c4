"""Limits for the number of open classify requests, and for the size and time of bodies."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, MediaTypeError, OverloadedError, SlowBodyError
from service.http import problems
from service.http.context import HttpContext
from service.http.middleware.base import Middleware
from service.settings import Settings

CLASSIFY: Final = "/classify"


class RequestLimitMiddleware(Middleware):
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


class BodyLimitMiddleware(Middleware):
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
