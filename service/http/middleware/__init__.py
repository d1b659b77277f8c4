"""Middleware: proxy headers, CORS, the direct classify route, and `RequestMiddleware` for everything else.

CORS preflights are answered by Starlette's middleware before there is a request id, and are not logged.
"""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.access.rules import find_endpoint
from service.http.context import HttpContext
from service.http.middleware.request import RequestMiddleware
from service.http.routes.classify import DirectClassify

EXPOSED_HEADERS: Final = (
    "ETag", "Inference-Header-Content-Length", "Location", "Retry-After", "Server-Timing", "X-Bundle-Digest",
    "X-Bundle-Version", "X-Request-Id",
)  # fmt: skip
"""Response headers that web pages of `cors_origins` may read."""
ALLOWED_HEADERS: Final = (
    "Authorization",
    "Caspl-Signature",
    "Content-Type",
    "If-Bundle-Digest",
    "If-Match",
    "Inference-Header-Content-Length",
    "X-Request-Id",
)
"""Request headers that they may send."""


def install_middleware(app: FastAPI, context: HttpContext) -> None:
    """Add all middleware to an application, the innermost first."""
    app.add_middleware(DirectClassify)
    app.add_middleware(RequestMiddleware, context=context)
    settings = context.settings
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"),
            allow_headers=ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )
    if context.traces:
        app.add_middleware(
            context.traces.wrap, route_of=lambda path: find_endpoint(path.removeprefix(settings.root_path)).template
        )
    if settings.forwarded_allow_ips:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(proxy) for proxy in settings.forwarded_allow_ips])
