import asyncio
import logging

import pytest

from service.errors import DeadlineExceededError, DrainingError, InferenceFailedError, OverloadedError
from service.scheduler.batcher import GATHER_S, PREPARE_S
from tests.service.scheduler.batching import Clock, Device, Log, StepDevice, answers, batcher_of, settle

pytestmark = pytest.mark.anyio


async def test_a_lone_row_starts_at_once_on_an_idle_device():
    device = Device()
    futures = batcher_of(device).submit([21])
    await settle()
    assert device.batches == [[21]]
    assert await answers(futures) == [42]


async def test_rows_queued_while_a_batch_runs_start_together_when_it_is_done():
    device = Device(is_held=True)
    batcher = batcher_of(device)
    futures = batcher.submit([1])
    await settle()
    futures += [batcher.submit([row])[0] for row in (2, 3)]
    device.gate.set()
    assert await answers(futures) == [2, 4, 6]
    assert device.batches == [[1], [2, 3]]


async def test_calls_of_the_same_moment_share_a_batch():
    device = Device()
    batcher = batcher_of(device)
    futures = [batcher.submit([row], tenant=row)[0] for row in (1, 2, 3)]
    assert await answers(futures) == [2, 4, 6]
    assert device.batches == [[1, 2, 3]]


async def test_rows_with_different_keys_never_share_a_batch():
    device = Device()
    batcher = batcher_of(device)
    futures = [batcher.submit([row], key=row % 2)[0] for row in range(6)]
    assert await answers(futures) == [0, 2, 4, 6, 8, 10]
    assert device.batches == [[0, 2, 4], [1, 3, 5]]


async def test_without_a_pipeline_no_batch_is_handed_over_while_one_runs():
    device = Device(is_held=True)
    batcher = batcher_of(device, max_batch_rows=2)
    futures = batcher.submit(list(range(7)))
    await settle()
    assert device.batches == [[0, 1]]
    device.gate.set()
    assert await answers(futures) == [2 * row for row in range(7)]
    assert device.batches == [[0, 1], [2, 3], [4, 5], [6]]


async def test_a_pipelined_device_has_one_full_batch_behind_the_running_one_and_never_two():
    device = Device(is_held=True)
    batcher = batcher_of(device, max_batch_rows=2, pipeline_depth=1)
    futures = batcher.submit(list(range(7)))
    await settle()
    assert device.batches == [[0, 1], [2, 3]]
    device.gate.set()
    assert await answers(futures) == [2 * row for row in range(7)]


async def test_a_pipelined_device_gets_whatever_is_queued_shortly_before_its_batch_ends():
    device, clock = StepDevice(), Clock()
    batcher = batcher_of(device, pipeline_depth=1, clock=clock)
    futures = batcher.submit([0])
    await settle()
    clock.now_s = 1.0  # a batch takes a second
    await device.finish(0)
    futures += batcher.submit([1])
    await settle()
    futures += batcher.submit([2])
    await settle()
    assert device.batches == [[0], [1]]
    await clock.advance(0.5)
    futures += batcher.submit([3])
    await settle()
    assert device.batches == [[0], [1]], "later rows can still join"
    await clock.advance(0.5 - PREPARE_S)
    assert device.batches == [[0], [1], [2, 3]]
    await device.finish(1, 2)
    assert await answers(futures) == [0, 1, 2, 3]


async def test_after_a_batch_the_device_waits_a_moment_for_as_many_rows_as_that_batch_had():
    device, clock = StepDevice(), Clock()
    batcher = batcher_of(device, clock=clock)
    futures = batcher.submit([1, 2])
    await settle()
    clock.now_s = 1.0
    await device.finish(1)
    futures += batcher.submit([3])
    await settle()
    assert device.batches == [[1, 2]]
    futures += batcher.submit([4])
    await settle()
    assert device.batches == [[1, 2], [3, 4]], "both are back"
    await device.finish(3)
    futures += batcher.submit([5])
    await clock.advance(GATHER_S)
    assert device.batches == [[1, 2], [3, 4], [5]], "the moment is over"
    await device.finish(5)
    assert await answers(futures) == [1, 2, 3, 4, 5]


async def test_a_batch_that_ends_early_brings_the_next_one_forward():
    device, clock = StepDevice(), Clock()
    batcher = batcher_of(device, pipeline_depth=1, clock=clock)
    futures = batcher.submit([0])
    await settle()
    clock.now_s = 10.0
    await device.finish(0)
    futures += batcher.submit([1])
    await settle()
    futures += batcher.submit([2])
    await settle()
    clock.now_s = 10.1
    await device.finish(1)
    assert device.batches == [[0], [1], [2]]
    await device.finish(2)
    assert await answers(futures) == [0, 1, 2]


async def test_free_threads_share_what_is_queued():
    device = Device(is_held=True)
    batcher = batcher_of(device, max_running=2, max_batch_rows=8)
    futures = batcher.submit(list(range(3)))
    await settle()
    assert device.batches == [[0, 1], [2]]
    futures += batcher.submit(list(range(3, 10)))
    await settle()
    assert len(device.batches) == 2, "both are busy"
    device.gate.set()
    assert await answers(futures) == [2 * row for row in range(10)]


