"""Middleware: request id, access log and metrics, authentication, limits for open requests and bodies.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` hides client disconnects.
"""

from __future__ import annotations

from fastapi import FastAPI

from service.http.context import HttpContext
from service.http.middleware.authentication import AuthMiddleware
from service.http.middleware.limits import LimitsMiddleware
from service.http.middleware.request_context import RequestContextMiddleware


def install_middleware(app: FastAPI, context: HttpContext) -> None:
    """Add all middleware to an application, the innermost first."""
    app.add_middleware(LimitsMiddleware, context=context)
    app.add_middleware(AuthMiddleware, context=context)
    app.add_middleware(RequestContextMiddleware, context=context)
