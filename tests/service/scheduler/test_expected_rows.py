"""What a free runner waits for, in virtual time: callers that come back, callers that come at random."""

import asyncio
import random
from collections import Counter

import pytest

from service.scheduler.batch_times import BatchTimes
from service.scheduler.expected_rows import ExpectedRows
from tests.service.scheduler.batching import settle
from tests.service.scheduler.virtual_time import VirtualService

pytestmark = pytest.mark.anyio


def by_twos(n_rows):
    """Seconds of a batch on two cores of which each takes rows of its own; a lone row has both."""
    return 0.038 if n_rows == 1 else 0.048 * ((n_rows + 1) // 2)


def mostly_start(n_rows):
    """Seconds of a batch that costs nearly the same whatever is in it."""
    return 0.05 + 0.003 * n_rows


def on_one_core(n_rows):
    """Seconds of a batch on one of several cores, each with batches of its own: a lone row, too, reads all weights."""
    return 0.057 if n_rows == 1 else 0.002 + 0.045 * n_rows


class Loop(VirtualService):
    """Callers of whom each sends its next row after the answer to the last one; `back_s` apart when they come back."""

    def __init__(self, batch_s, n_callers, back_s, *, seed=0, lanes="a", n_runners=1):
        super().__init__(batch_s, n_runners=n_runners, max_rows=32, max_waiting=128)
        times = self.batcher.batch_times
        times.set_measured({size: batch_s(size) for size in times.sizes})
        self.chance = random.Random(seed)  # noqa: S311
        self.back_s = back_s
        self.busy_s = 0.0
        self.stops_s = {}
        self.lanes = lanes
        for caller in range(n_callers):
            self.at(0.01 * self.chance.random(), lambda caller=caller: self.ask(caller))

    def ask(self, caller):
        if self.now_s < self.stops_s.get(caller, float("inf")):
            (row,) = self.send(caller, lane=self.lanes[caller % len(self.lanes)])
            row.future.add_done_callback(lambda _: self.come_back(caller))

    def come_back(self, caller):
        self.busy_s = max(self.busy_s, self.now_s) + self.back_s * self.chance.uniform(0.7, 1.3)
        self.at(self.busy_s, lambda: self.ask(caller))

    def per_s(self, from_s, to_s):
        return sum(row.done_s is not None and from_s <= row.done_s < to_s for row in self.sent) / (to_s - from_s)


async def test_four_callers_of_a_device_that_takes_two_come_to_share_it_by_twos():
    loop = Loop(by_twos, 4, 0.003)
    await loop.play(20)
    assert loop.per_s(5, 20) >= 0.97 * 2 / by_twos(2), "and not 4 / (t(1) + t(3)) as one and three"
    assert Counter(len(batch) for batch in loop.batches[20:]).most_common(1)[0][0] == 2


@pytest.mark.parametrize("n_callers", [2, 3, 4, 6, 8])
async def test_callers_share_one_batch_where_that_costs_little_more_than_one_of_them(n_callers):
    loop = Loop(mostly_start, n_callers, 0.001)
    await loop.play(20)
    apart = n_callers / (mostly_start(1) + mostly_start(n_callers - 1))
    assert loop.per_s(5, 20) >= 1.25 * apart
    assert Counter(len(batch) for batch in loop.batches[20:]).most_common(1)[0][0] == n_callers


@pytest.mark.parametrize("batch_s", [by_twos, mostly_start])
@pytest.mark.parametrize("back_s", [0.0005, 0.003, 0.02])
async def test_a_lone_caller_never_waits(batch_s, back_s):
    loop = Loop(batch_s, 1, back_s)
    await loop.play(20)
    answered = [row for row in loop.sent if row.done_s is not None]
    assert len(answered) > 100
    assert all(row.began_s == row.sent_s for row in answered)


def without_waits(loop):
    loop.batcher._expected.worth_waiting_s = lambda *_: 0.0
    return loop


@pytest.mark.parametrize("n_cores", [2, 3])
async def test_twice_as_many_callers_as_cores_come_to_share_each_core_by_twos(n_cores):
    loop = Loop(on_one_core, 2 * n_cores, 0.001, n_runners=n_cores)
    apart = without_waits(Loop(on_one_core, 2 * n_cores, 0.001, n_runners=n_cores))
    await loop.play(20)
    await apart.play(20)
    assert loop.per_s(5, 20) >= 0.94 * n_cores * 2 / on_one_core(2)
    assert loop.per_s(5, 20) >= 1.02 * apart.per_s(5, 20)
    assert Counter(len(batch) for batch in loop.batches[20:]).most_common(1)[0][0] == 2


@pytest.mark.parametrize(("n_callers", "n_cores"), [(1, 2), (2, 2), (8, 4), (8, 8), (9, 8), (12, 8), (16, 8), (64, 8)])
@pytest.mark.parametrize("back_s", [0.001, 0.003])
async def test_callers_of_several_cores_are_answered_as_fast_as_if_no_core_ever_waited(n_callers, n_cores, back_s):
    loop = Loop(on_one_core, n_callers, back_s, n_runners=n_cores)
    apart = without_waits(Loop(on_one_core, n_callers, back_s, n_runners=n_cores))
    await loop.play(20)
    await apart.play(20)
    assert loop.per_s(5, 20) >= 0.98 * apart.per_s(5, 20)


async def test_a_core_does_not_wait_while_another_is_idle():
    loop = Loop(on_one_core, 2, 0.003, n_runners=2)
    await loop.play(20)
    answered = [row for row in loop.sent if row.done_s is not None]
    assert len(answered) > 100
    assert all(row.began_s == row.sent_s for row in answered)


@pytest.mark.parametrize(
    ("batch_s", "n_runners"), [(by_twos, 1), (mostly_start, 1), (on_one_core, 2), (on_one_core, 4)]
)
@pytest.mark.parametrize("load", [0.1, 0.4, 0.7, 0.9])
async def test_arrivals_at_random_are_answered_as_soon_as_if_nobody_ever_waited(batch_s, n_runners, load):
    async def mean_s(*, may_wait):
        service = Loop(batch_s, 0, 0, n_runners=n_runners)
        if not may_wait:
            without_waits(service)
        chance, now_s, per_s = random.Random(3), 0.0, load * n_runners * 32 / batch_s(32)  # noqa: S311
        while (now_s := now_s + chance.expovariate(per_s)) < 120:
            service.at(now_s, lambda: service.send("any"))
        await service.play()
        return sum(row.done_s - row.sent_s for row in service.sent) / len(service.sent)

    assert await mean_s(may_wait=True) <= 1.02 * await mean_s(may_wait=False)


async def test_who_stays_away_is_waited_for_a_few_times_and_no_longer():
    loop = Loop(mostly_start, 4, 0.001)
    loop.stops_s = {0: 10.0, 1: 10.0, 2: 10.0}
    await loop.play(20)
    waited_s = [row.began_s - row.sent_s for row in loop.sent if row.sent_s > 10.1 and row.done_s is not None]
    assert len(waited_s) > 100
    assert sum(one_s > 0 for one_s in waited_s) <= 5
    assert max(waited_s) < 0.03


async def send_into_waits(loop, n_rows, **options):
    """Send rows one by one, each while the free device waits for others."""
    for _ in range(n_rows):
        await loop.play(loop.now_s + 0.2)
        while loop.batcher._waits_until_s is None:
            await loop.play(loop.now_s + 0.0005)
        loop.send("other", **options)
        await settle()
    await loop.play(loop.now_s + 1)
    return [row for row in loop.sent if row.flow == "other"]


async def test_a_row_that_has_no_time_for_it_ends_the_wait_for_others():
    rows = await send_into_waits(Loop(mostly_start, 4, 0.004), 20, timeout_s=0.075)
    assert len(rows) == 20
    assert all(row.is_good and row.began_s == row.sent_s for row in rows)


async def test_an_urgent_row_ends_the_wait_for_others():
    rows = await send_into_waits(Loop(mostly_start, 4, 0.004), 20, priority=1)
    assert all(row.began_s == row.sent_s for row in rows)


async def test_a_row_of_another_lane_ends_the_wait_for_those_it_cannot_join():
    rows = await send_into_waits(Loop(mostly_start, 4, 0.004), 20, lane="b")
    assert all(row.is_good for row in rows)
    assert max(row.began_s - row.sent_s for row in rows) <= mostly_start(4)


@pytest.mark.parametrize("batch_s", [by_twos, mostly_start])
@pytest.mark.parametrize("back_s", [0.003, 0.02])
async def test_callers_that_cannot_share_a_batch_do_not_wait_for_each_other(batch_s, back_s):
    loop = Loop(batch_s, 2, back_s, lanes="ab")
    await loop.play(20)
    assert loop.per_s(5, 20) >= 0.99 / batch_s(1), "the device is never idle"


async def test_what_waited_in_vain_is_tried_all_the_same_on_an_idle_device():
    loop = Loop(mostly_start, 2, 0.001)
    await loop.play(5)
    times = loop.batcher.batch_times
    times.set_measured({size: 2 * mostly_start(size) for size in times.sizes})
    rows = await send_into_waits(loop, 1, timeout_s=0.1)
    assert all(row.is_good for row in rows), "an estimate that is too long does not drop what an idle device can do"


async def test_a_batcher_that_closes_waits_for_nobody():
    loop = Loop(mostly_start, 2, 0.001)
    while loop.batcher._waits_until_s is None:
        await loop.play(loop.now_s + 0.0002)
    waiting = [row for row in loop.sent if row.began_s is None]
    assert waiting
    closing_s = loop.now_s
    loop.stops_s = {0: 0.0, 1: 0.0}
    closing = asyncio.ensure_future(loop.batcher.close())
    await settle()
    assert all(row.began_s == closing_s for row in waiting)
    await loop.play()
    await closing
    assert all(row.is_good for row in waiting)


def test_nothing_is_expected_before_anything_was_learned_nor_from_who_is_overdue():
    times = BatchTimes(8)
    times.set_measured({size: mostly_start(size) for size in times.sizes})
    rows = ExpectedRows(times, 8)
    rows.answered("a", 2, 1.0)
    assert rows.worth_waiting_s("a", 1, 1.0) == 0
    for second in range(2, 30):
        rows.came("a", 2, second - 0.99)
        rows.answered("a", 2, float(second))
    rows.came("a", 1, 29.01)
    assert 0 < rows.worth_waiting_s("a", 1, 29.01) < 0.02
    assert rows.worth_waiting_s("a", 1, 29.5) == 0
    rows.came("a", 1, 29.5)
    assert rows.worth_waiting_s("a", 2, 29.5) == 0, "nobody else was answered"


def test_a_full_batch_waits_for_nothing():
    times = BatchTimes(2)
    times.set_measured({1: 1.0, 2: 1.0})
    rows = ExpectedRows(times, 2)
    for second in range(2, 30):
        rows.answered("a", 2, float(second))
        rows.came("a", 2, second + 0.01)
    rows.answered("a", 1, 30.0)
    assert rows.worth_waiting_s("a", 1, 30.0) > 0
    assert rows.worth_waiting_s("a", 2, 30.0) == 0
