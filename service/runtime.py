"""The parts of one running service, put together; what the routes about domains are handed.

Knows which part needs which. Does not know HTTP, except for where a request keeps its application.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import Depends, Request
from prometheus_client import ProcessCollector

from service.domains.cache import Cache
from service.domains.live_stacks import LiveStacks
from service.domains.publisher import Domains
from service.domains.watcher import StoreFollower
from service.engine.engine import Engine, EngineRow
from service.http.auth import KeyRing
from service.http.context import HttpContext, build_decoder
from service.inference import Prediction
from service.local_inference import LabelSet, LocalBackend
from service.observability.device import DeviceMetrics, build_facts
from service.observability.metrics import Metrics
from service.scheduler.batcher import Batcher
from service.settings import Settings

if TYPE_CHECKING:
    from prompt_store.store import Store
    from prompted_clip.model import PromptedClip
    from prompted_clip.stack import PromptStack

logger = logging.getLogger(__name__)

AHEAD: Final = 2
"""Domains that are read and made at start beside those that are being tried out."""


@dataclass(eq=False, kw_only=True)
class Runtime(HttpContext):
    """Everything one service process consists of: the HTTP side, and the device behind it."""

    backend: LocalBackend
    engine: Engine
    batcher: Batcher[EngineRow, list[Prediction]]
    live: LiveStacks
    domains: Domains
    follower: StoreFollower
    is_drained: bool = False
    gather_metrics: Callable[[], Awaitable[bytes]] | None = None
    """Where other processes count too: everybody's numbers as one text."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Load every live version, then follow the store."""
        # Nobody waits for an answer yet: while some stacks are read and made, others are tried out.
        await self.follower.start(at_once=self.engine.num_streams + AHEAD, trials_s=self.settings.trials_s)
        self._begin(self.follower.try_out_the_rest())
        if self.settings.store_poll_s:
            self._begin(self._follow_store(self.settings.store_poll_s))

    async def stop(self) -> None:
        """Answer what waits, but wait no longer than the settings allow, then let the threads go."""
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
        """Why no traffic should be sent here, as one word; None when it should."""
        if self.is_draining:
            return "draining"
        if self.engine.is_lost:
            return "device_lost"
        if self.engine.is_stuck:
            return "device_stuck"
        return None

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        """Something that goes on beside requests until the service stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow_store(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.follower.refresh()
            except Exception:
                logger.exception("store.unreadable")


def build(settings: Settings, model: PromptedClip, store: Store, keys: KeyRing) -> Runtime:
    """Put the parts together; nothing runs yet."""
    metrics = Metrics(by_domain=settings.domain_metrics)
    engine = Engine(
        model,
        bank_observer=metrics,
        resident_domains=settings.kept_domains,
        stuck_after_s=settings.stuck_after_s,
    )

    async def run(rows: Sequence[EngineRow]) -> Sequence[list[Prediction] | Exception]:
        metrics.batch_running(len({row.stack.domain for row in rows}), len(rows), engine.padded_batch_size(len(rows)))
        return await engine.run(rows)

    metrics.build.info(build_facts(settings, model.backbone))
    metrics.registry.register(DeviceMetrics(engine, model.backbone.device))
    ProcessCollector(registry=metrics.registry)
    batcher = Batcher(
        run,
        max_batch_rows=engine.max_batch_rows(settings.max_batch_rows),
        max_queued_rows=settings.max_waiting_rows,
        observer=metrics,
        max_running=engine.num_streams,
        pipeline_depth=model.pipeline_depth,
        cost=lambda row: row.n_text_rows,
        max_cost=max(1, settings.max_text_rows // engine.num_streams),
    )
    metrics.queue_rows.set_function(lambda: batcher.n_queued)
    live = LiveStacks(
        store,
        fingerprint=model.backbone.fingerprint,
        load=engine.load,
        try_out=engine.smoke_test,
        prepare=engine.capture_graphs,
        went_live=engine.went_live,
        metrics=metrics,
        max_old=settings.max_old_stacks,
        max_waiting=settings.max_waiting_stacks,
    )
    label_sets: Cache[LabelSet, PromptStack] = Cache(settings.max_label_sets, max_waiting=settings.max_waiting_stacks)
    return Runtime(
        settings=settings,
        metrics=metrics,
        keys=keys,
        decoder=build_decoder(
            settings, model.backbone.image_size, model.backbone.preprocess, device=str(model.backbone.device)
        ),
        backend=LocalBackend(live, engine, batcher, label_sets),
        engine=engine,
        batcher=batcher,
        live=live,
        domains=Domains(live),
        follower=StoreFollower(live, metrics),
    )


async def _of_request(request: Request) -> Runtime:  # FastAPI gives a plain function a thread
    runtime = request.app.state.runtime
    if not isinstance(runtime, Runtime):
        raise TypeError("the application carries no runtime; build it with create_app")
    return runtime


Running = Annotated[Runtime, Depends(_of_request)]
"""What a route declares to be handed the runtime."""
