"""Refuses classify requests that are too many or would be answered too late, by their first line alone.

Under overload most requests are refused, on the processor that the others' images need: what would be refused whatever
else it says is refused before a route is looked for, a query checked or a body read.
"""

from __future__ import annotations

import re
import time
from typing import Final

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from service.answering import PRIORITIES, Wanted
from service.errors import OverloadedError
from service.http.context import Front
from service.settings import Settings

MIXED_ROUTE: Final = "/classify"
ROUTE: Final = "/classify/{domain}"
MILLISECONDS: Final = re.compile(r"[1-9][0-9]{0,8}")


class Crowd:
    """Bounds how many classify requests are under way in this process, and asks first whether one image has a chance.

    Behind a small model HTTP itself is what takes longest. Then requests pile up here, where no queue counts them, and
    the time to refuse one is before its body is read.
    """

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self.app = app
        self.front = front
        self._n_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection.

        Raises:
            OverloadedError: as many as may be are under way, or one image of that domain would be refused now.
        """
        if scope["type"] != "http" or not scope["path"].startswith(MIXED_ROUTE):
            await self.app(scope, receive, send)
            return
        try:
            self._refuse_in_vain(scope)
        except OverloadedError:
            scope["caspl.route"] = ROUTE if domain_of(scope) else MIXED_ROUTE
            raise
        self._n_open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._n_open -= 1

    def _refuse_in_vain(self, scope: Scope) -> None:
        limit = self.front.settings.max_open_requests
        if self._n_open >= limit:
            raise OverloadedError(f"{limit} requests are under way, as many as may be; try again.", retry_after_s=1.0)
        domain = domain_of(scope)
        wanted = wanted_of(QueryParams(scope["query_string"]), self.front.settings) if domain else None
        if wanted is not None and scope["method"] == "POST":
            self.front.answerer.check(domain, wanted)


def domain_of(scope: Scope) -> str:
    """Who is asked, as the first line says it; empty where that is for the body to say."""
    path: str = scope["path"]
    before, _, domain = path.rpartition("/")
    return domain if before == MIXED_ROUTE else ""


def wanted_of(query: QueryParams, settings: Settings) -> Wanted | None:
    """How soon and how urgently an image is to be scored that came now; None for a query that is wrong there."""
    priority, timeout_ms = query.get("priority", "normal"), query.get("timeout_ms")
    if priority not in PRIORITIES or not (timeout_ms is None or MILLISECONDS.fullmatch(timeout_ms)):
        return None
    timeout_s = settings.timeout_s(int(timeout_ms) if timeout_ms else None)
    return None if timeout_s is None else Wanted(1, time.monotonic() + timeout_s, PRIORITIES[priority])
