"""The form with web processes inside one event loop: the real two ends of a channel, without the processes."""

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from functools import partial

from service.app import create_routes
from service.http.auth import KeyRing
from service.http.context import Front, build_decoder
from service.observability.metrics import Metrics
from service.runtime import build
from service.workers import forwarding
from service.workers.counts import Sums
from service.workers.desk import Desk
from service.workers.forwarding import Caught
from service.workers.link import Link
from service.workers.pixel_slots import Slots, slot_memory, slot_view
from service.workers.pool import count
from service.workers.remote_answerer import RemoteAnswerer
from service.workers.web_process import create_web_app, orders

MAX_BYTES = 80 * 1024 * 1024


@asynccontextmanager
async def joined(answerer, forwarded, *, n_slots=64, image_size=16):
    """A link and a desk that talk to each other, and the slots between them."""
    memory = slot_memory(n_slots, image_size)
    slots = Slots(slot_view(memory, n_slots, image_size, writable=True))
    pixels = slot_view(memory, n_slots, image_size, writable=False)
    os.close(memory)
    ends = socket.socketpair()
    link = Link()
    lost = asyncio.Event()
    desk = Desk(answerer, forwarded, pixels, max_bytes=MAX_BYTES, on_lost=lost.set)
    await link.open(ends[0])
    await desk.open(ends[1])
    link.hello.set_result(None)
    try:
        yield link, desk, slots
    finally:
        link.close()
        await asyncio.wait_for(lost.wait(), 5)


@asynccontextmanager
async def web_form(settings, model, store, keys):
    """A web application, the runtime that it asks through a channel, and the channel's far end, on one event loop."""
    runtime = build(settings, model, store, KeyRing(keys))
    routes = create_routes(runtime)
    routes.add_middleware(Caught)
    await runtime.start()
    n_slots = 2 * (settings.max_waiting_rows + settings.max_batch_rows)
    forwarded = partial(forwarding.call, routes)
    backbone = model.backbone
    async with joined(runtime.answerer, forwarded, n_slots=n_slots, image_size=backbone.image_size) as ends:
        link, desk, slots = ends
        front = Front(
            settings=settings,
            metrics=Metrics(),
            keys=KeyRing(keys),
            decoder=build_decoder(settings, backbone.image_size, backbone.preprocess),
            answerer=RemoteAnswerer(link, slots),
        )

        async def metrics_text():
            await count([desk])
            return Sums(runtime.metrics.registry, desk.samples).text()

        runtime.gather_metrics = metrics_text
        link.obey(orders(front, link, lambda: None, lambda: None))
        app = create_web_app(front, link)
        async with app.router.lifespan_context(app):
            yield app, runtime, desk
        assert slots.n_free == n_slots, "every slot came back"
    await runtime.stop()
