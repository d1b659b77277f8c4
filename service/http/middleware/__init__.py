"""Middleware: proxy headers, CORS, request id, access log and metrics, access control, request and body limits.

CORS preflights are answered by Starlette's middleware before there is a request id, and are not logged.
Plain ASGI, because Starlette's `BaseHTTPMiddleware` hides client disconnects.
"""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.http.context import HttpContext
from service.http.middleware.authentication import AuthMiddleware
from service.http.middleware.limits import LimitsMiddleware
from service.http.middleware.request_context import RequestContextMiddleware

EXPOSED_HEADERS: Final = (
    "ETag", "Location", "Retry-After", "Server-Timing", "X-Bundle-Digest", "X-Bundle-Version", "X-Request-Id",
)  # fmt: skip
"""What web pages of `cors_origins` may read."""


def install_middleware(app: FastAPI, context: HttpContext) -> None:
    """Add all middleware to an application, the innermost first."""
    app.add_middleware(LimitsMiddleware, context=context)
    app.add_middleware(AuthMiddleware, context=context)
    app.add_middleware(RequestContextMiddleware, context=context)
    settings = context.settings
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("DELETE", "GET", "HEAD", "POST", "PUT"),
            allow_headers=("Authorization", "Content-Type", "If-Match", "X-Request-Id"),
            expose_headers=EXPOSED_HEADERS,
        )
    if settings.forwarded_allow_ips:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(proxy) for proxy in settings.forwarded_allow_ips])
