from contextlib import asynccontextmanager

import httpx
import pytest

from prompt_store.store import Store
from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeModel, colour_bundle


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def store(tmp_path):
    """A store with the live domains `paint` (red, green, blue) and `ink` (blue, red)."""
    store = Store.open(tmp_path / "store")
    for data, domain in ((colour_bundle(), "paint"), (colour_bundle("ink", ("blue", "red")), "ink")):
        added = store.add(domain, data)
        store.activate(domain, added.version)
    return store


@pytest.fixture
def serve(model, store):
    """A context manager that runs the whole application in this process and yields a client for it."""

    @asynccontextmanager
    async def run(keys=(), **changes):
        settings = Settings(store_poll_s=0, **changes)
        app = create_app(settings, model, store, keys)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                client.app = app
                yield client

    return run
