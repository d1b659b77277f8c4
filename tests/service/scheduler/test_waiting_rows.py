"""How batches are made of what waits: lanes, costs, deadlines, and rows that are not wanted any more."""

import asyncio
import weakref

import pytest

from service.errors import DeadlineExceededError, OverloadedError
from tests.service.scheduler.batching import FAR, Clock, Runner, answers, batcher_of, settle

pytestmark = pytest.mark.anyio


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
    await settle()
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
    await settle()
    abandoned, kept = batcher.submit([2, 3], lane="a", deadline_s=FAR)
    await settle()
    abandoned.cancel()
    await settle()
    assert batcher.n_waiting == 1
    late = batcher.submit([4], lane="a", deadline_s=FAR)
    runner.gate.set()
    assert await answers([*running, kept, *late]) == [2, 6, 8]
    assert runner.batches == [[1], [3, 4]]


async def test_the_costs_of_a_batch_are_bounded_and_a_row_that_costs_more_runs_alone():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=4, cost=lambda row: row, max_cost=10)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit([4, 6, 1, 12, 3, 3, 3, 1, 1], lane="a", deadline_s=FAR)
    await settle()
    runner.gate.set()
    await answers(futures)
    assert runner.batches == [[1], [4, 6], [1], [12], [3, 3, 3, 1], [1]]


async def test_an_abandoned_row_takes_no_part_in_the_cost_of_a_batch():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, cost=lambda row: row, max_cost=10)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    await settle()
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


async def test_abandoned_rows_leave_the_queue_at_once_and_let_their_pixels_go():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=60)
    running = batcher.submit([0], lane="a", deadline_s=FAR)
    await settle()
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
    (task,) = batcher._tasks
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
    await settle()
    held.clear()
    running = batcher.submit([1, 2], lane="a", deadline_s=clock.now_s + 1)
    await asyncio.sleep(0)
    running += batcher.submit([3], lane="a", deadline_s=clock.now_s + 9)
    with pytest.raises(OverloadedError, match=r"8\.0 s") as refused:
        batcher.submit([4], lane="a", deadline_s=clock.now_s + 7)
    assert refused.value.retry_after_s == 4, "it would have shared the next batch"
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
    await settle()
    begins_s = clock.now_s + 2
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    await asyncio.sleep(0)
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
    futures += batcher.submit([6, 7], lane="a", deadline_s=FAR)
    assert batcher.estimated_wait_s() == 4, "a batch that takes too long is not paid for by those that wait"
    for gate in gates:
        gate.set()
    assert await answers(futures) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_call_larger_than_a_batch_leaves_in_several_with_others_in_between():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=4)
    futures = batcher.submit(list(range(11)), lane="a", deadline_s=FAR, flow="large")
    await settle()
    futures += batcher.submit([100, 101], lane="a", deadline_s=FAR, flow="small")
    await settle()
    runner.gate.set()
    assert await answers(futures) == [2 * row for row in (*range(11), 100, 101)]
    assert runner.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 100, 9, 101], [10]]


async def test_a_row_that_would_be_late_makes_way_for_those_that_would_not_but_an_idle_runner_tries_all():
    clock = Clock()
    batches = []

    async def slowly(rows):
        batches.append(list(rows))
        await asyncio.sleep(0)
        clock.now_s += 2 * len(rows)
        return rows

    batcher = batcher_of(slowly, clock=clock)
    batcher.batch_times.set_measured({1: 2.0, 2: 4.0, 4: 8.0})
    tried = batcher.submit([1, 2], lane="a", deadline_s=1)
    await asyncio.sleep(0)
    late = batcher.submit([3], lane="a", deadline_s=8.5)
    fine = batcher.submit([4, 5], lane="a", deadline_s=FAR)
    clock.now_s += 3
    assert await answers([*tried, *late, *fine]) == [1, 2, DeadlineExceededError, 4, 5]
    assert batches == [[1, 2], [4, 5]]


async def test_the_last_row_is_tried_however_late_it_seems_so_that_a_wrong_estimate_mends():
    runner = Runner(is_held=True)
    clock = Clock()
    batcher = batcher_of(runner, clock=clock)
    running = batcher.submit([1], lane="a", deadline_s=FAR)
    lone = batcher.submit([2], lane="a", deadline_s=5)
    batcher.batch_times.set_measured({1: 1000.0})
    await settle()
    clock.now_s = 1
    runner.gate.set()
    assert await answers([*running, *lone]) == [2, 4]
    assert batcher.batch_times.seconds(1) < 1000
