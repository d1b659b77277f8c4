"""A batcher on a clock that only the test moves: arrivals and a device whose batches take virtual seconds."""

import asyncio
import heapq
import itertools
from dataclasses import dataclass

from service.errors import OverloadedError
from service.scheduler.batcher import Batcher
from tests.service.scheduler.batching import Log

SETTLING = 5
"""Turns of the event loop until everything that follows from one event has happened."""


@dataclass
class Sent:
    """One row, and what became of it."""

    tenant: object
    sent_s: float
    deadline_s: float
    key: object = "a"
    priority: int = 0
    cost: int = 0
    began_s: float | None = None
    done_s: float | None = None
    error: Exception | None = None
    n_settled: int = 0
    future: asyncio.Future | None = None

    @property
    def is_good(self):
        """Whether it was answered in time."""
        return self.error is None and self.done_s is not None and self.done_s <= self.deadline_s

    @property
    def is_refused(self):
        """Whether it never entered the queue."""
        return isinstance(self.error, OverloadedError)


class Timer:
    """What `call_later` returns: an event that can be cancelled."""

    def __init__(self, service, when_s, act):
        self._act = act
        service.at(when_s, lambda: self._act())

    def cancel(self):
        self._act = lambda: None


class VirtualService:
    """One batcher and one device that runs a batch at a time, or several side by side.

    `batch_s(n_rows)` is how long a batch takes; `sent` collects every row, `batches` the rows of every batch.
    """

    def __init__(self, batch_s, *, n_runners=1, max_rows=32, max_waiting=128, prepare_s=0.0, **options):
        self.now_s = 0.0
        self.batch_s = batch_s
        self.prepare_s = prepare_s
        self.free_s = [0.0] * n_runners
        self.batches = []
        self.sent = []
        self._events = []
        self._order = itertools.count()
        self.batcher = Batcher(
            self._run,
            clock=lambda: self.now_s,
            call_later=lambda delay_s, act: Timer(self, self.now_s + delay_s, act),
            cost=lambda row: row.cost,
            max_running=n_runners,
            observer=Log(),
            max_batch_rows=max_rows,
            max_queued_rows=max_waiting,
            **options,
        )

    async def _run(self, rows):
        self.batches.append(rows)
        runner = self.free_s.index(min(self.free_s))
        begins_s = max(self.now_s + self.prepare_s, self.free_s[runner])
        self.free_s[runner] = ends_s = begins_s + self.batch_s(len(rows))
        for row in rows:
            row.began_s = begins_s
        done = asyncio.get_running_loop().create_future()
        self.at(ends_s, lambda: done.set_result(None))
        await done
        return rows

    def at(self, when_s, act):
        """Let `act` happen then."""
        heapq.heappush(self._events, (when_s, next(self._order), act))

    def send(self, tenant, *, timeout_s=1e9, key="a", priority=0, n_rows=1, cost=0):
        """One call, at this moment; whoever is refused is settled at once."""
        rows = [Sent(tenant, self.now_s, self.now_s + timeout_s, key, priority, cost) for _ in range(n_rows)]
        self.sent += rows
        try:
            self.batcher.check(tenant=tenant, priority=priority, deadline_s=rows[0].deadline_s)
            futures = self.batcher.submit(
                rows, key=key, tenant=tenant, deadline_s=rows[0].deadline_s, priority=priority
            )
        except OverloadedError as error:
            for row in rows:
                row.error, row.done_s, row.n_settled = error, self.now_s, 1
            return rows
        for row, future in zip(rows, futures, strict=True):
            row.future = future
            future.add_done_callback(lambda done, row=row: self._settle(row, done))
        return rows

    def _settle(self, row, done):
        row.n_settled += 1
        row.done_s = self.now_s
        row.error = None if done.cancelled() else done.exception()
        assert row.error is not None or done.cancelled() or done.result().result is row

    def send_steadily(self, tenant, per_s, from_s, to_s, **options):
        """Open-loop arrivals of one tenant: they come when they come, whatever became of those before."""
        for n in range(round((to_s - from_s) * per_s)):
            self.at(from_s + n / per_s, lambda: self.send(tenant, **options))

    async def stop(self):
        """End what still runs."""
        for task in self.batcher._tasks:
            task.cancel()
        await asyncio.gather(*self.batcher._tasks, return_exceptions=True)

    async def play(self, until_s=float("inf")):
        """Let events happen in their order until none is left, or the time has come."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s = max(self.now_s, self._events[0][0])
            while self._events and self._events[0][0] <= self.now_s:
                heapq.heappop(self._events)[-1]()
            for _ in range(SETTLING):
                await asyncio.sleep(0)
        self.now_s = max(self.now_s, until_s) if until_s < float("inf") else self.now_s
