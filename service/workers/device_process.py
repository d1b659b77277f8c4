"""The device process: owns the listening socket and the signals, and keeps its web processes running."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from service.access.key_file import Key
from service.app import create_routes
from service.errors import DeviceLostError, SettingsError
from service.http.context import ServiceContext
from service.images.preprocessing import decode_threads
from service.observability.process_metrics import Sample, exposition, summed
from service.workers.connection import WorkerConnection
from service.workers.pixel_slots import slot_memory, slot_view
from service.workers.remote import WorkerConfig

logger = logging.getLogger(__name__)

MODULE: Final = "service.workers.web_process"
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 10.0
HEALTHY_AFTER_S: Final = 60.0  # uptime of a web process that resets the back-off
TURN_S: Final = 1.0  # interval of heartbeats
SILENT_S: Final = 5  # a web process whose event loop does not respond for this long is replaced
START_S: Final = 120  # the same for its first response
DISCONNECTED_KILL_S: Final = 5.0
COUNTS_TIMEOUT_S: Final = 0.5
STOP_EXTRA_S: Final = 2.0  # for web processes to exit after their drain timeout


class WebPool:
    """Keeps web processes running that check `keys`, accept from `listener` and call `context`."""

    def __init__(self, context: ServiceContext, keys: tuple[Key, ...], listener: socket.socket) -> None:
        self._context = context
        self._routes = create_routes(context)
        self._listener = listener
        self._config = worker_config(context, keys)
        self._workers: dict[WorkerConnection, Process] = {}
        self._ended_samples: list[Sample] = []
        self._has_started = False
        self._stopping = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all web processes; returns once each has sent its counts, or raises what `_keep` raises."""
        n_workers = self._context.settings.web_workers
        self._keepers = [asyncio.ensure_future(self._keep()) for _ in range(n_workers)]
        while sum(bool(worker.samples) for worker in self._workers) < n_workers:
            for ended in (keeper for keeper in self._keepers if keeper.done()):
                ended.result()
            await asyncio.sleep(0.01)
        self._has_started = True

    def notify(self, method: str) -> None:
        """Run a method of every web process."""
        for worker in self._workers:
            worker.rpc.notify(method)

    async def stop(self, timeout_s: float) -> None:
        """Let the web processes finish open requests; kill those that take longer."""
        self._stopping.set()
        self.notify("stop")
        _, late = await asyncio.wait(self._keepers, timeout=timeout_s)
        if late:
            logger.critical("web.drain_timed_out", extra={"n_processes": len(self._workers)})
            self.kill()
            await asyncio.wait(late)

    def kill(self) -> None:
        """Kill all web processes."""
        for process in self._workers.values():
            if process.returncode is None:
                process.kill()

    async def metrics_text(self) -> bytes:
        """The metrics of this process summed with those of all web processes, including ended ones."""
        counting = (asyncio.wait_for(worker.refresh_counts(), COUNTS_TIMEOUT_S) for worker in self._workers)
        await asyncio.gather(*counting, return_exceptions=True)
        others = [*self._ended_samples, *(sample for worker in self._workers for sample in worker.samples)]
        return exposition(self._context.metrics.registry, others)

    async def _keep(self) -> None:
        """Run a web process and restart it until the pool stops; raises if one exits before all have started."""
        loop, backoff_s = asyncio.get_running_loop(), FIRST_BACKOFF_S
        while not self._stopping.is_set():
            began_s = loop.time()
            try:
                status = await self._run_worker()
            except Exception:
                logger.exception("web.not_started")
                status = -1
            if self._stopping.is_set():
                return
            if not self._has_started:
                raise SettingsError(
                    f"A web process exited with status {status} during startup; see its messages above.",
                    code="web_process_failed",
                )
            is_healthy = loop.time() - began_s > HEALTHY_AFTER_S
            backoff_s = FIRST_BACKOFF_S if is_healthy else min(2 * backoff_s, MAX_BACKOFF_S)
            logger.error("web.exited", extra={"status": status, "again_in_s": backoff_s})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)

    async def _run_worker(self) -> int:
        """Run one web process from start to end; returns its exit status."""
        config = self._config
        end, their_end = socket.socketpair()
        memory = slot_memory(config.n_slots, config.image_size)
        pixels = slot_view(memory, config.n_slots, config.image_size, writable=False)
        files = (self._listener.fileno(), their_end.fileno(), memory)
        command = (sys.executable, "-P", "-m", MODULE, *map(str, files))  # -P: no import from the current directory
        try:
            process = await asyncio.create_subprocess_exec(*command, pass_fds=files, stdin=PIPE)
        finally:
            their_end.close()
            os.close(memory)
        max_bytes = 2 * max(self._context.settings.max_bundle_bytes, 2**20)
        worker = WorkerConnection(self._context.backend, self._routes, pixels, max_bytes=max_bytes)
        self._workers[worker] = process
        await worker.rpc.open(end)
        watching = asyncio.ensure_future(_watch(worker, process))
        try:
            if self._context.is_draining:
                worker.rpc.notify("drain")
            await process.communicate(config.model_dump_json().encode())
        finally:
            del self._workers[worker]
            watching.cancel()
            worker.rpc.close()
        self._ended_samples = summed([*self._ended_samples, *worker.samples])
        return await process.wait()


