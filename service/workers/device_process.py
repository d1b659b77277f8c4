"""The device process: model, batcher, domains and store, with web processes in front of it.

Owns the listening socket and the signals; accepts no connection itself. Its end is the web processes' end: each of them
sees the channel close, refuses what it still has and goes.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from service.app import create_routes
from service.http.auth import Key
from service.runtime import Runtime
from service.workers import forwarding
from service.workers.forwarding import Caught
from service.workers.pool import WebPool

logger = logging.getLogger(__name__)

TICK_S: Final = 0.1
EXTRA_S: Final = 2.0
"""What web processes get on top of the time in which their last answers must be out."""


class DeviceProcess:
    """Runs a runtime and its web processes from start to end; lives on one event loop.

    Args:
        runtime: not started yet.
        keys: what the web processes check.
        listener: what they accept from; closed at the end.
        leave_if_lost: called ten times a second; ends the process when the device will not answer again.
    """

    def __init__(
        self,
        runtime: Runtime,
        keys: tuple[Key, ...],
        listener: socket.socket,
        leave_if_lost: Callable[[Runtime], Awaitable[None]],
    ) -> None:
        self._runtime = runtime
        self._listener = listener
        self._leave_if_lost = leave_if_lost
        routes = create_routes(runtime)
        routes.add_middleware(Caught)
        self.pool = WebPool(runtime, keys, partial(forwarding.call, routes), listener)
        self._is_over = asyncio.Event()

    async def run(self, announce: Callable[[], None]) -> None:
        """Start, serve until a signal says otherwise, end in good order.

        Args:
            announce: called once requests are accepted.

        Raises:
            SettingsError: a web process cannot start.
        """
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sig, self._on_signal, sig)
        self._runtime.gather_metrics = self.pool.metrics_text
        watching = loop.create_task(self._watch())
        await self._runtime.start()
        try:
            await self.pool.start()
            announce()
            await self._is_over.wait()
        finally:
            self._runtime.is_draining = True
            self._listener.close()
            await self.pool.stop(self._runtime.settings.drain_timeout_s + EXTRA_S)
            await self._runtime.stop()
            watching.cancel()

    def _on_signal(self, sig: signal.Signals) -> None:
        """Drain on the first SIGTERM, stop on SIGINT or the second signal, drop everything on the one after that."""
        is_first = not self._runtime.is_draining
        self._runtime.is_draining = True
        if is_first and sig == signal.SIGTERM:
            delay_s = self._runtime.settings.drain_delay_s
            logger.info("server.draining", extra={"for_s": delay_s})
            self.pool.drain()
            asyncio.get_running_loop().call_later(delay_s, self._is_over.set)
        elif self._is_over.is_set():
            self.pool.kill()
        else:
            self._is_over.set()

    async def _watch(self) -> None:
        while True:
            await self._leave_if_lost(self._runtime)
            await asyncio.sleep(TICK_S)


def serve(
    runtime: Runtime,
    keys: tuple[Key, ...],
    listener: socket.socket,
    leave_if_lost: Callable[[Runtime], Awaitable[None]],
    announce: Callable[[], None],
) -> None:
    """Be the device process until it is told to stop; see `DeviceProcess`."""

    async def run() -> None:
        await DeviceProcess(runtime, keys, listener, leave_if_lost).run(announce)

    asyncio.run(run())
