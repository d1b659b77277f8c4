import asyncio

import pytest

from service.errors import DrainingError, InferenceFailedError, OverloadedError
from tests.service.scheduler.batching import FAR, Clock, Log, Runner, answers, batcher_of, settle

pytestmark = pytest.mark.anyio


async def test_a_lone_row_leaves_at_once_when_the_runner_is_free():
    runner = Runner()
    batcher = batcher_of(runner)
    futures = batcher.submit([21], lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[21]]
    assert await answers(futures) == [42]


async def test_rows_that_come_while_a_batch_runs_leave_together_when_it_is_done():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner)
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[1]]
    futures += [batcher.submit([row], lane="a", deadline_s=FAR)[0] for row in (2, 3)]
    runner.gate.set()
    assert await answers(futures) == [2, 4, 6]
    assert runner.batches == [[1], [2, 3]]


async def test_calls_of_the_same_moment_share_a_batch_even_when_the_runner_is_free():
    runner = Runner()
    batcher = batcher_of(runner)
    futures = [batcher.submit([row], lane="a", flow=row, deadline_s=FAR)[0] for row in (1, 2, 3)]
    assert await answers(futures) == [2, 4, 6]
    assert runner.batches == [[1, 2, 3]]


async def test_a_full_batch_is_prepared_while_another_runs_but_never_a_third():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_rows=2)
    futures = batcher.submit(list(range(7)), lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[0, 1], [2, 3]]
    runner.gate.set()
    assert await answers(futures) == [2 * row for row in range(7)]
    assert runner.batches == [[0, 1], [2, 3], [4, 5], [6]]


async def test_a_full_queue_refuses_all_rows_of_a_call_and_says_when_to_come_back():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, max_waiting=3)
    futures = batcher.submit([0], lane="a", deadline_s=FAR)
    await settle()
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
    await settle()
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


async def test_no_rows_are_no_work():
    runner = Runner()
    assert batcher_of(runner).submit([], lane="a", deadline_s=FAR) == []
    assert runner.batches == []


