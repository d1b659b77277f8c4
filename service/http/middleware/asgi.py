"""The base class of all ASGI middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from service.http.context import HttpContext


class Middleware:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, context: HttpContext) -> None:
        self.app = app
        self.context = context
