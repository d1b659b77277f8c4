"""Training chooses its device and precision by the GPU's compute capability."""

import pytest
import torch

from tests.fakecuda.simulation import simulated_cuda
from training.errors import BackbonePairError
from training.hardware import autocast, resolve_device
from training.recipe import BoostRecipe

CUDA = torch.device("cuda")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="stands for GPUs of several kinds")


def is_bfloat16(precision, device=CUDA):
    with autocast(BoostRecipe(precision=precision), device):
        return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16


@pytest.mark.parametrize(("capability", "is_fast"), [((9, 0), True), ((8, 0), True), ((7, 5), False), ((6, 1), False)])
def test_auto_is_bfloat16_where_the_gpu_has_matrix_units_for_it(capability, is_fast):
    with simulated_cuda() as simulated:
        simulated.capability = capability
        assert is_bfloat16("auto") is is_fast
        assert is_bfloat16("bfloat16")
        assert not is_bfloat16("float32")


def test_auto_is_float32_on_a_cpu():
    assert not is_bfloat16("auto", torch.device("cpu"))


def test_a_gpu_that_torch_has_no_code_for_is_refused():
    with simulated_cuda() as simulated:
        assert resolve_device("auto") == "cuda"
        simulated.capability = (7, 0)
        with pytest.raises(BackbonePairError, match=r"compute capability 7\.0.*Install a torch build with sm_70"):
            resolve_device("cuda")
