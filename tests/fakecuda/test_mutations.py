"""Every wait, event, copy and `record_stream` that is left out of the CUDA code is found by the simulated device."""

import pytest
import torch

from prompted_clip.backbone import load_backbone
from prompted_clip.fused_tower import FusedImageTower
from prompted_clip.graphs import GraphedTower
from prompted_clip.transfers import CopyStream, to_host
from tests.fakecuda.mutations import all_mutations
from tests.fakecuda.simulation import simulated_cuda
from tests.tiny import random_pixels, register_tiny_models

SCHEDULES = [(0, 0.0), (1, 0.3), (2, 0.6)]  # seed and eagerness
MUTATIONS = all_mutations()


class SometimesFull:
    """A tower that runs out of memory, after its kernels, while `is_full`."""

    def __init__(self, tower):
        self._tower, self.is_full = tower, False

    def __call__(self, pixels, grid=None):
        found = self._tower(pixels, grid)
        if self.is_full:
            raise torch.OutOfMemoryError("full")
        return found


def copies():
    """Images go to the device one after another, are read there, freed, and their sums come back."""
    stream = CopyStream(torch.device("cuda"))
    batches = [random_pixels(4, seed=seed) for seed in range(4)]
    sums = [stream.copy(images.pin_memory()).sum(dim=(1, 2, 3)) for images in batches]
    for images, found in zip(batches, to_host(*sums), strict=True):
        assert torch.equal(found, images.sum(dim=(1, 2, 3)))


def replays():
    """Batches of several sizes run as graphs; one capture fails in its warm-up."""
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device="cuda")
    tower = SometimesFull(FusedImageTower(backbone))
    runs = GraphedTower(tower, backbone, max_rows=4)
    batches = [random_pixels(n_rows, seed=n_rows).to("cuda") for n_rows in (2, 1, 2)]
    answers = [runs(pixels) for pixels in batches]
    tower.is_full = True
    with pytest.raises(torch.OutOfMemoryError):
        runs(random_pixels(3).to("cuda"))
    tower.is_full = False
    answers.append(runs(batches[0]))
    for pixels, answer in zip([*batches, batches[0]], answers, strict=True):
        torch.testing.assert_close(answer.cpu(), tower(pixels).cpu(), rtol=0, atol=1e-5)


SCENARIOS = {"transfers": copies, "graphs": replays}


def faults(scenario):
    """Violations and wrong answers of a scenario under all schedules."""
    found = []
    for seed, eagerness in SCHEDULES:
        with simulated_cuda(seed=seed, eagerness=eagerness) as simulated:
            try:
                scenario()
            except AssertionError as error:
                found.append(str(error))
        found += simulated.violations
    return found


@pytest.fixture(autouse=True)
def without_a_real_gpu():
    if torch.cuda.is_available():
        pytest.skip("the simulated device stands for CUDA where there is none")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_unchanged_code_has_no_race(name):
    assert faults(SCENARIOS[name]) == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_every_omission_is_found(mutation, monkeypatch):
    function, code = mutation.code()
    monkeypatch.setattr(function, "__code__", code)
    assert faults(SCENARIOS[mutation.module.__name__.split(".")[-1]])


def test_every_wait_event_and_copy_of_the_cuda_code_has_a_mutation():
    assert {mutation.function for mutation in MUTATIONS} == {
        "GraphedTower.capture",
        "_Graph.replay",
        "CopyStream.copy",
        "to_host",
    }
    assert len(MUTATIONS) == 8
