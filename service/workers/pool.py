"""The web processes of one device process: started, told what to do, replaced when they end.

A web process that dies takes its own connections with it and nothing else; its place is filled again, after a pause
that grows while it keeps dying.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

import msgspec

from service.errors import SettingsError
from service.http.auth import Key
from service.images.preprocessing import decode_threads
from service.runtime import Runtime
from service.settings import Settings
from service.workers.counts import Sums, added_up
from service.workers.desk import Desk
from service.workers.pixel_slots import slot_memory, slot_view
from service.workers.wire import CountNow, Drain, Forward, Forwarded, Hello, Sample, Stop

logger = logging.getLogger(__name__)

MODULE: Final = "service.workers.web_process"
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
HEALTHY_AFTER_S: Final = 60.0
"""A web process that lived so long did not die of how it was started."""
SILENT_S: Final = 30.0
"""A web process gives a sign of life every second; after so long without one it is replaced."""
CUT_OFF_S: Final = 5.0
"""How long a web process may take to end once its channel is closed."""
COUNTS_WITHIN_S: Final = 0.5
EXTRA_BYTES: Final = 1024 * 1024
"""What a message has around the body that it carries."""


class WebPool:
    """Keeps a number of web processes running.

    Args:
        runtime: who does what they ask.
        keys: what they check.
        forwarded: answers the requests that they hand on.
        listener: what they accept from.
    """

    def __init__(
        self,
        runtime: Runtime,
        keys: tuple[Key, ...],
        forwarded: Callable[[Forward], Awaitable[Forwarded]],
        listener: socket.socket,
    ) -> None:
        self._runtime = runtime
        self._forwarded = forwarded
        self._listener = listener
        self._hello = _hello(runtime, keys)
        self._desks: dict[Desk, asyncio.subprocess.Process] = {}
        self._departed: list[Sample] = []
        self._stopping = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start them all; returns once each takes connections.

        Raises:
            SettingsError: one of them ended instead.
        """
        n_workers = self._runtime.settings.web_workers
        self._keepers = [asyncio.get_running_loop().create_task(self._keep()) for _ in range(n_workers)]
        await self._started

    def tell(self, message: msgspec.Struct) -> None:
        """Send something to every web process."""
        for desk in self._desks:
            desk.tell(message)

    def drain(self) -> None:
        """Have clients told that they should not keep their connections."""
        self.tell(Drain())

    async def stop(self, within_s: float) -> None:
        """Have them finish what they accepted and end; kills those that take longer."""
        self._stopping.set()
        self.tell(Stop())
        _, late = await asyncio.wait(self._keepers, timeout=within_s)
        if late:
            logger.critical("web.drain_timed_out", extra={"n_processes": len(self._desks)})
            self.kill()
            await asyncio.wait(late)

    def kill(self) -> None:
        """End them at once."""
        self._stopping.set()
        for process in self._desks.values():
            _kill(process)

    async def metrics_text(self) -> bytes:
        """The metrics of this process and of all web processes, those that have ended included, as one."""
        await count(self._desks)
        others = added_up([self._departed, *(desk.samples for desk in self._desks)])
        return Sums(self._runtime.metrics.registry, others).text()

    async def _keep(self) -> None:
        """Fill one place until the pool stops."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began_s = loop.time()
            try:
                status = await self._run_one()
            except OSError:
                logger.exception("web.not_started")
                status = -1
            if self._stopping.is_set():
                return
            if not self._started.done():
                self._started.set_exception(
                    SettingsError(
                        f"A web process ended with status {status} before it served; its messages are above.",
                        code="web_process_failed",
                    )
                )
                return
            pause_s = FIRST_PAUSE_S if loop.time() - began_s > HEALTHY_AFTER_S else min(2 * pause_s, LONGEST_PAUSE_S)
            logger.error("web.ended", extra={"status": status, "again_in_s": pause_s})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _run_one(self) -> int:
        """One web process from start to end; returns its exit status."""
        end, their_end = socket.socketpair()
        hello = self._hello
        memory = slot_memory(hello.n_slots, hello.image_size)
        with their_end:
            pixels = slot_view(memory, hello.n_slots, hello.image_size, writable=False)
            files = (self._listener.fileno(), their_end.fileno(), memory)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", MODULE, *map(str, files), pass_fds=files, stdin=asyncio.subprocess.DEVNULL
            )
        os.close(memory)
        loop = asyncio.get_running_loop()

        def cut_off() -> None:
            loop.call_later(CUT_OFF_S, _kill, process)

        desk = Desk(
            self._runtime.answerer,
            self._forwarded,
            pixels,
            max_bytes=max(self._runtime.settings.max_bundle_bytes, EXTRA_BYTES) + EXTRA_BYTES,
            on_lost=cut_off,
        )
        self._desks[desk] = process
        await desk.open(end)
        desk.tell(hello)
        if self._runtime.is_draining:
            desk.tell(Drain())
        listening = loop.create_task(self._note_listening(desk))
        try:
            return await self._watch(desk, process)
        finally:
            listening.cancel()
            desk.close()
            del self._desks[desk]
            self._departed = added_up([self._departed, desk.samples])

    async def _watch(self, desk: Desk, process: asyncio.subprocess.Process) -> int:
        """Wait for a web process's end; bring it about when it is silent for too long."""
        ended = asyncio.ensure_future(process.wait())
        while not ended.done():
            await asyncio.wait({ended}, timeout=1.0)
            if asyncio.get_running_loop().time() - desk.last_sign_s > SILENT_S:
                logger.error("web.silent", extra={"pid": process.pid})
                _kill(process)
        return ended.result()

    async def _note_listening(self, desk: Desk) -> None:
        await desk.listening.wait()
        n_listening = sum(one.listening.is_set() for one in self._desks)
        if n_listening == self._runtime.settings.web_workers and not self._started.done():
            self._started.set_result(None)


async def count(desks: Iterable[Desk]) -> None:
    """Have web processes send their counts now; one that is silent keeps the counts it sent last."""
    waiting = []
    for desk in desks:
        desk.counted.clear()
        desk.tell(CountNow())
        waiting.append(asyncio.ensure_future(desk.counted.wait()))
    if waiting:
        _, silent = await asyncio.wait(waiting, timeout=COUNTS_WITHIN_S)
        for task in silent:
            task.cancel()


def _hello(runtime: Runtime, keys: tuple[Key, ...]) -> Hello:
    settings = runtime.settings
    backbone = runtime.engine.backbone
    return Hello(
        settings=_shared_out(settings).model_dump_json().encode(),
        keys=[key.model_dump_json().encode() for key in keys],
        # One web process alone can fill the queue, of several domains too, and both batches of the device.
        n_slots=2 * (settings.max_waiting_rows + settings.max_batch_rows),
        image_size=backbone.image_size,
        preprocess=backbone.preprocess,
    )


def _shared_out(settings: Settings) -> Settings:
    """The settings of one web process of several: decoding threads by default as many as its share of the cores."""
    n_threads = settings.n_decode_threads or decode_threads(settings.web_workers)
    return settings.model_copy(update={"n_decode_threads": n_threads})


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
