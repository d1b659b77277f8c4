import asyncio
import weakref

import pytest

from service.batcher import Batcher
from service.errors import DeadlineExceededError, DrainingError, InferenceFailedError, OverloadedError

pytestmark = pytest.mark.anyio
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


async def test_a_lone_row_leaves_at_once_when_the_runner_is_free():
    runner = Runner()
    batcher = batcher_of(runner)
    futures = batcher.submit([21], lane="a", deadline_s=FAR)
    await asyncio.sleep(0)
    assert runner.batches == [[21]]
    assert await answers(futures) == [42]


async def test_rows_that_come_while_a_batch_runs_leave_together_when_it_is_done():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner)
    futures = [batcher.submit([row], lane="a", deadline_s=FAR)[0] for row in (1, 2, 3)]
    await settle()
    assert runner.batches == [[1]]
    runner.gate.set()
    assert await answers(futures) == [2, 4, 6]
    assert runner.batches == [[1], [2, 3]]


async def test_a_full_batch_is_prepared_while_another_runs_but_never_a_third():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=2)
    futures = batcher.submit(list(range(7)), lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[0, 1], [2, 3]]
    runner.gate.set()
    assert await answers(futures) == [2 * row for row in range(7)]
    assert runner.batches == [[0, 1], [2, 3], [4, 5], [6]]


async def test_rows_of_different_lanes_never_share_a_batch_and_the_oldest_lane_goes_first():
    runner = Runner(is_held=True)
    clock = Clock()
    batcher = batcher_of(runner, clock=clock)
    futures = batcher.submit([0], lane="first", deadline_s=FAR)
    for row, lane in ((1, "b"), (2, "a"), (3, "b"), (4, "a")):
        clock.now_s += 1
        futures += batcher.submit([row], lane=lane, deadline_s=FAR)
    await settle()
    runner.gate.set()
    await answers(futures)
    assert runner.batches == [[0], [1, 3], [2, 4]]


async def test_a_row_past_its_deadline_never_reaches_the_runner():
    runner = Runner(is_held=True)
    clock = Clock()
    batcher = batcher_of(runner, clock=clock)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    futures += batcher.submit([2], lane="a", deadline_s=5)
    futures += batcher.submit([3], lane="a", deadline_s=50)
    await settle()
    clock.now_s = 10
    runner.gate.set()
    assert await answers(futures) == [2, DeadlineExceededError, 6]
    assert runner.batches == [[1], [3]]


async def test_an_abandoned_row_is_skipped_and_makes_room():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_waiting=2)
    running = batcher.submit([1], lane="a", deadline_s=FAR)
    abandoned, kept = batcher.submit([2, 3], lane="a", deadline_s=FAR)
    await settle()
    abandoned.cancel()
    await settle()
    assert batcher.n_waiting == 1
    late = batcher.submit([4], lane="a", deadline_s=FAR)
    runner.gate.set()
    assert await answers([*running, kept, *late]) == [2, 6, 8]
    assert runner.batches == [[1], [3, 4]]


async def test_a_full_queue_refuses_all_rows_of_a_call_and_says_when_to_come_back():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_waiting=3)
    futures = batcher.submit([0], lane="a", deadline_s=FAR)
    futures += batcher.submit([1, 2], lane="a", deadline_s=FAR)
    with pytest.raises(OverloadedError) as refused:
        batcher.submit([3, 4], lane="a", deadline_s=FAR)
    assert refused.value.retry_after_s >= 0
    assert batcher.n_waiting == 2
    futures += batcher.submit([5], lane="b", deadline_s=FAR)
    runner.gate.set()
    assert await answers(futures) == [0, 2, 4, 10]


async def test_a_failed_batch_fails_its_own_rows_and_the_next_one_runs():
    runner = Runner(is_held=True)
    runner.failures = [RuntimeError("device on fire at 0xdeadbeef")]
    batcher = batcher_of(runner)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit([2, 3], lane="a", deadline_s=FAR)
    runner.gate.set()
    assert await answers(futures) == [InferenceFailedError, 4, 6]
    assert "0xdeadbeef" not in str(futures[0].exception())


async def test_an_answer_that_is_an_exception_fails_only_its_row():
    batcher = batcher_of(Runner())
    futures = batcher.submit([1, OverloadedError("no", retry_after_s=1), 3], lane="a", deadline_s=FAR)
    assert await answers(futures) == [2, OverloadedError, 6]


