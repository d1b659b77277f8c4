"""The middleware of every request: id, access control, body limits, problems for exceptions, log and metrics."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.rules import Endpoint, find_endpoint
from service.errors import ClientGoneError, DrainingError
from service.http import problems
from service.http.body import LimitedBody, tenant_of
from service.http.context import HttpContext
from service.http.middleware.access_control import AccessControl, refusal
from service.observability.logs import request_id
from service.process import MemoryReturn
from service.scheduler.budget import Budget
from service.settings import MIB

logger = logging.getLogger(__name__)

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
"""Methods that become metric labels; others are client input."""
LATE: Final = "The server shut down before the response was ready. Send the request to another replica."
LARGE_BYTES: Final = 8 * MIB
"""Bodies from this size on leave memory that is returned; 16 photographs of half a megapixel have less."""
QUIET_ROUTES: Final = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"})


class RequestMiddleware:
    """Ensures that every request has an id, is allowed and limited, and is answered, logged and counted exactly once.

    Everything inside sees paths without root path, and GET for HEAD. Plain ASGI, because Starlette's
    `BaseHTTPMiddleware` hides client disconnects.
    """

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        self.app, self.context = app, context
        self._access = AccessControl(context)
        self._budget = Budget(context.settings.max_admitted_bytes, "bytes for requests")
        self._memory = MemoryReturn()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s, given = time.monotonic(), Headers(scope=scope).get("x-request-id", "")
        token = request_id.set(given if REQUEST_ID.fullmatch(given) else new_request_id())
        method, root = scope["method"], self.context.settings.root_path
        path, body, response = scope["path"].removeprefix(root), None, _Response(send, self.context, method)
        scope, endpoint = {**scope, "path": path}, find_endpoint(path)
        if method == "HEAD":
            scope["method"] = "GET"
        try:
            try:
                if not path:  # the page's links are relative to its path with a final slash
                    await RedirectResponse(f"{root}/")(scope, receive, response.send)
                else:
                    count_bytes = self._access.check(scope, endpoint)
                    if refused := refusal(scope["method"], endpoint, self.context.settings):
                        await refused(scope, receive, response.send)
                    else:
                        scope["caspl.tenant"] = tenant_of(scope, endpoint)
                        body = LimitedBody(scope, receive, endpoint, self.context, self._budget, count_bytes)
                        await self.app(scope, body.receive, response.send)
            except (Exception, asyncio.CancelledError) as error:
                problem = self._problem(error, has_begun=response.status != 0)
                if problem is None:
                    raise
                await problem(scope, receive, response.send)
            self._record(scope, endpoint, method, response.status, time.monotonic() - started_s)
        finally:
            if body:
                body.release(is_answered=response.status == HTTPStatus.OK)
                if body.n_bytes >= LARGE_BYTES:
                    self._memory.request()
            request_id.reset(token)

    def _problem(self, error: BaseException, *, has_begun: bool) -> Response | None:
        """The response to an exception; None if it must be raised again."""
        if isinstance(error, asyncio.CancelledError):
            # The drain timeout: uvicorn would respond with 500.
            return problems.respond(DrainingError(LATE)) if self.context.is_draining and not has_begun else None
        if has_begun:
            logger.error("response.broken", exc_info=error)
            return None
        is_gone = isinstance(error, ClientDisconnect)
        return problems.respond(ClientGoneError("The client disconnected.") if is_gone else error)

    def _record(self, scope: Scope, endpoint: Endpoint, method: str, status: int, took_s: float) -> None:
        route = endpoint.template
        metrics = self.context.metrics
        metrics.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        metrics.request_s.labels(route).observe(took_s)
        code, key = scope.get("caspl.code"), scope.get("caspl.actor")
        if code:
            metrics.errors.labels(code).inc()
        logger.log(
            logging.DEBUG if route in QUIET_ROUTES else logging.INFO,
            "request.answered",
            extra={
                "client": scope["client"][0] if scope.get("client") else "",
                **({"key": key} if key else {}),
                "method": method,
                "route": route,
                "status": status,
                "ms": round(took_s * 1000, 1),
                **({"code": code} if code else {}),
            },
        )


class _Response:
    """Sends the response of one request, with the headers of all responses; `status` is 0 until it begins."""

    def __init__(self, send: Send, context: HttpContext, method: str) -> None:
        self._send, self._context, self._is_head = send, context, method == "HEAD"
        self.status = 0

    async def send(self, message: Message) -> None:
        """Send an ASGI message; a response to HEAD has no body."""
        if message["type"] == "http.response.start":
            self.status, headers = int(message["status"]), MutableHeaders(scope=message)
            headers["X-Request-Id"] = request_id.get()
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
            if self._context.is_draining:
                headers["Connection"] = "close"
        elif self._is_head:
            message = {**message, "body": b""}
        await self._send(message)


def new_request_id() -> str:
    """A random id, always of the same length."""
    return f"req-{random.getrandbits(64):016x}"