async def test_a_thread_that_is_free_alone_leaves_the_other_one_its_share():
    device = StepDevice()
    batcher = batcher_of(device, max_running=2)
    futures = batcher.submit([0, 1, 2, 3])
    await settle()
    assert device.batches == [[0, 1], [2, 3]]
    futures += batcher.submit([4, 5, 6])
    await device.finish(0)
    assert device.batches[2:] == [[4, 5]]
    await device.finish(2)
    assert device.batches[3:] == [[6]]
    await device.finish(4, 6)
    assert await answers(futures) == [0, 1, 2, 3, 4, 5, 6]


async def test_a_full_queue_refuses_all_rows_of_a_call_and_says_when_to_come_back():
    device, log = Device(is_held=True), Log()
    batcher = batcher_of(device, max_queued_rows=3, observer=log)
    futures = batcher.submit([0])
    await settle()
    futures += batcher.submit([1, 2])
    with pytest.raises(OverloadedError) as refused:
        batcher.submit([3, 4])
    assert refused.value.retry_after_s >= 0
    assert batcher.n_queued == 2
    assert log.dropped == ["queue_full"] * 2
    futures += batcher.submit([5], tenant="another")
    device.gate.set()
    assert await answers(futures) == [0, 2, 4, 10]


async def test_what_is_about_to_start_makes_room_for_a_call_of_the_same_moment():
    batcher = batcher_of(Device(), max_batch_rows=2, max_queued_rows=2)
    futures = batcher.submit([1, 2])
    futures += batcher.submit([3])
    assert await answers(futures) == [2, 4, 6]


async def test_a_row_that_would_be_late_is_refused_before_any_work_goes_into_it():
    device, clock, log = StepDevice(), Clock(), Log()
    batcher = batcher_of(device, clock=clock, observer=log)
    futures = batcher.submit([0])
    await settle()
    clock.now_s = 1.0  # a batch takes a second
    await device.finish(0)
    futures += batcher.submit([1])
    await settle()
    batcher.check(deadline_s=clock.now_s + 3)
    with pytest.raises(OverloadedError, match="overloaded") as refused:
        batcher.check(deadline_s=clock.now_s + 2)
    assert refused.value.retry_after_s == 1.0
    assert log.dropped == ["wait_too_long"]
    assert batcher.n_queued == 0, "a check queues nothing"
    await device.finish(1)
    assert await answers(futures) == [0, 1]


async def test_an_idle_device_refuses_nothing_however_slow_it_was():
    device, clock = StepDevice(), Clock()
    batcher = batcher_of(device, clock=clock)
    futures = batcher.submit([0])
    await settle()
    clock.now_s = 1000.0
    await device.finish(0)
    batcher.check(deadline_s=clock.now_s + 1)
    futures += batcher.submit([1], deadline_s=clock.now_s + 1)
    await settle()
    await device.finish(1)
    assert await answers(futures) == [0, 1]


async def test_a_check_refuses_what_submit_would_refuse():
    device = Device(is_held=True)
    batcher = batcher_of(device, max_queued_rows=1)
    batcher.check()
    futures = batcher.submit([0])
    await settle()
    futures += batcher.submit([1])
    with pytest.raises(OverloadedError):
        batcher.check()
    with pytest.raises(OverloadedError):
        batcher.submit([2])
    device.gate.set()
    assert await answers(futures) == [0, 2]


async def test_a_row_whose_deadline_passes_in_the_queue_never_reaches_the_device():
    device, clock, log = Device(is_held=True), Clock(), Log()
    batcher = batcher_of(device, clock=clock, observer=log)
    futures = batcher.submit([0])
    await settle()
    futures += batcher.submit([1], deadline_s=2.0) + batcher.submit([2])
    clock.now_s = 2.0
    device.gate.set()
    assert await answers(futures) == [0, DeadlineExceededError, 4]
    assert device.batches == [[0], [2]]
    assert log.dropped == ["expired"]


async def test_a_row_that_cannot_be_ready_in_time_is_dropped_while_others_wait():
    device, clock = StepDevice(), Clock()
    batcher = batcher_of(device, clock=clock)
    futures = batcher.submit([0])
    await settle()
    clock.now_s = 4.0
    futures += batcher.submit([1], deadline_s=5.0) + batcher.submit([2])
    await device.finish(0)
    assert device.batches == [[0], [2]]
    await device.finish(2)
    assert await answers(futures) == [0, DeadlineExceededError, 2]


async def test_a_row_that_is_cancelled_leaves_the_queue_at_once():
    device, log = Device(is_held=True), Log()
    batcher = batcher_of(device, observer=log)
    futures = batcher.submit([0])
    await settle()
    futures += batcher.submit([1, 2])
    futures[1].cancel()
    await settle()
    assert batcher.n_queued == 1
    assert log.dropped == ["cancelled"]
    device.gate.set()
    assert await answers(futures) == [0, asyncio.CancelledError, 4]
    assert device.batches == [[0], [2]]


