"""Answers classify requests with the device of this process: live table, text features, batcher.

The only place where a pinned version, the query's wishes and the pixels of a request become rows of the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prompted_clip.errors import StackMismatchError
from service.answering import Answered, Served, StackKind, Wanted
from service.domains.cache import Cache
from service.domains.live_stacks import LiveStacks
from service.domains.live_table import ServedStack
from service.engine.engine import Engine, EngineRow, Prediction
from service.errors import RequestInvalidError, ServiceError
from service.scheduler.batcher import Batcher

if TYPE_CHECKING:
    from prompted_clip.stack import PromptStack

Variant = tuple[str, StackKind, tuple[str, ...]]
"""Digest, `cascade` or `boost`, labels: what text features depend on. Never a name that could mean other content."""


class LocalAnswerer:
    """Pins versions of one live table and scores images with one batcher.

    Args:
        live: who answers.
        engine: makes stacks for other labels and without adapting prompts.
        batcher: in front of the engine.
        variants: such stacks, made once.
    """

    def __init__(
        self,
        live: LiveStacks,
        engine: Engine,
        batcher: Batcher[EngineRow, list[Prediction]],
        variants: Cache[Variant, PromptStack],
    ) -> None:
        self.live = live
        self.engine = engine
        self.batcher = batcher
        self.variants = variants

    @asynccontextmanager
    async def pin(self, domain: str, version: int | None, wanted: Wanted | None = None) -> AsyncIterator[LocalPin]:
        """See `Answerer.pin`."""
        _ = wanted  # `check` knows
        yield self.hold(domain, version)

    def check(self, domain: str, wanted: Wanted) -> None:
        """See `Answerer.check`."""
        state = self.live.table.get(domain)
        if state is not None and state.served is not None:
            self.room_for(1, domain, wanted)

    def room_for(self, n_images: int, domain: str, wanted: Wanted) -> None:
        """See whether so many images of a domain would be let in now.

        Raises:
            OverloadedError: they would not.
        """
        self.batcher.check(n_images, deadline_s=wanted.deadline_s, flow=domain, priority=wanted.priority)

    def hold(self, domain: str, version: int | None) -> LocalPin:
        """Pin for as long as the result is kept.

        Raises:
            DomainNotFoundError, DomainNotLiveError, DomainUnavailableError: nothing is live there.
        """
        return LocalPin(self, domain, self.live.pin(domain) if version is None else version)


class LocalPin:
    """One request's hold on one version.

    Args:
        answerer: whose parts do the work.
        domain: who is asked.
        version: the one that was live when the request came, or the number of the one it asks for.
    """

    def __init__(self, answerer: LocalAnswerer, domain: str, version: ServedStack | int) -> None:
        self._answerer = answerer
        self._domain = domain
        self._version = version
        # What is live answers with its own classes, unless `settle` is told otherwise.
        self._stack = None if isinstance(version, int) else version.stack

    @property
    def served(self) -> Served | None:
        """What answers, as far as that is known without loading anything."""
        version = self._version
        return None if isinstance(version, int) else Served(version.domain, version.version, version.digest)

    async def settle(self, kind: StackKind, labels: tuple[str, ...]) -> Served:
        """See `Pin.settle`."""
        if isinstance(self._version, int):
            self._version = await self._answerer.live.pin_version(self._domain, self._version)
        served = self._version
        self._stack = served.stack
        if kind == "boost" or labels:
            self._stack = await self._answerer.variants.get(
                (served.digest, kind, labels), lambda: self._make(served.stack, kind, labels)
            )
        return Served(served.domain, served.version, served.digest)

    def check(self, n_images: int, wanted: Wanted) -> None:
        """See `Pin.check`."""
        self._answerer.room_for(n_images, self._domain, wanted)

    async def score(self, pixels: Sequence[NDArray[np.uint8]], wanted: Wanted) -> list[Answered | ServiceError]:
        """See `Pin.score`."""
        stack = self._stack
        if stack is None:
            raise TypeError("settle comes before score")
        rows = [EngineRow(item, stack, wanted.top_k) for item in pixels]
        futures = self._answerer.batcher.submit(
            rows, lane=stack.lane, deadline_s=wanted.deadline_s, flow=self._domain, priority=wanted.priority
        )
        try:
            settled = await asyncio.gather(*futures, return_exceptions=True)
        finally:
            for future in futures:
                future.cancel()
        answers: list[Answered | ServiceError] = []
        for outcome in settled:
            if isinstance(outcome, ServiceError):
                answers.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                answers.append(Answered(outcome.answer, outcome.queued_s, outcome.ran_s))
        return answers

    async def _make(self, stack: PromptStack, kind: StackKind, labels: tuple[str, ...]) -> PromptStack:
        """The stack without adapting prompts, or with other labels.

        Raises:
            RequestInvalidError: the bundle cannot do that.
        """
        engine = self._answerer.engine
        try:
            if kind == "boost":
                stack = await engine.boost_stack(stack)
            return await engine.with_labels(stack, labels) if labels else stack
        except StackMismatchError as error:
            raise RequestInvalidError(str(error), code="stack_unsupported") from error
