"""Loops without progress, and background work that fails."""

import asyncio
import logging
import threading

import pytest

from service.observability import watchdog
from service.observability.watchdog import Heartbeat, Watchdog, keep_running


def events(caplog):
    return [(record.getMessage(), getattr(record, "loop", None)) for record in caplog.records]


def test_a_loop_that_stops_is_logged_once_with_the_stacks_of_all_threads_and_once_when_it_goes_on(caplog):
    caplog.set_level(logging.INFO)
    dog, loop = Watchdog(), Heartbeat("store", stuck_after_s=3)
    with dog.watching(loop, Heartbeat("other", stuck_after_s=60)):
        for _ in range(3):
            dog.tick(1)
        assert dog.stuck == []
        dog.tick(1)
        dog.tick(1)
        assert dog.stuck == ["store"]
        loop.beat()
        dog.tick(1)
        assert dog.stuck == []
    assert events(caplog) == [("loop.stuck", "store"), ("loop.resumed", "store")]


def test_the_log_shows_where_a_stuck_thread_is(caplog):
    entered, leave = threading.Event(), threading.Event()

    def waits_for_ever():
        entered.set()
        leave.wait(20)

    thread = threading.Thread(target=waits_for_ever, name="device_0")
    thread.start()
    assert entered.wait(20)
    dog = Watchdog()
    with dog.watching(Heartbeat("event_loop", stuck_after_s=0)):
        dog.tick(1)
    leave.set()
    thread.join()
    assert "waits_for_ever" in caplog.records[0].stacks["device_0"]


def test_a_loop_that_has_ended_is_no_longer_watched():
    dog = Watchdog()
    with dog.watching(Heartbeat("smoke_tests", stuck_after_s=1)):
        pass
    dog.tick(100)
    assert dog.stuck == []


def test_time_in_which_the_watchdog_does_not_run_is_not_counted(monkeypatch):
    """A stopped process: the clock goes on, the turns do not."""
    turns, ended = iter([3600.0, 3600.0]), threading.Event()
    dog, loop = Watchdog(), Heartbeat("event_loop", stuck_after_s=5)
    monkeypatch.setattr(watchdog.time, "sleep", lambda _: None)
    with dog.watching(loop):
        dog.start(lambda: None if next(turns, None) else "over", lambda _: ended.set())
        assert ended.wait(20)
        assert loop.silent_s == 2 * watchdog.TURN_S
        assert dog.stuck == []


def test_a_fatal_reason_ends_the_process_with_status_70(monkeypatch, caplog):
    statuses, ended = [], threading.Event()
    monkeypatch.setattr(watchdog, "TURN_S", 0.01)
    monkeypatch.setattr(watchdog, "GRACE_S", 0.01)
    reasons = iter([None, None, "device_stuck"])
    Watchdog().start(lambda: next(reasons), lambda status: (statuses.append(status), ended.set()))
    assert ended.wait(20)
    assert statuses == [70]
    assert [record.reason for record in caplog.records] == ["device_stuck"]


@pytest.mark.anyio
async def test_work_that_fails_or_is_cancelled_from_inside_is_restarted_and_logged(monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "RESTART_S", 0)
    failures = iter([ValueError("once"), asyncio.CancelledError(), None])

    async def work():
        if failure := next(failures):
            raise failure

    await keep_running("store", work)
    assert events(caplog) == [("task.restarted", None)] * 2
    assert next(failures, "all used") == "all used"


@pytest.mark.anyio
async def test_work_whose_task_is_cancelled_ends():
    task = asyncio.create_task(keep_running("store", asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
