"""Limits for all requests of this process: open requests with images, and bodies (see `service/http/body.py`)."""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http import problems
from service.http.body import LimitedBody, has_images, tenant_of, timeout_of
from service.http.context import HttpContext
from service.http.middleware.asgi import Middleware
from service.scheduler.budget import Budget


class LimitsMiddleware(Middleware):
    """Bounds the memory of all requests together, and the number of requests with images that are being worked on.

    A request counts as open once its body is complete, so slow clients do not use up the places of the others. Most
    requests beyond the limit are rejected earlier, by `EarlyRefusal`.
    """

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        super().__init__(app, context)
        self._budget = Budget(context.settings.max_admitted_bytes, "bytes for requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        The response is the body's error even if its reader handles the exception and reports a malformed body.

        Raises:
            OverloadedError: too many requests with images are open.
            MediaTypeError, BodyTooLargeError, SlowBodyError, CapacityError: see `LimitedBody`.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        settings, requests = self.context.settings, self.context.open_requests
        counts_as_open, is_open, status = has_images(scope), False, 0
        tenant = scope["caspl.tenant"] = tenant_of(scope)
        domain = tenant[1]
        timeout_s = timeout_of(scope["query_string"], settings)
        if counts_as_open:
            requests.check(domain, timeout_s)

        def count_open() -> None:
            nonlocal is_open
            if counts_as_open:
                requests.open(domain, timeout_s)
                is_open = True

        async def send_unless_failed(message: Message) -> None:
            nonlocal status
            if body.failure is None:
                status = message.get("status", status)
                await send(message)
            elif message["type"] == "http.response.start":
                await problems.respond(body.failure)(scope, receive, send)

        body = LimitedBody(
            scope, receive, tenant=tenant, settings=settings, budget=self._budget, on_complete=count_open
        )
        try:
            await self.app(scope, body.receive, send_unless_failed)
        finally:
            body.release()
            if is_open:
                requests.close(domain, is_answered=status == HTTPStatus.OK)
