"""The inference backend of the process that has the device: live table, label-set cache, batcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prompt_store.class_names import spellings
from prompted_clip.errors import StackMismatchError
from service.domains.cache import LoadingCache
from service.domains.live_table import LiveTable, LoadedVersion, RunningRollout
from service.domains.loader import VersionLoader
from service.domains.rollouts.comparisons import Comparisons, is_failure_of_version
from service.engine.engine import Engine, EngineRow, RowResult
from service.errors import RequestInvalidError, ServiceError
from service.inference import ImageResult, Scored, ScoringOptions, StackKind
from service.scheduler.batcher import Batcher

if TYPE_CHECKING:
    from prompted_clip.stack import PromptStack

LabelSet = tuple[str, StackKind, tuple[str, ...]]
"""Digest, `cascade` or `boost`, and labels: everything that text features depend on."""


@dataclass(frozen=True, eq=False)
class LocalBackend:
    """Pins versions of one live table and scores images with one batcher; `label_sets` caches stacks it derives.

    `comparisons` are those of the rollouts.
    """

    table: LiveTable
    loader: VersionLoader
    engine: Engine
    batcher: Batcher[EngineRow, RowResult]
    label_sets: LoadingCache[LabelSet, PromptStack]
    comparisons: Comparisons

    @asynccontextmanager
    async def pin(
        self, domain: str, version: int | None, *, deadline_s: float, priority: int
    ) -> AsyncIterator[LocalPin]:
        """See `InferenceBackend.pin`."""
        yield self.hold(domain, version, deadline_s=deadline_s, priority=priority)

    def hold(self, domain: str, version: int | None, *, deadline_s: float, priority: int) -> LocalPin:
        """Admit a request and pin a version while the result is referenced; raises as `InferenceBackend.pin` does."""
        pinned = self.table.pin(domain) if version is None else version
        running = self.table.states[domain].running if version is None else None
        self.batcher.check(tenant=domain, deadline_s=deadline_s, priority=priority)
        return LocalPin(self, domain, pinned, running)

    def feature_key(self, stack: PromptStack) -> str:
        """Identifies everything that a stack's embeddings depend on, see `Scored`."""
        return f"{self.engine.backbone.fingerprint}/{stack.image_digest}"


@dataclass(frozen=True, eq=False, slots=True)
class LocalPin:
    """A version pinned for one request: the live one at its arrival with its rollout, or a requested number."""

    backend: LocalBackend
    domain: str
    version: LoadedVersion | int
    running: RunningRollout | None = None

    async def score(self, pixels: Sequence[NDArray[np.uint8]], options: ScoringOptions) -> Scored:
        """See `Pin.score`."""
        backend, served = self.backend, self.version
        if isinstance(served, int):
            live = backend.table.live(self.domain)
            is_live = live is not None and live.version == served
            served = live if live and is_live else await backend.loader.load_cached(self.domain, served)
        elif self.running is not None and backend.comparisons.takes_part(self.running, options):
            return await self._score_both(served, self.running, pixels, options)
        stack = served.stack
        if options.stack == "boost" or options.labels:
            key = (served.digest, options.stack, options.labels)
            stack = await backend.label_sets.get(key, lambda: self._with_options(served.stack, options))
        below = None if options.abstain is None else _abstain_below(stack, options.abstain)
        futures = backend.batcher.submit(
            [EngineRow(image, stack, options.top_k, options.embedding) for image in pixels],
            key=stack.lane,
            deadline_s=options.deadline_s,
            tenant=self.domain,
            priority=options.priority,
        )
        try:
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        finally:
            for future in futures:
                future.cancel()
        answers: list[ImageResult | Exception] = []
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                answers.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                predictions, embedding = outcome.result
                answers.append(ImageResult(predictions, outcome.queued_s, outcome.ran_s, embedding))
        feature_key = backend.feature_key(stack) if options.embedding else ""
        return Scored(served.version, served.digest, answers, below, feature_key)

    async def _score_both(
        self,
        live: LoadedVersion,
        running: RunningRollout,
        pixels: Sequence[NDArray[np.uint8]],
        options: ScoringOptions,
    ) -> Scored:
        """Answer with the version that the rollout's mode gives the request, then compare with the other one.

        Images that the candidate fails on are answered by the live version, with all others of the request.
        """
        comparisons, is_canary = self.backend.comparisons, running.rollout.plan.mode == "canary"
        first, second = (running.candidate, live) if is_canary else (live, running.candidate)
        scored = await LocalPin(self.backend, self.domain, first).score(pixels, options)
        if is_canary and (n_failed := sum(map(is_failure_of_version, scored.answers))):
            comparisons.count_failed(running, n_failed)
            return await LocalPin(self.backend, self.domain, live).score(pixels, options)
        comparisons.compare(running, pixels, scored.answers, second)
        return scored._replace(is_candidate=is_canary)

    async def spellings(self, labels: Sequence[str]) -> dict[str, str]:
        """See `Pin.spellings`."""
        served = self.version
        if isinstance(served, int):
            served = await self.backend.loader.load_cached(self.domain, served)
        return await asyncio.to_thread(spellings, labels, served.stack.class_names)

    async def _with_options(self, stack: PromptStack, options: ScoringOptions) -> PromptStack:
        """The stack without adapting prompts, or with other labels.

        Raises:
            RequestInvalidError: the bundle cannot do that.
        """
        engine = self.backend.engine
        try:
            if options.stack == "boost":
                stack = await engine.boost_stack(stack)
            return await engine.with_labels(stack, options.labels) if options.labels else stack
        except StackMismatchError as error:
            raise RequestInvalidError(str(error), code="stack_unsupported") from error


def _abstain_below(stack: PromptStack, rate: float) -> float:
    """See `PromptStack.abstain_below`.

    Raises:
        RequestInvalidError: the version has no threshold for this rate.
    """
    try:
        return stack.abstain_below(rate)
    except StackMismatchError as error:
        raise RequestInvalidError(str(error), code="abstain_unsupported") from error
