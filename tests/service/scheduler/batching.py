"""Shared by the scheduler's tests: a device that doubles integers, a clock that stands still, a log of events."""

import asyncio

from service.scheduler.batcher import Batcher

FAR = 1e9


class Device:
    """Doubles integers; holds every batch until its gate opens."""

    def __init__(self, *, is_held=False):
        self.batches = []
        self.gate = asyncio.Event()
        if not is_held:
            self.gate.set()
        self.failures = []

    async def __call__(self, rows):
        self.batches.append(list(rows))
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return [row if isinstance(row, Exception) else 2 * row for row in rows]


class StepDevice:
    """Returns its rows; `finish(row)` ends the batch that begins with a row."""

    def __init__(self):
        self.batches = []
        self._gates = {}

    async def __call__(self, rows):
        self.batches.append(list(rows))
        await self._gate(rows[0]).wait()
        return rows

    def _gate(self, row):
        return self._gates.setdefault(row, asyncio.Event())

    async def finish(self, *rows):
        for row in rows:
            self._gate(row).set()
        await settle()


class Timer:
    """What a clock's `call_later` returns."""

    def __init__(self, delay_s, act):
        self.delay_s, self.act = delay_s, act

    def cancel(self):
        self.act = lambda: None


class Clock:
    """Stands still until `advance`."""

    def __init__(self):
        self.now_s = 0.0
        self.timers = []

    def __call__(self):
        return self.now_s

    def call_later(self, delay_s, act):
        self.timers.append((self.now_s + delay_s, timer := Timer(delay_s, act)))
        return timer

    async def advance(self, seconds):
        self.now_s += seconds
        due = [timer for due_s, timer in self.timers if due_s <= self.now_s]
        self.timers = [(due_s, timer) for due_s, timer in self.timers if due_s > self.now_s]
        for timer in due:
            timer.act()
        await settle()


class Log:
    """An observer that keeps everything."""

    def __init__(self):
        self.queued = []
        self.started = []
        self.dropped = []

    def rows_queued(self, n_rows, priority):
        self.queued.append((n_rows, priority))

    def batch_started(self, n_rows, waited_s, reason):
        self.started.append((n_rows, waited_s, reason))

    def rows_dropped(self, n_rows, reason):
        self.dropped += [reason] * n_rows


class TestBatcher(Batcher):
    """A batcher whose calls need name only what a test is about."""

    __test__ = False

    def submit(self, rows, *, key="a", tenant="t", deadline_s=FAR, priority=0):
        return super().submit(rows, key=key, tenant=tenant, deadline_s=deadline_s, priority=priority)

    def check(self, *, tenant="t", deadline_s=FAR, priority=0):
        super().check(tenant=tenant, deadline_s=deadline_s, priority=priority)


def batcher_of(device, max_batch_rows=4, max_queued_rows=100, *, clock=None, observer=None, **options):
    if clock is not None:
        options |= {"clock": clock, "call_later": clock.call_later}
    observer = observer or Log()
    return TestBatcher(
        device, max_batch_rows=max_batch_rows, max_queued_rows=max_queued_rows, observer=observer, **options
    )


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def answers(futures):
    settled = await asyncio.gather(*futures, return_exceptions=True)
    return [one.result if hasattr(one, "result") else type(one) for one in settled]
