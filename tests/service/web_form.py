"""The form with web processes inside one event loop: both real ends of a connection, without the processes."""

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

from service.access.keys import KeyRing
from service.app import build, create_routes
from service.observability.process_metrics import exposition
from service.workers.connection import WorkerConnection
from service.workers.device_process import worker_config
from service.workers.pixel_slots import PixelSlots, slot_memory, slot_view
from service.workers.remote import RemoteBackend
from service.workers.rpc import Rpc
from service.workers.web_process import WebProcess

MAX_BYTES = 80 * 1024 * 1024


@asynccontextmanager
async def joined(backend, routes=None, *, n_slots=64, image_size=16, create=None):
    """Both ends of a connection: `web` has `rpc`, `slots` and `backend`, unless `create` makes another one of slots."""
    memory = slot_memory(n_slots, image_size)
    slots = PixelSlots(slot_view(memory, n_slots, image_size, writable=True))
    pixels = slot_view(memory, n_slots, image_size, writable=False)
    os.close(memory)
    if create:
        web = create(slots)
    else:
        rpc = Rpc(())
        web = SimpleNamespace(rpc=rpc, slots=slots, backend=RemoteBackend(rpc, slots))
    worker = WorkerConnection(backend, routes, pixels, max_bytes=MAX_BYTES)
    for rpc, end in zip((web.rpc, worker.rpc), socket.socketpair(), strict=True):
        await rpc.open(end)
    try:
        yield web, worker
    finally:
        web.rpc.close()
        await asyncio.wait_for(worker.rpc.lost, 5)
    assert len(slots.free) == n_slots, "every slot came back"


@asynccontextmanager
async def web_form(settings, model, store, keys):
    """A web application, the context that it calls through a connection, and its far end, on one event loop."""
    context = build(settings, model, store, KeyRing(keys, settings.keys_file))
    await context.start()
    config = worker_config(context, keys)
    sizes = {"n_slots": config.n_slots, "image_size": config.image_size}
    async with joined(
        context.backend,
        create_routes(context),
        create=lambda slots: WebProcess(config, slots),
        **sizes,
    ) as (web, worker):

        async def metrics_text():
            await asyncio.wait_for(worker.refresh_counts(), 5)
            return exposition(context.metrics.registry, worker.samples)

        context.gather_metrics = metrics_text
        async with web.app.router.lifespan_context(web.app):
            yield web.app, context, worker
        web.context.close()
    await context.stop()
