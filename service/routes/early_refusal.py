"""A route that refuses before it looks closer.

FastAPI makes checked arguments of a request's path and query before it calls a route's function. Under overload most
requests are refused, on the processor that the others' images need: what would be refused whatever else it says is
refused first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams

from service.answering import PRIORITIES, Wanted
from service.front import front_of
from service.settings import Settings

MILLISECONDS: Final = re.compile(r"[1-9][0-9]{0,8}")


class EarlyRefusal(APIRoute):
    """Refuses what asks for a single domain, if even one image of it would be; knows nothing with web workers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls for a request."""
        look_closer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            front, domain = front_of(request), request.path_params.get("domain")
            wanted = wanted_of(request.query_params, front.settings)
            if domain is not None and wanted is not None:
                front.answerer.check(domain, wanted)
            return await look_closer(request)

        return handle


def wanted_of(query: QueryParams, settings: Settings) -> Wanted | None:
    """How soon and how urgently an image is to be scored that came now; None for a query that is wrong there."""
    priority, timeout_ms = query.get("priority", "normal"), query.get("timeout_ms")
    if priority not in PRIORITIES or not (timeout_ms is None or MILLISECONDS.fullmatch(timeout_ms)):
        return None
    timeout_s = settings.timeout_s(int(timeout_ms) if timeout_ms else None)
    return None if timeout_s is None else Wanted(1, time.monotonic() + timeout_s, PRIORITIES[priority])
