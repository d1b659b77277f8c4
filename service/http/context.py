"""The objects that middleware and routes use: those of HTTP, and in the device process those of the device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from service.http.auth import KeyRing
from service.images.decoder import Decoder
from service.inference import InferenceBackend
from service.observability.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from prompt_store.store import Store
    from service.domains.backend import LocalBackend
    from service.domains.live_table import LiveTable
    from service.domains.publisher import Publisher
    from service.domains.watcher import StoreWatcher
    from service.engine.engine import Engine, EngineRow
    from service.inference import Prediction
    from service.scheduler.batcher import Batcher

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class HttpContext:
    """Settings, keys, decoder and inference backend of one process."""

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    decoder: Decoder
    backend: InferenceBackend
    is_draining: bool = False


@dataclass(eq=False, kw_only=True)
class ServiceContext(HttpContext):
    """The objects of the process with the device."""

    backend: LocalBackend
    engine: Engine
    batcher: Batcher[EngineRow, list[Prediction]]
    store: Store
    table: LiveTable
    publisher: Publisher
    watcher: StoreWatcher
    is_drained: bool = False
    gather_metrics: Callable[[], Awaitable[bytes]] | None = None
    """Merges the metrics of web processes into the text."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Load every live version, then start the background tasks."""
        await self.watcher.start(self.settings.warmup_s)
        work = [self.watcher.test_in_background()]
        if self.settings.store_poll_s:
            work.append(self._follow_store(self.settings.store_poll_s))
        self._tasks = [asyncio.create_task(one) for one in work]

    async def stop(self) -> None:
        """Serve the queue for at most `drain_timeout_s`, and shut down the threads."""
        self.is_draining = True
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self.batcher.close()
            self.is_drained = True
        except TimeoutError:
            logger.critical("server.drain_timed_out", extra={"after_s": self.settings.drain_timeout_s})
        self.decoder.close()
        self.engine.close()

    async def metrics_text(self) -> bytes:
        """All metrics, in the Prometheus text format."""
        return await self.gather_metrics() if self.gather_metrics else self.metrics.text()

    def not_ready_because(self) -> str | None:
        """The reason why the process is not ready, as one word; None if it is ready."""
        if self.is_draining:
            return "draining"
        if self.engine.is_lost:
            return "device_lost"
        if self.engine.activity.is_stuck:
            return "device_stuck"
        return None

    async def _follow_store(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.watcher.refresh()
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
