"""The order in which copies and forwards wait for each other, on a GPU that only notes what it is told."""

import contextlib

import pytest
import torch

from prompted_clip.side_stream import SideStream


class Noted:
    """Streams and events that write down who waits for what."""

    def __init__(self):
        self.notes, self.current = [], "compute"

    def stream(self, name):
        noted = self

        class Stream:
            def wait_event(self, event):
                noted.notes.append(f"{name} waits for {event.recorded_on}")

        Stream.name = name
        return Stream()

    def event(self):
        noted = self

        class Event:
            recorded_on = "nothing"

            def record(self, stream=None):
                self.recorded_on = stream.name if stream is not None else noted.current
                noted.notes.append(f"{self.recorded_on} is marked")

        return Event()

    @contextlib.contextmanager
    def switch(self, stream):
        self.current = stream.name
        try:
            yield
        finally:
            self.current = "compute"


@pytest.fixture
def noted(monkeypatch):
    noted = Noted()
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: noted.stream("side"))
    monkeypatch.setattr(torch.cuda, "Event", noted.event)
    monkeypatch.setattr(torch.cuda, "stream", noted.switch)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: noted.stream(noted.current))
    return noted


def test_a_forward_waits_for_what_was_written_and_a_write_for_what_was_read(noted):
    side = SideStream(torch.device("cuda"))
    with side.writing():
        assert noted.current == "side"
    side.wait_for_writes()
    side.mark_read()
    with side.writing():
        pass
    assert noted.notes == [
        "side waits for nothing",
        "side is marked",
        "compute waits for side",
        "compute is marked",
        "side waits for compute",
        "side is marked",
    ]


def test_a_write_that_fails_is_not_waited_for(noted):
    side = SideStream(torch.device("cuda"))
    with contextlib.suppress(MemoryError), side.writing():
        raise MemoryError
    side.wait_for_writes()
    assert noted.notes[-1] == "compute waits for nothing"


def test_on_the_cpu_nothing_waits(noted):
    side = SideStream(torch.device("cpu"))
    with side.writing():
        assert noted.current == "compute"
    side.wait_for_writes()
    side.mark_read()
    assert noted.notes == []
