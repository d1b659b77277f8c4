"""The order in which copies and forwards wait for each other, on a GPU that only notes what it is told."""

import contextlib

import pytest
import torch

from prompted_clip.side_stream import SideStream
from tests.prompted_clip.noted_streams import noted_streams


@pytest.fixture
def noted(monkeypatch):
    return noted_streams(monkeypatch)


def test_a_forward_waits_for_what_was_written_and_a_write_for_those_who_read_what_it_replaces(noted):
    side = SideStream(torch.device("cuda"))
    with side.writing():
        assert noted.current == "side"
    side.wait_for_writes()
    mark = side.read_until_now()
    with side.writing():
        pass
    assert noted.notes == ["side is marked", "compute waits for side", "compute is marked", "side is marked"]
    side.write_after(mark)
    assert noted.notes[4:] == ["side waits for compute"]


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
    side.write_after(side.read_until_now())
    assert noted.notes == []
