"""What travels between host and device: on a GPU that only notes, on the CPU, and on a real one."""

import numpy as np
import pytest
import torch

from prompted_clip.transfers import Inbound, Outbound, sent
from tests.prompted_clip.noted_streams import noted_streams
from tests.tiny import random_pixels

CUDA = torch.device("cuda")


class Parcel:
    """A tensor as far as sending it goes."""

    def __init__(self, noted, device):
        self.noted, self.device = noted, device

    def to(self, device, **_):
        self.noted.notes.append(f"copied on {self.noted.current}")
        return Parcel(self.noted, device)

    def record_stream(self, stream):
        self.noted.notes.append(f"kept for {stream.name}")


def test_a_tensor_is_sent_beside_what_runs_and_only_what_reads_it_waits(monkeypatch):
    noted = noted_streams(monkeypatch)
    on_its_way = Outbound(CUDA).send(Parcel(noted, torch.device("cpu")))
    assert noted.notes == ["copied on side", "side is marked"]
    assert on_its_way.received().device == CUDA
    assert noted.notes[2:] == ["compute waits for side", "kept for compute"]


def test_a_tensor_that_is_there_already_is_not_sent(monkeypatch):
    noted = noted_streams(monkeypatch)
    Outbound(CUDA).send(Parcel(noted, CUDA)).received()
    assert noted.notes == ["copied on compute"], "which gives the tensor itself"


def test_on_the_cpu_everything_is_where_it_is():
    tensor = torch.arange(6.0)
    assert Outbound(torch.device("cpu")).send(tensor).received() is tensor
    assert Inbound(tensor).wait()[0] is tensor
    assert sent(np.arange(3), torch.device("cpu")).tolist() == [0, 1, 2]


@pytest.mark.gpu
def test_what_goes_to_the_gpu_and_comes_back_is_the_same():
    outbound = Outbound(CUDA)
    for seed in range(20):
        images = random_pixels(64, seed=seed)
        there = outbound.send(images.pin_memory()).received()
        back, sums = Inbound(there, there.sum(dim=(1, 2, 3))).wait()
        assert torch.equal(back, images)
        assert torch.equal(sums, images.sum(dim=(1, 2, 3)))
    assert sent(np.arange(3), CUDA).tolist() == [0, 1, 2]
