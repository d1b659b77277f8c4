"""Limits for all requests of this process: open classify requests, and bodies (see `service/http/body.py`)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import OverloadedError
from service.http import problems
from service.http.body import CLASSIFY, LimitedBody
from service.http.context import HttpContext
from service.http.middleware.asgi import Middleware
from service.scheduler.budget import Budget


class LimitsMiddleware(Middleware):
    """Bounds the memory of all requests together, and the number of classify requests that are being worked on.

    A request counts as open once its body is complete, so slow clients do not use up the places of the others. With a
    small model HTTP is the bottleneck, and requests accumulate here instead of in the queue. Under overload most
    requests are rejected, and rejecting one before routing takes a quarter of the CPU time of rejecting it in the route
    (50 against 200 us): at three times the capacity of an HTTP-bound process this is more than 5 % of its goodput.
    """

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        super().__init__(app, context)
        self._max_open = context.settings.max_open_requests
        self._n_open = 0
        self._budget = Budget(context.settings.max_admitted_bytes, "bytes for requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        The response is the body's error even if its reader handles the exception and reports a malformed body.

        Raises:
            OverloadedError: too many classify requests are open.
            MediaTypeError, BodyTooLargeError, SlowBodyError, CapacityError: see `LimitedBody`.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_classify, is_open = scope["path"].startswith(CLASSIFY), False
        if is_classify:
            self._check_open()

        def count_open() -> None:
            nonlocal is_open
            if is_classify:
                self._check_open()
                self._n_open += 1
                is_open = True

        async def send_unless_failed(message: Message) -> None:
            if body.failure is None:
                await send(message)
            elif message["type"] == "http.response.start":
                await problems.respond(body.failure)(scope, receive, send)

        body = LimitedBody(scope, receive, self.context.settings, self._budget, count_open)
        try:
            await self.app(scope, body.receive, send_unless_failed)
        finally:
            body.release()
            self._n_open -= is_open

    def _check_open(self) -> None:
        if self._n_open >= self._max_open:
            raise OverloadedError(
                f"Server overloaded: {self._max_open} requests are open. Retry later.", retry_after_s=1.0
            )
