"""Which requests take part in a rollout, and the comparison of both versions on their images.

A comparison starts after the response's version has answered, with copies of the images, and only while the device is
idle: it neither queues in front of requests nor shares a batch with them, and at most one runs at a time. A request
that arrives meanwhile waits for at most this batch of `MAX_IMAGES`. Images that find the device busy are dropped and
counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prompted_clip.errors import StackMismatchError
from service.engine.engine import EngineRow, RowResult
from service.errors import DeviceLostError, InferenceFailedError, ServiceError
from service.inference import ImageResult, Prediction, ScoringOptions
from service.scheduler.queue import Priority, TimedResult

if TYPE_CHECKING:
    from service.domains.live_table import LiveTable, LoadedVersion, RunningRollout
    from service.domains.rollouts.tally import Decision
    from service.observability.metrics import Metrics
    from service.scheduler.batcher import Batcher

logger = logging.getLogger(__name__)

MAX_IMAGES: Final = 16
DEADLINE_S: Final = 10.0

OnDecision = Callable[[str, "RunningRollout", "Decision"], None]


class Answered(NamedTuple):
    """An image and its most probable class by the version that answered the request."""

    pixels: NDArray[np.uint8]
    best: Prediction


class Comparisons:
    """Compares the versions of running rollouts; calls `on_decision` once for each that is to end."""

    def __init__(
        self, table: LiveTable, batcher: Batcher[EngineRow, RowResult], metrics: Metrics, on_decision: OnDecision
    ) -> None:
        self._table = table
        self._batcher = batcher
        self._metrics = metrics
        self._on_decision = on_decision
        self._task: asyncio.Task[None] | None = None

    def takes_part(self, running: RunningRollout, options: ScoringOptions) -> bool:
        """Whether a request is in the rollout's share; the same request id always is, or never."""
        plan = running.rollout.plan
        if not options.rollout or running.is_decided:
            return False
        if options.abstain is not None and plan.mode == "canary":
            try:
                running.candidate.stack.abstain_below(options.abstain)
            except StackMismatchError:
                return False
        return position(running.rollout.digest, options.request_id) < plan.percent / 100

    def compare(
        self,
        running: RunningRollout,
        pixels: Sequence[NDArray[np.uint8]],
        answers: Sequence[ImageResult | Exception],
        other: LoadedVersion,
    ) -> None:
        """Start to score the answered images with the other version; returns at once and raises nothing."""
        is_free = self._batcher.is_idle and (self._task is None or self._task.done())
        answered = [
            (image, answer.predictions[0])
            for image, answer in zip(pixels, answers, strict=True)
            if isinstance(answer, ImageResult)
        ]
        taken = [Answered(image.copy(), best) for image, best in answered[: MAX_IMAGES if is_free else 0]]
        if n_dropped := len(answered) - len(taken):
            self._count(running, "dropped", n_dropped)
        if taken:
            self._task = asyncio.create_task(self._compare(running, taken, other))
            self._task.add_done_callback(_log_failure)

    def count_failed(self, running: RunningRollout, n_failed: int) -> None:
        """Count images of a request that the candidate could not answer."""
        for _ in range(n_failed):
            running.tally.add_failed()
        self._count(running, "failed", n_failed)
        self._decide(running)

    def close(self) -> None:
        """Abandon the running comparison."""
        if self._task is not None:
            self._task.cancel()

    async def _compare(self, running: RunningRollout, answered: Sequence[Answered], other: LoadedVersion) -> None:
        outcomes: Sequence[object]
        try:
            futures = self._batcher.submit(
                [EngineRow(image.pixels, other.stack, 1) for image in answered],
                key=other.stack.lane,
                deadline_s=time.monotonic() + DEADLINE_S,
                tenant=("rollout", other.domain),
                priority=Priority.LOW,
            )
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        except ServiceError as error:  # the queue filled, or the process is shutting down
            outcomes = [error] * len(answered)
        if self._table.running(other.domain) is not running or running.is_decided:
            return
        for image, outcome in zip(answered, outcomes, strict=True):
            self._add(running, image.best, outcome, other)
        self._decide(running)

    def _add(self, running: RunningRollout, answer: Prediction, outcome: object, other: LoadedVersion) -> None:
        is_candidate = other is running.candidate
        if isinstance(outcome, TimedResult):
            best = outcome.result.predictions[0]
            live, candidate = (answer, best) if is_candidate else (best, answer)
            self._count(running, "agreed" if running.tally.add(live, candidate) else "disagreed", 1)
        elif is_candidate and is_failure_of_version(outcome):
            running.tally.add_failed()
            self._count(running, "failed", 1)
        else:
            self._count(running, "dropped", 1)

    def _count(self, running: RunningRollout, result: str, n: int) -> None:
        tally = running.tally
        tally.n_dropped += n if result == "dropped" else 0
        domain = running.candidate.domain
        shift = tally.confidence_shift if self._table.running(domain) is running else None
        self._metrics.rollout_compared(domain, result, n, shift)

    def _decide(self, running: RunningRollout) -> None:
        domain = running.candidate.domain
        if running.is_decided or self._table.running(domain) is not running:
            return
        decision = running.tally.decide(running.rollout.plan)
        if decision is not None:
            running.is_decided = True
            self._on_decision(domain, running, decision)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("rollout.comparison_failed", exc_info=error)


def position(digest: str, request_id: str) -> float:
    """A request's position among all, 0 to below 1: those below a share take part, and still do when it is raised."""
    hashed = hashlib.blake2b(f"{digest}/{request_id}".encode(), digest_size=6)
    return int.from_bytes(hashed.digest(), "big") / 2**48


def is_failure_of_version(outcome: object) -> bool:
    """Whether an image failed because of the version's stack, not of the device."""
    return isinstance(outcome, InferenceFailedError) and not isinstance(outcome, DeviceLostError)
