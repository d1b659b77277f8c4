"""What the tests of batching share: a runner that doubles integers, a clock that stands still, a log of events."""

import asyncio

from service.scheduler.batcher import Batcher

FAR = 1e9


class Runner:
    """Doubles integers; holds every batch until it is let go."""

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


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def batcher_of(runner, max_rows=4, max_waiting=100, **options):
    return Batcher(runner, max_rows=max_rows, max_waiting=max_waiting, **options)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def answers(futures):
    settled = await asyncio.gather(*futures, return_exceptions=True)
    return [one.answer if hasattr(one, "answer") else type(one) for one in settled]


class Log:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.entered = []
        self.formed = []
        self.dropped = []
        self.calls = []

    def rows_entered(self, n_rows, priority):
        self.entered.append((n_rows, priority.name))

    def batch_formed(self, n_rows, n_padded, waited_s, release):
        self.formed.append((n_rows, n_padded, waited_s, release))

    def row_dropped(self, reason):
        self.dropped.append(reason)

    def queue_changed(self, n_waiting):
        self.n_waiting = n_waiting

    def call_answered(self, predicted_s, took_s):
        self.calls.append((predicted_s, took_s))
