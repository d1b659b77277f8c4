"""Builds the application: parts, routes, problems, middleware.

Reads no environment and loads no weights: settings, model and store are handed in, so that a test can hand in small
ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from prompt_store.store import Store
from service.http import problems
from service.http.auth import Key, KeyRing
from service.http.middleware import surround
from service.http.routes import classify, domains, health, meta
from service.observability.device import package_version
from service.runtime import Runtime, build
from service.settings import Settings

if TYPE_CHECKING:
    from prompted_clip.model import PromptedClip


def create_app(settings: Settings, model: PromptedClip, store: Store, keys: tuple[Key, ...] = ()) -> FastAPI:
    """The whole service as an ASGI application.

    Args:
        settings: limits and times.
        model: answers for images; lives on the engine's thread from now on.
        store: where bundles are kept.
        keys: who may do what; empty lets everyone do everything.

    Returns:
        The application; `app.state.runtime` is its runtime.
    """
    runtime = build(settings, model, store, KeyRing(keys))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.stop()

    app = create_routes(runtime)
    app.router.lifespan_context = lifespan
    surround(app, runtime)
    return app


def create_routes(runtime: Runtime) -> FastAPI:
    """The routes alone, without what happens to a request before it reaches them; the runtime is started elsewhere."""
    app = FastAPI(
        title="CasPL Serve",
        summary="Image classification for many domains on one CLIP, with prompts that are swapped while it serves.",
        version=package_version(),
        exception_handlers={**problems.HANDLERS},
        separate_input_output_schemas=False,
    )
    app.state.runtime = runtime
    for part in (classify, domains, health, meta):
        app.include_router(part.router, responses=problems.OPENAPI)
    return app
