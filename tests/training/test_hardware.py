"""Device and precision of training for a GPU's compute capability, and frozen weights in bfloat16."""

import dataclasses

import pytest
import torch

from prompted_clip import internals
from prompted_clip.backbone import load_backbone
from prompted_clip.text import encode_classes
from prompted_clip.vision import encode_image
from tests.fakecuda.simulation import simulated_cuda
from tests.tiny import register_tiny_models, tiny_backbone
from training.errors import BackbonePairError
from training.hardware import autocast, resolve_device
from training.recipe import BoostRecipe

CUDA = torch.device("cuda")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="simulates GPUs of several kinds")


def is_bfloat16(precision, device=CUDA):
    with autocast(BoostRecipe(precision=precision), dataclasses.replace(tiny_backbone(), device=device)):
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


def test_frozen_weights_are_cast_once_and_give_the_same_numbers():
    register_tiny_models()
    bfloat16 = BoostRecipe(precision="bfloat16")
    images_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with simulated_cuda() as simulated, torch.no_grad():
        backbone = load_backbone("tiny", random_seed=0, device="cuda")
        images_BCHW = images_BCHW.to("cuda")

        def encode():
            simulated.launches.clear()
            texts = encode_classes(backbone, ["a cat", "a striped dog"], ["{}"])
            return torch.cat([encode_image(backbone, images_BCHW), texts]).cpu(), simulated.launches.total()

        exact, _ = encode()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            expected, n_before = encode()
        with autocast(bfloat16, backbone):
            weights = [
                (owner, name, getattr(owner, name)) for owner, name, _ in internals.matrix_weights(backbone.clip)
            ]
            with autocast(bfloat16, backbone):
                nested, n_launches = encode()
            again, _ = encode()
        after, _ = encode()
        assert all(weight.dtype == torch.bfloat16 for _, _, weight in weights)
        with autocast(bfloat16, backbone):
            assert all(getattr(owner, name) is weight for owner, name, weight in weights)
        assert all(getattr(owner, name).dtype == torch.float32 for owner, name, _ in weights)
    assert torch.equal(nested, expected)
    assert torch.equal(again, expected)
    assert torch.equal(after, exact)
    assert n_launches == n_before - len(weights)


def test_weights_are_float32_again_after_a_failed_forward():
    backbone = dataclasses.replace(tiny_backbone(), device=CUDA)

    def fail():
        with autocast(BoostRecipe(precision="bfloat16"), backbone):
            assert torch.bfloat16 in {weight.dtype for weight in backbone.clip.parameters()}
            raise ValueError("failed")

    with simulated_cuda(), pytest.raises(ValueError, match="failed"):
        fail()
    assert {weight.dtype for weight in backbone.clip.parameters()} == {torch.float32}
