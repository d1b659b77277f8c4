"""CUDA streams and events that only record their order."""

import contextlib

import torch


class NotedStreams:
    """Stands for `torch.cuda`; `current` names the stream that work goes to."""

    def __init__(self):
        self.notes, self.current = [], "compute"

    def stream(self, name):
        noted = self

        class Stream:
            def wait_event(self, event):
                noted.notes.append(f"{name} waits for {event.recorded_on}")

            def record_event(self, event=None):
                event = event or noted.event()
                event.record(self)
                return event

        Stream.name = name
        return Stream()

    def event(self, **_):
        noted = self

        class Event:
            recorded_on = "nothing"

            def record(self, stream=None):
                self.recorded_on = stream.name if stream is not None else noted.current
                noted.notes.append(f"{self.recorded_on} is marked")

            def synchronize(self):
                noted.notes.append(f"the host waits for {self.recorded_on}")

        return Event()

    @contextlib.contextmanager
    def switch(self, stream):
        self.current = stream.name
        try:
            yield
        finally:
            self.current = "compute"


def noted_streams(monkeypatch):
    """Put one in the place of the real ones."""
    noted = NotedStreams()
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: noted.stream("side"))
    monkeypatch.setattr(torch.cuda, "Event", noted.event)
    monkeypatch.setattr(torch.cuda, "stream", noted.switch)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: noted.stream(noted.current))
    return noted
