"""The objects that middleware and routes use: those of HTTP, and in the device process those of the device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import Depends, Request

from service.access.keys import KeyRing
from service.examples.database import ExampleDatabase
from service.examples.uncertain import UncertainImages
from service.images.decoder import Decoder
from service.inference import InferenceBackend
from service.observability.metrics import Metrics
from service.observability.traces import Traces
from service.observability.watchdog import Heartbeat, Watchdog, keep_running
from service.scheduler.budget import OpenRequests
from service.settings import Settings

if TYPE_CHECKING:
    from prompt_store.store import Store
    from service.access.audit import AuditFollower
    from service.domains.backend import LocalBackend
    from service.domains.creator import DomainCreator
    from service.domains.live_table import LiveTable
    from service.domains.publisher import Publisher
    from service.domains.rollouts.lifecycle import Rollouts
    from service.domains.watcher import StoreWatcher
    from service.engine.engine import Engine, EngineRow, RowResult
    from service.examples.fitter import Fitter
    from service.scheduler.batcher import Batcher
    from service.sources.follower import SourceFollower

logger = logging.getLogger(__name__)

BEAT_S: Final = 0.5
EVENT_LOOP_STUCK_S: Final = 5.0
BACKGROUND_STUCK_S: Final = 60.0
LAST_BATCH_S: Final = 2.0
"""For running batches, once no request is open."""


@dataclass(eq=False, kw_only=True)
class HttpContext:
    """Settings, keys, decoder, inference backend and examples of one process."""

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    decoder: Decoder
    backend: InferenceBackend
    examples: ExampleDatabase
    is_draining: bool = False
    open_requests: OpenRequests = field(init=False)
    uncertain: UncertainImages | None = field(init=False, default=None)
    """Keeps images of classify requests; None if `keep_uncertain` is 0."""
    traces: Traces | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # More would be decoded, and then find the queue full, which has the same shares for domains.
        n_open = min(self.settings.max_open_requests, self.settings.max_queued_rows)
        self.open_requests = OpenRequests(n_open, self.settings.max_batch_rows)
        if self.settings.keep_uncertain:
            self.uncertain = UncertainImages(self.examples, self.settings, self.metrics)
        if self.settings.traces:
            self.traces = Traces()

    def close(self) -> None:
        """Shut down the threads that decode and keep images, export the last traces, and close the examples."""
        self.decoder.close()
        if self.uncertain:
            self.uncertain.close()
        if self.traces:
            self.traces.close()
        self.examples.close()


@dataclass(eq=False, kw_only=True)
class ServiceContext(HttpContext):
    """The objects of the process with the device."""

    backend: LocalBackend
    engine: Engine
    batcher: Batcher[EngineRow, RowResult]
    store: Store
    table: LiveTable
    publisher: Publisher
    rollouts: Rollouts
    creator: DomainCreator
    fitter: Fitter
    watcher: StoreWatcher
    audit: AuditFollower
    sources: tuple[SourceFollower, ...] = ()
    is_drained: bool = False
    gather_metrics: Callable[[], Awaitable[bytes]] | None = None
    """Merges the metrics of web processes into the text."""
    watchdog: Watchdog = field(default_factory=Watchdog)
    _event_loop: Heartbeat = field(default_factory=partial(Heartbeat, "event_loop", EVENT_LOOP_STUCK_S))
    _watched: ExitStack = field(default_factory=ExitStack)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Load every live version, then start the background tasks."""
        self._watched.enter_context(self.watchdog.watching(self.engine.activity, self._event_loop))
        self._in_background("event_loop", self._beat)
        await self.watcher.start(self.settings.warmup_s)
        if self.uncertain:
            logger.warning("examples.kept_from_requests", extra={"per_domain": self.settings.keep_uncertain})
        self._in_background("smoke_tests", self._test_domains)
        self._in_background("audit", self.audit.run)
        if self.settings.store_poll_s:
            self._in_background("store", self._follow_store)
        for source in self.sources:
            self._in_background(source.state.address, source.run)

    async def stop(self) -> None:
        """Finish the running batches in at most `LAST_BATCH_S`, and shut down the threads."""
        self.is_draining = True
        for task in self._tasks:
            task.cancel()
        self._watched.close()
        self.backend.comparisons.close()
        self.rollouts.close()
        timeout_s = min(LAST_BATCH_S, self.settings.drain_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self.batcher.close()
            self.is_drained = True
        except TimeoutError:
            logger.critical("server.drain_timed_out", extra={"after_s": timeout_s})
        self.engine.close()
        self.fitter.close()
        for source in self.sources:
            source.close()
        self.close()

    async def metrics_text(self) -> bytes:
        """All metrics, in the Prometheus text format."""
        return await self.gather_metrics() if self.gather_metrics else self.metrics.text()

    def failed_because(self) -> str | None:
        """The reason why this process must be restarted, as one word; None if it works."""
        if self.engine.is_lost:
            return "device_lost"
        if self.engine.activity.is_stuck:
            return "device_stuck"
        return "event_loop_stuck" if self._event_loop.silent_s > self.settings.stuck_after_s else None

    def not_ready_because(self) -> str | None:
        """The reason why the process is not ready, as one word; None if it is ready."""
        return "draining" if self.is_draining else self.failed_because()

    @property
    def is_alive(self) -> bool:
        """Whether the device and the event loop make progress."""
        return not (self.failed_because() or self._event_loop.is_stuck)

    def _in_background(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(keep_running(name, work)))

    async def _beat(self) -> None:
        while True:
            self._event_loop.beat()
            await asyncio.sleep(BEAT_S)

    async def _test_domains(self) -> None:
        heartbeat = Heartbeat("smoke_tests", BACKGROUND_STUCK_S)
        with self.watchdog.watching(heartbeat):
            await self.watcher.test_in_background(heartbeat.beat)

    async def _follow_store(self) -> None:
        every_s = self.settings.store_poll_s
        heartbeat = Heartbeat("store", every_s + BACKGROUND_STUCK_S)
        with self.watchdog.watching(heartbeat):
            while True:
                await asyncio.sleep(every_s)
                heartbeat.beat()
                try:
                    await self.watcher.refresh(heartbeat.beat)
                except Exception:
                    logger.exception("store.unreadable")


async def _service_context(request: Request) -> HttpContext:  # FastAPI runs plain functions in a thread
    context: HttpContext = request.app.state.context
    return context


Context = Annotated[ServiceContext, Depends(_service_context)]
"""Declares a route's context, in a process that has the device."""


def actor_of(request: Request) -> str:
    """The id of the request's API key; empty without one."""
    return str(request.scope.get("caspl.actor", ""))
