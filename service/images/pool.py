"""A thread pool for decoding that is bounded in bytes and shared fairly between tenants.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a tenant's jobs get start tags in bytes, each as far behind the
previous one as that one is large, and the smallest tag goes first. So tenants share bytes, not numbers of images.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from service.process import return_free_memory

T = TypeVar("T")

SMALL_BYTES: Final = 4 * 1024 * 1024
"""Jobs up to this size are not counted, and pass a large one that waits for memory."""
HUGE_BYTES: Final = 64 * 1024 * 1024
"""Jobs from this size on take 0.1 s or more; the memory that they leave free is returned."""

MAX_TAGS: Final = 1_000


@dataclass(order=True, slots=True)
class _Job:
    tag: int
    number: int
    n_bytes: int = field(compare=False)
    is_large: bool = field(compare=False)
    run: Callable[[], Any] = field(compare=False)
    result: asyncio.Future[Any] = field(compare=False)


class FairThreadPool:
    """Runs jobs on `n_threads` threads, or one more while a large job runs; used from one event loop.

    All large jobs that run have at most `max_bytes` together; one that has more runs without other large ones.
    """

    def __init__(self, n_threads: int, max_bytes: int, prepare_thread: Callable[[], None] | None = None) -> None:
        self._n_threads, self._max_bytes = n_threads, max_bytes
        self._threads = ThreadPoolExecutor(n_threads + 1, "decode", initializer=prepare_thread)
        self._heaps: dict[bool, list[_Job]] = {False: [], True: []}  # waiting jobs, by `is_large`
        self._numbers = count()
        self._n_running = self._n_large = self._n_bytes = 0
        self._now = 0
        self._next_tag: dict[Hashable, int] = {}

    async def run(self, job: Callable[[], T], *, tenant: Hashable, n_bytes: int) -> T:
        """Run a job in its tenant's turn; if the caller is cancelled before that, it never runs."""
        if len(self._next_tag) > MAX_TAGS:
            self._next_tag = {of: tag for of, tag in self._next_tag.items() if tag > self._now}
        tag = max(self._now, self._next_tag.get(tenant, 0))
        self._next_tag[tenant] = tag + n_bytes
        is_large, result = n_bytes > SMALL_BYTES, asyncio.get_running_loop().create_future()
        waiting = _Job(tag, next(self._numbers), n_bytes, is_large, job, result)
        heap = self._heaps[waiting.is_large]
        if any(self._heaps.values()) or not self._has_room(waiting):
            heapq.heappush(heap, waiting)
            self._start_waiting()
        else:
            self._start(waiting)
        try:
            done: T = await waiting.result
        except asyncio.CancelledError:
            if waiting in heap:
                heap.remove(waiting)
                heapq.heapify(heap)
            raise
        return done

    def close(self) -> None:
        """Cancel waiting jobs; running ones finish."""
        for heap in self._heaps.values():
            for job in heap:
                job.result.cancel()
            heap.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, job: _Job) -> None:
        self._now = max(self._now, job.tag)
        self._count(job, 1)
        running = job.result.get_loop().run_in_executor(self._threads, _run, job)
        running.add_done_callback(partial(self._settle, job))

    def _start_waiting(self) -> None:
        while any(self._heaps.values()) and (job := self._first()) is not None:
            heapq.heappop(self._heaps[job.is_large])
            self._start(job)
        if not self._n_running:
            self._next_tag.clear()

    def _first(self) -> _Job | None:
        """The job with the smallest tag; while that waits for memory or a thread, the first small one."""
        heads = sorted(heap[0] for heap in self._heaps.values() if heap)
        return next((job for job in heads if self._has_room(job)), None)

    def _has_room(self, job: _Job) -> bool:
        if self._n_running >= self._n_threads + bool(self._n_large):
            return False
        if not job.is_large or not self._n_large:
            return True
        return self._n_large < self._n_threads and self._n_bytes + job.n_bytes <= self._max_bytes

    def _settle(self, job: _Job, outcome: asyncio.Future[Any]) -> None:
        self._count(job, -1)
        self._start_waiting()
        error = outcome.exception()
        if job.result.done():
            return
        if error:
            job.result.set_exception(error)
        else:
            job.result.set_result(outcome.result())

    def _count(self, job: _Job, change: int) -> None:
        self._n_running += change
        if job.is_large:
            self._n_large += change
            self._n_bytes += change * job.n_bytes


def _run(job: _Job) -> Any:  # noqa: ANN401  the job's result
    try:
        return job.run()
    finally:
        if job.n_bytes >= HUGE_BYTES:
            return_free_memory()