async def test_a_row_that_is_cancelled_in_the_moment_its_batch_forms_is_left_out():
    device, log = Device(), Log()
    batcher = batcher_of(device, observer=log)
    futures = batcher.submit([1, 2])
    futures[0].cancel()
    await settle()
    assert device.batches == [[2]]
    assert log.dropped == ["cancelled"]


async def test_a_failed_batch_fails_its_own_rows_and_the_next_one_runs(caplog):
    device = Device(is_held=True)
    device.failures = [RuntimeError("device on fire at 0xdeadbeef")]
    batcher = batcher_of(device)
    futures = batcher.submit([1])
    await settle()
    futures += batcher.submit([2, 3])
    device.gate.set()
    with caplog.at_level(logging.ERROR):
        assert await answers(futures) == [InferenceFailedError, 4, 6]
    assert "0xdeadbeef" not in str(futures[0].exception())
    assert "0xdeadbeef" in caplog.text


async def test_an_answer_that_is_an_exception_fails_only_its_row():
    futures = batcher_of(Device()).submit([1, OverloadedError("no", retry_after_s=1), 3])
    assert await answers(futures) == [2, OverloadedError, 6]


async def test_a_device_that_answers_too_few_rows_fails_the_batch_and_not_the_loop():
    async def short(rows):
        return rows[:-1] if len(rows) > 1 else rows

    batcher = batcher_of(short)
    first = batcher.submit([1])
    await settle()
    assert await answers(first + batcher.submit([2, 3])) == [1, InferenceFailedError, InferenceFailedError]


async def test_the_costs_in_a_batch_are_bounded_and_a_costlier_row_runs_alone():
    device = Device()
    batcher = batcher_of(device, cost=lambda row: row, max_cost=5)
    futures = batcher.submit([2, 3, 1, 9, 1])
    assert await answers(futures) == [4, 6, 2, 18, 2]
    assert device.batches == [[2, 3], [1], [9], [1]]


async def test_after_a_batch_with_a_cost_one_without_goes_first():
    device = Device(is_held=True)
    batcher = batcher_of(device, cost=lambda row: 5 if row >= 10 else 0, max_cost=5)
    futures = batcher.submit([10, 11, 12], key="costly", tenant="costly")
    await settle()
    futures += batcher.submit([1], tenant="cheap")
    device.gate.set()
    assert await answers(futures) == [20, 22, 24, 2]
    assert device.batches == [[10], [1], [11], [12]]


async def test_closing_serves_the_queue_and_refuses_what_comes():
    device, log = Device(is_held=True), Log()
    batcher = batcher_of(device, max_batch_rows=1, observer=log)
    futures = batcher.submit([1, 2, 3])
    closing = asyncio.ensure_future(batcher.close())
    await settle()
    with pytest.raises(DrainingError):
        batcher.submit([4])
    device.gate.set()
    await closing
    assert await answers(futures) == [2, 4, 6]
    assert log.dropped == ["draining"]


async def test_every_row_of_a_thousand_calls_is_answered_once():
    async def slowly(rows):
        await asyncio.sleep(0)
        return [2 * row for row in rows]

    batcher = batcher_of(slowly, max_batch_rows=8, max_queued_rows=1000)

    async def call(start):
        futures = batcher.submit([start, start + 1], key=start % 3)
        await asyncio.sleep(0)
        return await answers(futures)

    found = asyncio.gather(*(call(start) for start in range(0, 1000, 2)))
    await asyncio.sleep(0.05)
    await batcher.close()
    assert [answer for pair in await found for answer in pair] == [2 * row for row in range(1000)]


async def test_no_rows_are_no_work():
    device = Device()
    assert batcher_of(device).submit([]) == []
    await settle()
    assert device.batches == []


async def test_an_unknown_priority_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="7"):
        batcher_of(Device()).submit([1], priority=7)


async def test_the_observer_learns_why_every_batch_started_and_how_long_its_oldest_row_waited():
    device, log, clock = StepDevice(), Log(), Clock()
    batcher = batcher_of(device, observer=log, clock=clock, pipeline_depth=1)
    futures = batcher.submit([0, 1, 2])
    await settle()
    futures += batcher.submit([3, 4, 5, 6], priority=1)
    await settle()
    clock.now_s = 1.0
    futures += batcher.submit([7], priority=-1)
    clock.now_s = 3.0
    await device.finish(0)
    await clock.advance(4.0)
    futures += batcher.submit([8])
    closing = asyncio.ensure_future(batcher.close())
    await device.finish(3, 7, 8)
    await closing
    assert await answers(futures) == list(range(9))
    assert log.started == [(3, 0, "idle"), (4, 0, "full"), (1, 6.0, "pipelined"), (1, 0, "drain")]
    assert log.queued == [(3, "NORMAL"), (4, "HIGH"), (1, "LOW"), (1, "NORMAL")]
