"""The watch over a web process: heartbeats, silence, nonsense."""

import asyncio
from types import SimpleNamespace

import pytest

from service.errors import DeviceLostError
from service.workers import device_process
from service.workers.device_process import SILENT_S, START_S, _watch

pytestmark = pytest.mark.anyio


class Worker:
    """Its counts, and what its next responses are: an exception, or None for no response."""

    def __init__(self, *responses, samples=("count",)):
        self.samples = list(samples)
        self.n_calls = 0
        self._responses = list(responses)

    async def refresh_counts(self):
        self.n_calls += 1
        if not self._responses:
            await asyncio.Event().wait()
        if isinstance(response := self._responses.pop(0), Exception):
            raise response


class Process:
    pid = 1

    def __init__(self):
        self.is_killed = False

    def kill(self):
        self.is_killed = True


@pytest.fixture
def turns(monkeypatch):
    """The time that the watch has waited, in turns of a second that take none."""
    seen = SimpleNamespace(n_waits=0)
    wait = asyncio.wait

    async def counted(tasks, **options):
        seen.n_waits += 1
        return await wait(tasks, **options)

    monkeypatch.setattr(device_process.asyncio, "wait", counted)
    monkeypatch.setattr(device_process, "TURN_S", 0.01)
    monkeypatch.setattr(device_process, "DISCONNECTED_KILL_S", 0.01)
    return seen


@pytest.mark.parametrize(("samples", "n_turns"), [(("count",), SILENT_S), ((), START_S)])
async def test_a_silent_web_process_is_killed_later_while_it_starts(turns, samples, n_turns, caplog):
    process = Process()
    await asyncio.wait_for(_watch(Worker(samples=samples), process), 20)
    assert process.is_killed
    assert turns.n_waits == n_turns
    assert [record.getMessage() for record in caplog.records] == ["web.unresponsive"]


async def test_a_response_ends_the_silence(turns):
    process, worker = Process(), Worker("fine", "fine", "fine")
    await asyncio.wait_for(_watch(worker, process), 20)
    assert worker.n_calls == 4
    assert turns.n_waits >= 3 + SILENT_S
    assert process.is_killed


@pytest.mark.parametrize(
    ("error", "event"), [(DeviceLostError("gone"), []), (ValueError("nonsense"), ["web.invalid_counts"])]
)
async def test_a_web_process_that_is_disconnected_or_sends_nonsense_is_killed(turns, error, event, caplog):
    process = Process()
    await asyncio.wait_for(_watch(Worker(error), process), 20)
    assert process.is_killed
    assert [record.getMessage() for record in caplog.records] == event


async def test_a_web_process_that_has_ended_is_not_killed():
    process = Process()
    watching = asyncio.ensure_future(_watch(Worker(), process))
    await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert not process.is_killed