async def test_observers_hear_why_every_batch_left_how_many_rows_really_ran_and_how_long_the_oldest_waited():
    runner, log, clock = Runner(is_held=True), Log(), Clock()
    batcher = batcher_of(runner, observer=log, clock=clock, n_padded=lambda n: 1 << (n - 1).bit_length())
    futures = batcher.submit([1, 2, 3], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit([4, 5, 6, 7], lane="a", deadline_s=FAR, priority=1)
    await settle()
    clock.now_s = 2
    futures += batcher.submit([8], lane="a", deadline_s=FAR, priority=-1)
    clock.now_s = 3
    runner.gate.set()
    await answers(futures)
    runner.gate.clear()
    futures = batcher.submit([9], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit([10], lane="a", deadline_s=FAR)
    closing = asyncio.ensure_future(batcher.close())
    await settle()
    runner.gate.set()
    await closing
    assert log.formed == [
        (3, 4, 0, "idle"),
        (4, 4, 0, "full"),
        (1, 1, 1, "free"),
        (1, 1, 0, "idle"),
        (1, 1, 0, "drain"),
    ]
    assert log.entered == [(3, "NORMAL"), (4, "HIGH"), (1, "LOW"), (1, "NORMAL"), (1, "NORMAL")]
    assert log.n_waiting == 0


async def test_observers_hear_how_long_a_call_was_predicted_to_take_and_took():
    log, clock = Log(), Clock()

    async def slowly(rows):
        clock.now_s += 2 * len(rows)
        return rows

    batcher = batcher_of(slowly, max_rows=2, observer=log, clock=clock)
    batcher.batch_times.set_measured({1: 1.0, 2: 2.0})
    await answers(batcher.submit([1, 2, 3], lane="a", deadline_s=FAR))
    assert log.calls == [(3.0, 6.0)], "told of the last row of a call, whose answer completes it"


async def test_an_unknown_priority_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="7"):
        batcher_of(Runner()).submit([1], lane="a", deadline_s=FAR, priority=7)


async def test_a_batch_that_failed_teaches_nothing_about_how_long_batches_take():
    runner, clock = Runner(is_held=True), Clock()
    runner.failures = [RuntimeError("no")]
    batcher = batcher_of(runner, clock=clock)
    batcher.batch_times.set_measured({1: 1.0})
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    await settle()
    runner.gate.set()
    assert await answers(futures) == [InferenceFailedError]
    assert batcher.batch_times.seconds(1) == 1.0


async def test_a_look_ahead_says_what_a_call_would_hear_and_lets_nothing_in():
    runner, log = Runner(is_held=True), Log()
    batcher = batcher_of(runner, max_waiting=3, observer=log)
    batcher.check(3, deadline_s=FAR)
    futures = batcher.submit([0], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit([1, 2], lane="a", deadline_s=FAR)
    batcher.check(1, deadline_s=FAR)
    with pytest.raises(OverloadedError):
        batcher.check(2, deadline_s=FAR)
    assert log.dropped == ["queue_full"] * 2
    assert batcher.n_waiting == 2
    runner.gate.set()
    assert await answers(futures) == [0, 2, 4]


async def test_runners_that_are_free_share_what_waits_and_one_alone_leaves_the_others_their_part():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, n_runners=2, max_rows=8)
    futures = batcher.submit(list(range(3)), lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[0, 1], [2]]
    futures += batcher.submit(list(range(3, 10)), lane="a", deadline_s=FAR)
    await settle()
    assert len(runner.batches) == 2, "both are busy"
    runner.gate.set()
    assert await answers(futures) == [2 * row for row in range(10)]
    assert runner.batches[2:4] == [[3, 4, 5, 6], [7, 8]], "half of seven, and of the three that are left"


async def test_a_runner_takes_all_it_can_where_rows_were_refused_since_the_last_batch_left():
    clock, gates, batches = Clock(), [asyncio.Event() for _ in range(20)], []

    async def run(rows):
        batches.append(list(rows))
        await gates[rows[0]].wait()
        return rows

    batcher = batcher_of(run, n_runners=2, max_rows=8, clock=clock)
    batcher.batch_times.set_measured({1: 1.0, 8: 8.0})
    futures = batcher.submit([0, 1], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit(list(range(2, 14)), lane="a", deadline_s=FAR)
    with pytest.raises(OverloadedError):
        batcher.submit([99], lane="a", deadline_s=clock.now_s + 2)
    for first in (0, 1):
        gates[first].set()
        await settle()
    assert batches == [[0], [1], list(range(2, 10)), [10, 11]], "then half of the four that are left"
    for gate in gates:
        gate.set()
    assert await answers(futures) == list(range(14))


async def test_a_runner_that_is_back_while_the_others_are_busy_takes_two_rows_if_two_wait():
    gates = [asyncio.Event() for _ in range(6)]
    batches = []

    async def run(rows):
        batches.append(list(rows))
        await gates[rows[0]].wait()
        return rows

    batcher = batcher_of(run, n_runners=4, max_rows=8)
    futures = batcher.submit([0, 1, 2, 3], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit([4, 5], lane="a", deadline_s=FAR)
    gates[2].set()
    await settle()
    assert batches == [[0], [1], [2], [3], [4, 5]]
    for gate in gates:
        gate.set()
    assert await answers(futures) == [0, 1, 2, 3, 4, 5]


async def test_several_runners_are_given_one_full_batch_ahead_and_never_two():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, n_runners=2, max_rows=2)
    futures = batcher.submit(list(range(11)), lane="a", deadline_s=FAR)
    await settle()
    assert runner.batches == [[0, 1], [2, 3], [4, 5]]
    assert batcher.n_running == 3
    runner.gate.set()
    assert await answers(futures) == [2 * row for row in range(11)]


async def test_a_wait_is_the_shorter_the_more_runners_share_it():
    async def found(n_runners):
        runner = Runner(is_held=True)
        batcher = batcher_of(runner, n_runners=n_runners, max_rows=4, clock=Clock())
        batcher.batch_times.set_measured({1: 1.0, 2: 2.0, 4: 4.0})
        futures = batcher.submit(list(range(4 * n_runners)), lane="a", deadline_s=FAR)
        await settle()
        futures += batcher.submit(list(range(8)), lane="a", deadline_s=FAR)
        wait_s = batcher.estimated_wait_s()
        runner.gate.set()
        await answers(futures)
        return wait_s

    assert [await found(n_runners) for n_runners in (1, 2, 4)] == [12.0, 8.0, 4.0]


async def test_a_batch_alone_among_several_runners_teaches_nothing_about_batches_side_by_side():
    clock, gates = Clock(), [asyncio.Event() for _ in range(3)]

    async def run(rows):
        await gates[rows[0]].wait()
        return rows

    batcher = batcher_of(run, n_runners=2, clock=clock)
    batcher.batch_times.set_measured({1: 1.0})
    alone = batcher.submit([0], lane="a", deadline_s=FAR)
    await settle()
    clock.now_s = 0.1
    gates[0].set()
    await answers(alone)
    assert batcher.batch_times.seconds(1) == 1.0
    together = [batcher.submit([row], lane="a", deadline_s=FAR)[0] for row in (1, 2)]
    await settle()
    clock.now_s = 0.9
    gates[1].set()
    gates[2].set()
    await answers(together)
    assert batcher.batch_times.seconds(1) < 1.0


async def test_nobody_is_refused_for_want_of_time_while_a_runner_is_free():
    runner = Runner(is_held=True)
    batcher = batcher_of(runner, n_runners=2, clock=Clock())
    batcher.batch_times.set_measured({1: 1000.0})
    futures = batcher.submit([1], lane="a", deadline_s=FAR)
    await settle()
    futures += batcher.submit([2], lane="a", deadline_s=1.0)
    await settle()
    with pytest.raises(OverloadedError):
        batcher.submit([3], lane="a", deadline_s=1.0)
    runner.gate.set()
    assert await answers(futures) == [2, 4]