async def test_a_runner_that_answers_too_few_rows_fails_the_batch_and_not_the_loop():
    async def short(rows):
        return rows[:-1] if len(rows) > 1 else rows

    batcher = batcher_of(short)
    first = batcher.submit([1], lane="a", deadline_s=FAR)
    futures = batcher.submit([2, 3], lane="a", deadline_s=FAR)
    assert await answers(first + futures) == [1, InferenceFailedError, InferenceFailedError]


async def test_closing_answers_what_waits_and_refuses_what_comes():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=1)
    futures = batcher.submit([1, 2, 3], lane="a", deadline_s=FAR)
    closing = asyncio.ensure_future(batcher.close())
    await settle()
    with pytest.raises(DrainingError):
        batcher.submit([4], lane="a", deadline_s=FAR)
    runner.gate.set()
    await closing
    assert await answers(futures) == [2, 4, 6]
    assert batcher.n_running == 0


async def test_every_row_of_a_thousand_from_many_callers_is_answered_once():
    async def slowly(rows):
        await asyncio.sleep(0)
        return [2 * row for row in rows]

    batcher = batcher_of(slowly, max_rows=8, max_waiting=1000)

    async def call(start):
        futures = batcher.submit([start, start + 1], lane=start % 3, deadline_s=FAR)
        await asyncio.sleep(0)
        return await answers(futures)

    found = await asyncio.gather(*(call(start) for start in range(0, 1000, 2)))
    assert [answer for pair in found for answer in pair] == [2 * row for row in range(1000)]
    assert batcher.n_waiting == 0


async def test_the_costs_of_a_batch_are_bounded_and_a_row_that_costs_more_runs_alone():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=4, cost=lambda row: row, max_cost=10)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    futures += batcher.submit([4, 6, 1, 12, 3, 3, 3, 1, 1], lane="a", deadline_s=FAR)
    await settle()
    runner.gate.set()
    await answers(futures)
    assert runner.batches == [[1], [4, 6], [1], [12], [3, 3, 3, 1], [1]]


async def test_an_abandoned_row_takes_no_part_in_the_cost_of_a_batch():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, cost=lambda row: row, max_cost=10)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    abandoned = batcher.submit([4, 9, 5], lane="a", deadline_s=FAR)
    abandoned[1].cancel()
    await settle()
    runner.gate.set()
    await answers([*futures, abandoned[0], abandoned[2]])
    assert runner.batches == [[1], [4, 5]]


async def test_a_crowd_of_costly_rows_lets_one_batch_of_the_others_through_each_time():
    runner = Runner(is_held=True)
    clock = Clock()
    batcher = batcher_of(runner, max_rows=2, cost=lambda row: max(0, row - 100), max_cost=1)
    futures = batcher.submit([101, 102, 103], lane="costly", deadline_s=FAR)
    clock.now_s = 1
    futures += batcher.submit([104, 105], lane="costly too", deadline_s=FAR)
    clock.now_s = 2
    futures += batcher.submit([1], lane="a", deadline_s=FAR)
    clock.now_s = 3
    futures += batcher.submit([2], lane="b", deadline_s=FAR)
    await settle()
    runner.gate.set()
    await answers(futures)
    assert runner.batches == [[101], [1], [102], [2], [103], [104], [105]]


async def test_a_batch_with_a_cost_is_never_prepared_ahead_and_never_shut_out():
    runner = Runner(is_held=True)
    clock = Clock()
    batcher = batcher_of(runner, max_rows=2, cost=lambda row: max(0, row - 100), max_cost=1)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    clock.now_s = 1
    futures += batcher.submit([101, 102], lane="costly", deadline_s=FAR)
    await settle()
    clock.now_s = 2
    futures += batcher.submit([2, 3, 4, 5], lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[1]]
    runner.gate.set()
    await answers(futures)
    assert runner.batches == [[1], [101], [2, 3], [102], [4, 5]]


async def test_no_rows_are_no_work():
    runner = Runner()
    assert batcher_of(runner).submit([], lane="a", deadline_s=FAR) == []
    assert runner.batches == []