async def _watch(worker: WorkerConnection, process: Process) -> None:
    """Fetch a web process's counts every second; kill it when it does not respond or sends invalid ones.

    Silence is counted in iterations of this loop, so that pauses of the device process do not count.
    """
    silent_s, counting = 0, asyncio.ensure_future(worker.refresh_counts())
    try:
        while silent_s < (SILENT_S if worker.samples else START_S):
            done, _ = await asyncio.wait({counting}, timeout=TURN_S)
            silent_s += 1
            if done:
                await counting
                silent_s = 0
                await asyncio.sleep(TURN_S)
                counting = asyncio.ensure_future(worker.refresh_counts())
        logger.error("web.unresponsive", extra={"pid": process.pid, "for_s": silent_s})
    except DeviceLostError:  # disconnected: it is exiting, or sent an invalid message
        await asyncio.sleep(DISCONNECTED_KILL_S)
    except Exception:
        logger.exception("web.invalid_counts", extra={"pid": process.pid})
    finally:
        counting.cancel()
    process.kill()


def worker_config(context: ServiceContext, keys: tuple[Key, ...]) -> WorkerConfig:
    """The configuration of a web process."""
    settings, backbone = context.settings, context.engine.backbone
    n_threads = settings.n_decode_threads or decode_threads(max(1, settings.web_workers))
    return WorkerConfig(
        settings=settings.model_copy(update={"n_decode_threads": n_threads, "store": str(context.store.root)}),
        keys=keys,
        # One web process can fill the whole queue (1.5 times max_queued_rows) and two batches on the device.
        n_slots=2 * (settings.max_queued_rows + settings.max_batch_rows),
        image_size=backbone.image_size,
        preprocess=backbone.preprocess,
    )


async def serve(
    context: ServiceContext,
    keys: tuple[Key, ...],
    listener: socket.socket,
    announce: Callable[[], None],
) -> None:
    """Run the device process until a signal stops it.

    Args:
        context: not started yet.
        keys: the API keys that web processes check.
        listener: the socket that web processes accept from; closed at the end.
        announce: called once requests are accepted.

    Raises:
        SettingsError: a web process cannot start.
    """
    loop, is_over, pool = asyncio.get_running_loop(), asyncio.Event(), WebPool(context, keys, listener)
    context.gather_metrics = pool.metrics_text

    def on_signal(sig: signal.Signals) -> None:
        """Drain on the first SIGTERM, stop on SIGINT or the second signal, kill the web processes on the third."""
        is_first, context.is_draining = not context.is_draining, True
        if is_first and sig == signal.SIGTERM:
            delay_s = context.settings.drain_delay_s
            logger.info("server.draining", extra={"for_s": delay_s})
            pool.notify("drain")
            loop.call_later(delay_s, is_over.set)
        elif is_over.is_set():
            pool.kill()
        else:
            is_over.set()

    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, on_signal, sig)
    await context.start()
    try:
        await pool.start()
        announce()
        await is_over.wait()
    finally:
        context.is_draining = True
        listener.close()
        await pool.stop(context.settings.drain_timeout_s + STOP_EXTRA_S)
        await context.stop()
