"""The parts of one running service, put together; what every route is handed.

Knows which part needs which. Does not know HTTP, except for where a request keeps its application.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from prompted_clip.errors import StackMismatchError
from service.auth import KeyRing
from service.batcher import Batcher
from service.cache import Cache
from service.domains import Domains
from service.engine import Engine, EngineRow, Prediction, ServingModel
from service.errors import RequestInvalidError
from service.images import Decoder, ImageLimits
from service.live_table import ServedStack
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from prompt_store.store import Store
    from prompted_clip.stack import PromptStack

logger = logging.getLogger(__name__)

Variant = tuple[str, str, tuple[str, ...]]
"""Digest, `cascade` or `boost`, labels: what text features depend on. Never a name that could mean other content."""


@dataclass(eq=False)
class Runtime:
    """Everything one service process consists of."""

    settings: Settings
    metrics: Metrics
    keys: KeyRing
    engine: Engine
    batcher: Batcher[EngineRow, list[Prediction]]
    decoder: Decoder
    domains: Domains
    variants: Cache[Variant, PromptStack]
    is_draining: bool = False
    is_drained: bool = False
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Load every live version and begin to follow the store."""
        await self.domains.refresh()
        if self.settings.store_poll_s:
            self._tasks.add(asyncio.get_running_loop().create_task(self._follow_store(self.settings.store_poll_s)))

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

    def not_ready_because(self) -> str | None:
        """Why no traffic should be sent here, as one word; None when it should."""
        if self.is_draining:
            return "draining"
        if self.engine.is_lost:
            return "device_lost"
        if self.engine.is_stuck:
            return "device_stuck"
        return None

    async def variant(self, served: ServedStack, kind: str, labels: tuple[str, ...]) -> PromptStack:
        """The stack a request asks for: the served one, without adapting prompts, or with other labels.

        Args:
            served: the version the request pinned.
            kind: `cascade` or `boost`.
            labels: open vocabulary; empty takes the bundle's classes.

        Raises:
            RequestInvalidError: the bundle cannot do that.
            TextTooLongError: a label does not fit the text tower.
            OverloadedError: too many others wait to be made, or the device has no memory left for it.
        """
        if kind == "cascade" and not labels:
            return served.stack
        return await self.variants.get((served.digest, kind, labels), lambda: self._make(served, kind, labels))

    async def _make(self, served: ServedStack, kind: str, labels: tuple[str, ...]) -> PromptStack:
        stack = served.stack
        try:
            if kind == "boost":
                stack = await self.engine.boost_stack(stack)
            return await self.engine.with_labels(stack, labels) if labels else stack
        except StackMismatchError as error:
            raise RequestInvalidError(str(error), code="stack_unsupported") from error

    async def _follow_store(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.domains.refresh()
            except Exception:
                logger.exception("store.unreadable")


def build(settings: Settings, model: ServingModel, store: Store, keys: KeyRing) -> Runtime:
    """Put the parts together; nothing runs yet."""
    metrics = Metrics()
    engine = Engine(model, observe_domains=metrics.batch_domains.observe, stuck_after_s=settings.stuck_after_s)
    limits = ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_side_px=settings.max_image_side_px,
        max_aspect=settings.max_image_aspect,
        max_scans=settings.max_image_scans,
    )
    return Runtime(
        settings=settings,
        metrics=metrics,
        keys=keys,
        engine=engine,
        batcher=Batcher(
            engine.run,
            max_rows=settings.max_batch_rows,
            max_waiting=settings.max_waiting_rows,
            cost=lambda row: row.n_text_rows,
            max_cost=settings.max_text_rows,
            observer=metrics,
        ),
        decoder=Decoder(
            limits, engine.to_pixels, n_threads=settings.n_decode_threads, max_waiting=settings.max_decoding_images
        ),
        domains=Domains(
            store,
            fingerprint=model.backbone.fingerprint,
            load=engine.load,
            warm_up=engine.warm_up,
            metrics=metrics,
            max_old=settings.max_old_stacks,
            max_waiting=settings.max_waiting_stacks,
        ),
        variants=Cache(settings.max_label_sets, max_waiting=settings.max_waiting_stacks),
    )


def _of_request(request: Request) -> Runtime:
    runtime = request.app.state.runtime
    if not isinstance(runtime, Runtime):
        raise TypeError("the application carries no runtime; build it with create_app")
    return runtime


Running = Annotated[Runtime, Depends(_of_request)]
"""What a route declares to be handed the runtime."""


def actor_of(request: Request) -> str:
    """The id of the key a request came with; empty when none was needed."""
    return str(request.scope.get("caspl.actor", ""))
