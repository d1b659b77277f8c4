"""A thread pool for decoding that is bounded in bytes and shared fairly between tenants.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a tenant's jobs get start tags in bytes, each as far behind the
previous one as that one is large, and the smallest tag goes first. So tenants share bytes, not numbers of images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from service.process import return_free_memory

T = TypeVar("T")

SMALL_BYTES: Final = 4 * 1024 * 1024
"""Jobs up to this size are not counted, and pass a large one that waits for memory."""
HUGE_BYTES: Final = 64 * 1024 * 1024
"""Jobs from this size on take 0.1 s or more; the memory that they leave free is returned."""


@dataclass(eq=False, slots=True)
class _Job:
    run: Callable[[], Any]
    n_bytes: int
    tag: int
    result: asyncio.Future[Any]


class FairThreadPool:
    """Runs jobs on `n_threads` threads, or one more while a large job runs; used from one event loop.

    All large jobs that run have at most `max_bytes` together; one that has more runs without other large ones.
    """

    def __init__(self, n_threads: int, max_bytes: int, prepare_thread: Callable[[], None] | None = None) -> None:
        self._n_threads, self._max_bytes = n_threads, max_bytes
        self._threads = ThreadPoolExecutor(n_threads + 1, "decode", initializer=prepare_thread)
        self._waiting: list[_Job] = []
        self._n_running = self._n_large = self._n_bytes = 0
        self._now = 0
        self._next_tag: dict[Hashable, int] = {}

    async def run(self, job: Callable[[], T], *, tenant: Hashable, n_bytes: int) -> T:
        """Run a job in its tenant's turn; if the caller is cancelled before that, it never runs."""
        tag = max(self._now, self._next_tag.get(tenant, 0))
        self._next_tag[tenant] = tag + n_bytes
        queued = _Job(job, n_bytes, tag, asyncio.get_running_loop().create_future())
        self._waiting.append(queued)
        self._start()
        try:
            result: T = await queued.result
        finally:
            if queued in self._waiting:
                self._waiting.remove(queued)
        return result

    def close(self) -> None:
        """Cancel waiting jobs; running ones finish."""
        for job in self._waiting:
            job.result.cancel()
        self._waiting.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        while (job := self._first()) is not None:
            self._waiting.remove(job)
            self._now = max(self._now, job.tag)
            self._count(job, 1)
            self._threads.submit(_run, job).add_done_callback(partial(self._ended, job, job.result.get_loop()))
        self._next_tag = {of: tag for of, tag in self._next_tag.items() if self._n_running and tag > self._now}

    def _first(self) -> _Job | None:
        """The job with the smallest tag; while that waits for memory or a thread, the first small one."""
        first = min(self._waiting, key=lambda job: job.tag, default=None)
        if first is None or self._has_room(first):
            return first
        small = [job for job in self._waiting if job.n_bytes <= SMALL_BYTES and self._has_room(job)]
        return min(small, key=lambda job: job.tag, default=None)

    def _has_room(self, job: _Job) -> bool:
        if self._n_running >= self._n_threads + bool(self._n_large):
            return False
        if job.n_bytes <= SMALL_BYTES or not self._n_large:
            return True
        return self._n_large < self._n_threads and self._n_bytes + job.n_bytes <= self._max_bytes

    def _ended(self, job: _Job, loop: asyncio.AbstractEventLoop, outcome: Future[Any]) -> None:
        """Called on the job's thread."""
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._settle, job, outcome)

    def _settle(self, job: _Job, outcome: Future[Any]) -> None:
        self._count(job, -1)
        self._start()
        if job.result.done():
            return
        if error := outcome.exception():
            job.result.set_exception(error)
        else:
            job.result.set_result(outcome.result())

    def _count(self, job: _Job, change: int) -> None:
        self._n_running += change
        if job.n_bytes > SMALL_BYTES:
            self._n_large += change
            self._n_bytes += change * job.n_bytes


def _run(job: _Job) -> Any:  # noqa: ANN401  whatever the job returns
    try:
        return job.run()
    finally:
        if job.n_bytes >= HUGE_BYTES:
            return_free_memory()