async def test_abandoned_rows_leave_the_queue_at_once_and_let_their_pixels_go():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=60)
    running = batcher.submit([0], lane="a", deadline_s=FAR)
    pixels = [type("Pixels", (), {})() for _ in range(50)]
    seen = [weakref.ref(one) for one in pixels]
    for lane in ("a", "b"):
        for future in batcher.submit(pixels, lane=lane, deadline_s=FAR):
            future.cancel()
        del future
    pixels.clear()
    await settle()
    assert [one() for one in seen] == [None] * 50
    assert batcher.n_waiting == 0
    assert runner.batches == [[0]]
    running += batcher.submit(list(range(20)), lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[0]], "rows that are gone do not make a batch full"
    runner.gate.set()
    assert await answers(running) == [0, *range(0, 40, 2)]


async def test_a_row_cancelled_in_the_moment_a_batch_forms_is_not_run_and_breaks_nothing():
    runner = Runner(is_held=True)
    clock = Clock()
    batcher = batcher_of(runner, clock=clock)
    running = batcher.submit([1], lane="a", deadline_s=FAR)
    await settle()
    abandoned, late, kept = (batcher.submit([row], lane="a", deadline_s=10 * row)[0] for row in (2, 3, 4))
    runner.gate.set()
    clock.now_s = 35
    (task,) = batcher._running
    task.add_done_callback(lambda _: abandoned.cancel())
    task.add_done_callback(lambda _: late.cancel())
    await settle()
    assert await answers([*running, kept]) == [2, 8]
    assert runner.batches == [[1], [4]]
    assert batcher.n_waiting == 0


async def test_who_would_be_late_is_refused_unless_nobody_is_in_the_way():
    clock = Clock()
    held = asyncio.Event()

    async def slowly(rows):
        await held.wait()
        clock.now_s += 2 * len(rows)
        return rows

    batcher = batcher_of(slowly, max_rows=2, clock=clock)
    held.set()
    await answers(batcher.submit([1], lane="a", deadline_s=FAR))
    held.clear()
    running = batcher.submit([1, 2], lane="a", deadline_s=clock.now_s + 1)
    running += batcher.submit([3], lane="a", deadline_s=clock.now_s + 7)
    with pytest.raises(OverloadedError, match=r"8\.0 s") as refused:
        batcher.submit([4], lane="a", deadline_s=clock.now_s + 7)
    assert refused.value.retry_after_s == 6
    running += batcher.submit([4], lane="a", deadline_s=clock.now_s + 9)
    assert batcher.submit([], lane="a", deadline_s=clock.now_s) == []
    held.set()
    await asyncio.gather(*running, return_exceptions=True)
    assert batcher.estimated_wait_s() == 0


async def test_a_batch_takes_no_row_that_would_make_it_late_for_another():
    clock = Clock()
    batches = []

    async def slowly(rows):
        batches.append(list(rows))
        await asyncio.sleep(0)
        clock.now_s += 2 * len(rows)
        return rows

    batcher = batcher_of(slowly, max_rows=8, clock=clock)
    await answers(batcher.submit([0], lane="a", deadline_s=FAR))
    begins_s = clock.now_s + 2
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    futures += batcher.submit([2, 3], lane="a", deadline_s=begins_s + 5)
    futures += batcher.submit([4, 5], lane="a", deadline_s=FAR)
    assert await answers(futures) == [1, 2, 3, 4, 5]
    assert batches == [[0], [1], [2, 3], [4, 5]]


async def test_the_estimate_counts_neither_the_time_a_batch_has_had_nor_its_wait_for_the_one_before():
    clock = Clock()
    turns = [asyncio.Event() for _ in range(4)]
    one_at_a_time = asyncio.Lock()

    async def slowly(rows):
        async with one_at_a_time:
            await turns.pop(0).wait()
        return rows

    gates = list(turns)
    batcher = batcher_of(slowly, max_rows=2, clock=clock)
    futures = batcher.submit([1, 2, 3, 4, 5], lane="a", deadline_s=FAR)
    for _ in range(2):
        clock.now_s += 4
        gates.pop(0).set()
        await settle()
    assert batcher.n_running == 1
    assert batcher.estimated_wait_s() == 2, "one row left, two seconds each"
    clock.now_s += 1.5
    assert batcher.estimated_wait_s() == 0.5
    clock.now_s += 100
    futures += batcher.submit([6], lane="a", deadline_s=FAR)
    assert batcher.estimated_wait_s() == 2, "a batch that takes too long is not paid for by those that wait"
    for gate in gates:
        gate.set()
    assert await answers(futures) == [1, 2, 3, 4, 5, 6]
