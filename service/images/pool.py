"""A thread pool for decoding that is bounded in bytes and shared fairly between tenants.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a tenant's jobs get start tags in bytes, each as far behind the
previous one as that one is large, and the smallest tag goes first. So tenants share bytes, not numbers of images.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
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
        self._lock = threading.Lock()  # for everything below
        self._heaps: dict[bool, list[_Job]] = {False: [], True: []}  # waiting jobs, by `is_large`
        self._ended: list[tuple[_Job, Any, BaseException | None]] = []  # `_settle` delivers them
        self._numbers = count()
        self._n_running = self._n_large = self._n_bytes = 0
        self._now = 0
        self._next_tag: dict[Hashable, int] = {}

    async def run(self, job: Callable[[], T], *, tenant: Hashable, n_bytes: int) -> T:
        """Run a job in its tenant's turn; if the caller is cancelled before that, it never runs."""
        is_large, result = n_bytes > SMALL_BYTES, asyncio.get_running_loop().create_future()
        with self._lock:
            if len(self._next_tag) > MAX_TAGS:
                self._next_tag = {of: tag for of, tag in self._next_tag.items() if tag > self._now}
            tag = max(self._now, self._next_tag.get(tenant, 0))
            self._next_tag[tenant] = tag + n_bytes
            waiting = _Job(tag, next(self._numbers), n_bytes, is_large, job, result)
            heap = self._heaps[is_large]
            heapq.heappush(heap, waiting)
            self._start_waiting()
        try:
            done: T = await result
        except asyncio.CancelledError:
            with self._lock:
                if waiting in heap:
                    heap.remove(waiting)
                    heapq.heapify(heap)
                    self._start_waiting()
            raise
        return done

    def close(self) -> None:
        """Cancel waiting jobs; running ones finish."""
        with self._lock:
            for heap in self._heaps.values():
                for job in heap:
                    job.result.cancel()
                heap.clear()
            self._threads.shutdown(wait=False)

    def _work(self, job: _Job | None) -> None:
        """Run a job, then waiting ones as long as there is room: a thread that goes on need not be woken."""
        while job:
            result, error = _run(job)
            with self._lock:
                self._count(job, -1)
                self._ended.append((job, result, error))
                is_first, was_large = len(self._ended) == 1, job.is_large
                loop, job = job.result.get_loop(), self._take()
                if was_large or (job and job.is_large):  # there may be room for several
                    self._start_waiting()
            result = error = None  # not kept while the next job runs
            if is_first:
                with suppress(RuntimeError):  # the event loop is closed
                    loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        """Resolve the futures of all jobs that have ended."""
        with self._lock:
            ended, self._ended = self._ended, []
        for job, result, error in ended:
            if job.result.done():
                continue
            if error:
                job.result.set_exception(error)
            else:
                job.result.set_result(result)

    def _start_waiting(self) -> None:
        """Start waiting jobs as long as there is room, each on another thread."""
        while job := self._take():
            self._threads.submit(self._work, job)

    def _take(self) -> _Job | None:
        """Take the job that starts next: the one with the smallest tag; while that waits for room, the first small one.

        None if nothing waits, or there is no room.
        """
        for heap in sorted(filter(None, self._heaps.values())):  # lists are compared by their first elements
            job = heap[0]
            if self._has_room(job):
                heapq.heappop(heap)
                self._now = max(self._now, job.tag)
                self._count(job, 1)
                return job
        if not self._n_running:
            self._next_tag.clear()
        return None

    def _has_room(self, job: _Job) -> bool:
        if self._n_running >= self._n_threads + bool(self._n_large):
            return False
        if not job.is_large or not self._n_large:
            return True
        return self._n_large < self._n_threads and self._n_bytes + job.n_bytes <= self._max_bytes

    def _count(self, job: _Job, change: int) -> None:
        self._n_running += change
        if job.is_large:
            self._n_large += change
            self._n_bytes += change * job.n_bytes


def _run(job: _Job) -> tuple[Any, BaseException | None]:
    """The job's result and its error; it does not run if its caller has just been cancelled."""
    if job.result.done():
        return None, None
    try:
        return job.run(), None
    except BaseException as error:  # noqa: BLE001  the caller gets it
        return None, error
    finally:
        if job.n_bytes >= HUGE_BYTES:
            return_free_memory()
