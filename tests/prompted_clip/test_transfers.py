"""Host and device copies: their order on recorded CUDA streams, on the CPU, and on a real GPU."""

import numpy as np
import pytest
import torch

from prompted_clip.prompts import join_groups
from prompted_clip.transfers import CopyStream, map_tensors, nbytes, to_device, to_host
from tests.fakecuda.simulation import simulated_cuda
from tests.prompted_clip.noted_streams import noted_streams
from tests.tiny import random_pixels

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class RecordedTensor:
    """A tensor that records its copies."""

    def __init__(self, noted, device):
        self.noted, self.device = noted, device

    def to(self, device, **_):
        self.noted.notes.append(f"copied on {self.noted.current}")
        return RecordedTensor(self.noted, device)

    def record_stream(self, stream):
        self.noted.notes.append(f"kept for {stream.name}")


def test_images_are_copied_on_the_copy_stream_and_only_the_kernels_that_read_them_wait(monkeypatch):
    noted = noted_streams(monkeypatch)
    assert CopyStream(CUDA).copy(RecordedTensor(noted, CPU)).device == CUDA
    assert noted.notes == ["copied on side", "side is marked", "compute waits for side", "kept for compute"]


def test_images_that_are_on_the_device_already_are_not_copied_on_the_copy_stream(monkeypatch):
    noted = noted_streams(monkeypatch)
    CopyStream(CUDA).copy(RecordedTensor(noted, CUDA))
    assert noted.notes == ["copied on compute"], "which returns the tensor itself"


def test_numbers_become_tensors_of_the_device():
    assert to_device(np.arange(3), CPU).tolist() == to_device([0, 1, 2], CPU).tolist() == [0, 1, 2]


def test_tensors_of_nested_dataclasses_are_mapped_and_counted():
    grid = join_groups([torch.ones(2, 3, 4)])
    doubled = map_tensors(grid, lambda tensor: tensor * 2)
    assert torch.equal(doubled.tokens, grid.tokens * 2)
    assert (doubled.max_depth, nbytes(grid)) == (2, 2 * 3 * 4 * 4 + 3 * 8)


@pytest.mark.gpu
def test_images_that_go_to_the_gpu_and_come_back_are_the_same():
    stream = CopyStream(CUDA)
    for seed in range(20):
        images = random_pixels(64, seed=seed)
        there = stream.copy(images.pin_memory())
        back, sums = to_host(there, there.sum(dim=(1, 2, 3)))
        assert torch.equal(back, images)
        assert torch.equal(sums, images.sum(dim=(1, 2, 3)))
    assert to_device(np.arange(3), CUDA).tolist() == [0, 1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the copies of the simulated device")
def test_tensors_of_several_types_come_back_in_one_copy():
    values = [torch.arange(3, dtype=torch.uint8), torch.randn(3, 5), torch.arange(7), torch.randn(4, 6).T.half()]
    with simulated_cuda(eagerness=0.0) as simulated:
        there = [value.to("cuda") for value in values]
        simulated.launches.clear()
        for back, value in zip(to_host(*there), values, strict=True):
            assert torch.equal(back, value)
        assert simulated.launches["device to host copy"] == 1
    assert simulated.violations == []
