"""A web process: HTTP, keys, limits and decoding; everything else is asked of the device process that started it.

Started as `python -P -m service.workers.web_process LISTENER LINK MEMORY`, three numbers of open files. It takes no
signals: its device process says when to stop, and by ending, when to end.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from service.http import problems
from service.http.auth import Key, KeyRing
from service.http.context import Front, build_decoder
from service.http.middleware import surround
from service.http.routes import classify
from service.http.server import BACKLOG, LastCallServer, http_config
from service.interpreter import prepare_interpreter
from service.observability import logs
from service.observability.metrics import Metrics
from service.settings import Settings
from service.workers.counts import samples_of
from service.workers.forwarding import Forwarder
from service.workers.link import Link, Orders
from service.workers.pixel_slots import Slots, slot_view
from service.workers.remote_answerer import RemoteAnswerer
from service.workers.wire import Counts, Hello, Listening

COUNT_EVERY_S: Final = 1.0
LAST_ANSWERS_S: Final = 1
"""How long answers may take to leave once the device process is gone: they are refusals."""
ORPHAN_S: Final = 5.0
ORPHAN_STATUS: Final = 70


class SharedListener(socket.socket):
    """A listening socket that several processes accept from.

    asyncio accepts as many connections in one go as its backlog says, so one process would take a whole burst while
    the others have nothing to do. Told a backlog of one, it accepts one by one; the kernel's queue stays long.
    """

    def listen(self, backlog: int = BACKLOG, /) -> None:
        """Listen, with a long queue whatever asyncio says."""
        super().listen(max(backlog, BACKLOG))


class WebServer(LastCallServer):
    """Uvicorn's server, stopped by the device process alone.

    Args:
        config: uvicorn's own settings.
        on_started: called once the socket accepts.
    """

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self.is_orphan = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the socket, say so."""
        await super().startup(sockets)
        prepare_interpreter()
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ignore signals: those that reach a whole group of processes reach the device process too."""

    def stop(self) -> None:
        """Stop listening and end when the last answer is out."""
        self.should_exit = True

    def stop_orphaned(self) -> None:
        """Stop listening at once: nothing can be answered any more but refusals."""
        self.is_orphan = True
        self.config.timeout_graceful_shutdown = LAST_ANSWERS_S
        for server in getattr(self, "servers", []):
            server.close()
        self.stop()


def create_web_app(front: Front, link: Link) -> FastAPI:
    """The ASGI application of a web process: classifies here, hands on the rest."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        counting = asyncio.get_running_loop().create_task(_count_on(front.metrics, link))
        try:
            yield
        finally:
            counting.cancel()
            front.decoder.close()

    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, exception_handlers={**problems.HANDLERS}
    )
    app.state.runtime = front
    app.include_router(classify.router)
    app.router.default = Forwarder(link)
    surround(app, front)
    return app


async def serve(listener: SharedListener, end: socket.socket, memory: int) -> int:
    """Serve until the device process says stop, or is gone.

    Args:
        listener: the socket that clients connect to.
        end: this process's end of the channel.
        memory: descriptor of this process's pixel slots.

    Returns:
        The process's exit status.
    """
    link = Link()
    await link.open(end)
    hello = await link.hello
    settings = Settings.model_validate_json(hello.settings)
    logs.install(settings.log_format, settings.log_level)
    front = _front(settings, hello, link, memory)
    config = http_config(create_web_app(front, link), settings, backlog=1)
    server = WebServer(config, lambda: link.tell(Listening()))
    link.obey(orders(front, link, server.stop, server.stop_orphaned))
    await server.serve(sockets=[listener])
    _send_counts(front.metrics, link)
    link.close()
    return ORPHAN_STATUS if server.is_orphan else 0


def orders(front: Front, link: Link, stop: Callable[[], None], lost: Callable[[], None]) -> Orders:
    """What a web process does when the device process says so, or is gone."""

    def drain() -> None:
        front.is_draining = True

    return Orders(drain=drain, stop=stop, count=lambda: _send_counts(front.metrics, link), lost=lost)


def _front(settings: Settings, hello: Hello, link: Link, memory: int) -> Front:
    view = slot_view(memory, hello.n_slots, hello.image_size, writable=True)
    os.close(memory)
    return Front(
        settings=settings,
        metrics=Metrics(by_domain=settings.domain_metrics),
        keys=KeyRing(tuple(Key.model_validate_json(key) for key in hello.keys)),
        decoder=build_decoder(settings, hello.image_size, hello.preprocess),
        answerer=RemoteAnswerer(link, Slots(view)),
    )


def _send_counts(metrics: Metrics, link: Link) -> None:
    link.tell(Counts(samples_of(metrics.registry)))


async def _count_on(metrics: Metrics, link: Link) -> None:
    while True:
        _send_counts(metrics, link)
        await asyncio.sleep(COUNT_EVERY_S)


def _end_with(end: socket.socket) -> None:
    """End this process some time after the device process has, even if its event loop hangs."""
    gone = select.poll()
    gone.register(end.fileno(), 0)  # no events: reports hanging up alone
    gone.poll()
    time.sleep(ORPHAN_S)
    os._exit(ORPHAN_STATUS)


def main() -> int:
    """Run a web process on the three inherited files that the command line names."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, signal.SIG_IGN)
    listener, end, memory = (int(number) for number in sys.argv[1:])
    channel_end = socket.socket(fileno=end)
    threading.Thread(target=_end_with, args=(channel_end.dup(),), daemon=True).start()
    return asyncio.run(serve(SharedListener(fileno=listener), channel_end, memory))


if __name__ == "__main__":
    sys.exit(main())
