import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from prompt_store.store import Store
from service.app import create_app
from service.settings import Settings
from tests.service.fakes import FakeModel, colour_bundle
from tests.service.web_form import web_form


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


FORMS = ("one process", "web processes")


def pytest_generate_tests(metafunc):
    """A module with `IN_BOTH_FORMS = True` is run with the service in one process, and with web processes.

    With `IS_FORWARDED = True` the second form is slow: web processes forward these routes to the same code.
    """
    if "serve" in metafunc.fixturenames and getattr(metafunc.module, "IN_BOTH_FORMS", False):
        marks = [pytest.mark.slow] if getattr(metafunc.module, "IS_FORWARDED", False) else []
        metafunc.parametrize("serve", [FORMS[0], pytest.param(FORMS[1], marks=marks)], indirect=True)


@pytest.fixture
def serve(request, model, store):
    """A context manager that runs the whole application in this process and yields a client for it."""

    @asynccontextmanager
    async def one_process(settings, model, store, keys):
        app = create_app(settings, model, store, keys)
        async with app.router.lifespan_context(app):
            yield app, app.state.context, None

    form = web_form if getattr(request, "param", FORMS[0]) == FORMS[1] else one_process

    @asynccontextmanager
    async def run(keys=(), **changes):
        settings = Settings(**{"store_poll_s": 0} | changes)
        async with form(settings, model, store, keys) as (app, context, worker):
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                client.app = app
                client.context = context

                async def drain():
                    context.is_draining = True
                    if worker:
                        worker.rpc.notify("drain")
                        await asyncio.sleep(0.01)

                client.drain = drain
                yield client

    return run
