"""Request id, route, access log and request metrics; converts exceptions to problems."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse
from starlette.types import Message, Receive, Scope, Send

from service.access.rules import Endpoint, find_endpoint
from service.errors import ClientGoneError, DrainingError
from service.http import problems
from service.http.middleware.asgi import Middleware
from service.observability.logs import new_request_id, request_id

logger = logging.getLogger(__name__)

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"})
"""Methods that become metric labels; others are client input."""
LATE: Final = "The server shut down before the response was ready. Send the request to another replica."
QUIET_ROUTES: Final = frozenset({"/livez", "/readyz", "/metrics"})


class RequestContextMiddleware(Middleware):
    """Assigns a request id, and ensures that every request is answered, logged and counted exactly once.

    Everything inside sees paths without root path, and GET for HEAD.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        token = request_id.set(given if REQUEST_ID.fullmatch(given) else new_request_id())
        started_s = time.monotonic()
        status, method, root = 0, scope["method"], self.context.settings.root_path
        path = scope["path"].removeprefix(root) if scope["path"].startswith(f"{root}/") else scope["path"]
        scope = {**scope, "path": path, "caspl.endpoint": find_endpoint(path)}
        if method == "HEAD":
            scope["method"] = "GET"
        # The page's links are relative to its path with a final slash.
        app = RedirectResponse(f"{root}/") if root and path == root else self.app

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(MutableHeaders(scope=message))
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            try:
                await app(scope, receive, send_marked)
            except Exception as error:
                failure = ClientGoneError("The client disconnected.") if isinstance(error, ClientDisconnect) else error
                if status:
                    logger.exception("response.broken")
                    raise
                await problems.respond(failure)(scope, receive, send_marked)
            except asyncio.CancelledError:
                # The drain timeout: uvicorn would respond with 500.
                if status or not self.context.is_draining:
                    raise
                await problems.respond(DrainingError(LATE))(scope, receive, send_marked)
            self._record(scope, method, status, time.monotonic() - started_s)
        finally:
            request_id.reset(token)

    def _mark(self, headers: MutableHeaders) -> None:
        headers["X-Request-Id"] = request_id.get()
        headers.setdefault("X-Content-Type-Options", "nosniff")
        headers.setdefault("Cache-Control", "no-store")
        if self.context.is_draining:
            headers["Connection"] = "close"

    def _record(self, scope: Scope, method: str, status: int, took_s: float) -> None:
        endpoint: Endpoint | None = scope["caspl.endpoint"]
        route = endpoint.template if endpoint else "unmatched"
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
