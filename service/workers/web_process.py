"""A web process: HTTP, keys, limits and decoding. The device process, its parent, does everything else.

Arguments are three inherited file descriptors (listener, connection, memory); `WorkerConfig` is on standard input.
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
from pathlib import Path
from types import FrameType
from typing import Final

from fastapi import FastAPI

from service.access.keys import KeyRing
from service.examples.database import open_examples
from service.http import problems
from service.http.context import HttpContext
from service.http.middleware import install_middleware
from service.http.routes import classify, embeddings, examples, infer
from service.http.server import DrainingServer, Listener, http_config
from service.images.decoder import Decoder
from service.observability import logs
from service.observability.metrics import Metrics
from service.observability.process_metrics import Sample, samples_of
from service.process import end_process, tune_interpreter
from service.workers.pixel_slots import PixelSlots, slot_view
from service.workers.remote import RemoteBackend, WorkerConfig, forwarder
from service.workers.rpc import Rpc

ORPHAN_KILL_S: Final = 5.0


class WebServer(DrainingServer):
    """uvicorn's server without signal handling: the device process handles signals."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ignore a signal."""


class WebProcess:
    """A web process; the device process calls its methods."""

    def __init__(self, config: WorkerConfig, slots: PixelSlots) -> None:
        settings = config.settings
        self.rpc = Rpc((self.count, self.drain, self.stop))
        self.rpc.lost.add_done_callback(self._stop_orphaned)
        self.context = HttpContext(
            settings=settings,
            metrics=Metrics(by_domain=settings.domain_metrics),
            keys=KeyRing(config.keys, settings.keys_file),
            decoder=Decoder(settings, config.image_size, config.preprocess),
            backend=RemoteBackend(self.rpc, slots),
            examples=open_examples(Path(settings.store), settings),
        )
        self.app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, exception_handlers={**problems.HANDLERS})
        self.app.state.context = self.context
        for part in (classify, embeddings, examples, infer):
            self.app.include_router(part.router)
        self.app.mount("", forwarder(self.rpc))  # not as the default: their paths have other methods, too
        install_middleware(self.app, self.context)
        self.server = WebServer(http_config(self.app, settings, context=self.context, n_accepts=1))

    async def count(self) -> list[Sample]:
        """All counters of this process since its start; also the heartbeat."""
        return samples_of(self.context.metrics.registry)

    async def drain(self) -> None:
        """Close connections after their response."""
        self.context.is_draining = True

    async def stop(self) -> None:
        """Stop accepting connections, and exit after the last response."""
        self.context.is_draining = self.server.should_exit = True

    def _stop_orphaned(self, _: object) -> None:
        self.server.config.timeout_graceful_shutdown = 1  # all remaining responses are errors
        self.server.should_exit = True


def _end_with(end: socket.socket) -> None:
    """Kill this process 5 s after the device process has exited, even if the event loop hangs."""
    gone = select.poll()
    gone.register(end.fileno(), 0)  # no events: only reports hanging up
    gone.poll()
    time.sleep(ORPHAN_KILL_S)
    os._exit(1)


async def main() -> None:
    """Serve on the descriptors of the command line until the device process stops this one or exits."""
    listener, end, memory = (int(number) for number in sys.argv[1:])
    connection = socket.socket(fileno=end)
    threading.Thread(target=_end_with, args=(connection.dup(),), daemon=True).start()
    config = WorkerConfig.model_validate_json(sys.stdin.buffer.read())
    logs.install(config.settings.log_format, config.settings.log_level)
    web = WebProcess(config, PixelSlots(slot_view(memory, config.n_slots, config.image_size, writable=True)))
    os.close(memory)
    await web.rpc.open(connection)
    tune_interpreter()
    await web.server.serve(sockets=[Listener(fileno=listener)])
    web.context.close()
    web.rpc.close()


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    asyncio.run(main())
    end_process(0)
