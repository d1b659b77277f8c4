"""The fastest dtype and form of linear layers: by compute capability on GPUs, timed on CPUs, fixed for small towers."""

import pytest
import torch

from prompted_clip import precision
from prompted_clip.backbone import load_backbone
from prompted_clip.precision import MIN_GAIN, fastest_dtype, is_heavy, is_packed_faster
from tests.tiny import register_tiny_models

CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch):
    """Sets the seconds of layers by dtype and form; every form is supported."""

    def set_times(**seconds):
        names = {(torch.float32, True): "packed", (torch.float32, False): "plain", (torch.bfloat16, True): "bfloat16"}
        monkeypatch.setattr(precision, "packs", lambda *_: True)
        monkeypatch.setattr(precision, "time_layers", lambda _, dtype, packed: seconds[names[dtype, packed]])

    return set_times


def not_timed(*_, **__):
    pytest.fail("timed")


@pytest.mark.parametrize(
    ("gain", "dtype"), [(7.0, torch.bfloat16), (MIN_GAIN, torch.bfloat16), (1.2, torch.float32), (0.1, torch.float32)]
)
@pytest.mark.parametrize(("packed", "plain"), [(1.0, 2.0), (2.0, 1.0)])
def test_a_processor_gets_bfloat16_only_if_it_beats_the_faster_form_of_float32(timed, packed, plain, gain, dtype):
    timed(packed=packed, plain=plain, bfloat16=1.0 / gain)
    assert fastest_dtype("ViT-B-16", "cpu") == dtype


@pytest.mark.parametrize("arch", ["demo-student", "demo-teacher", "tiny", "RN50", "no-such-model"])
def test_small_unsuitable_and_unknown_models_stay_in_float32_without_a_measurement(monkeypatch, arch):
    register_tiny_models()
    monkeypatch.setattr(precision, "time_layers", not_timed)
    assert fastest_dtype(arch, "cpu") == torch.float32


def test_a_processor_without_packed_bfloat16_layers_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "packs", lambda *_: False)
    monkeypatch.setattr(precision, "time_layers", not_timed)
    assert fastest_dtype("ViT-B-16", "cpu") == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)],
)
def test_a_gpu_gets_the_dtype_of_its_matrix_units(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fastest_dtype("ViT-B-16", "cuda:1") == dtype


@pytest.mark.parametrize(("packed", "plain"), [(1.0, 2.0), (2.0, 1.0)])
def test_float32_layers_take_the_faster_form_and_bfloat16_is_always_packed(timed, packed, plain):
    timed(packed=packed, plain=plain)
    assert is_packed_faster("ViT-B-16", CPU, torch.float32) is (packed < plain)
    assert is_packed_faster("ViT-B-16", CPU, torch.bfloat16)


@pytest.mark.parametrize("arch", ["demo-student", "tiny", "no-such-model"])
def test_small_and_unknown_models_are_packed_where_possible_without_a_measurement(monkeypatch, arch):
    register_tiny_models()
    monkeypatch.setattr(precision, "time_layers", not_timed)
    assert is_packed_faster(arch, CPU, torch.float32) is precision.packs(CPU, torch.float32)


@pytest.mark.parametrize("packed", [True, False])
def test_layers_are_timed_by_their_best_trial_after_a_warm_up(monkeypatch, packed):
    times_s = iter([0.01, 5.0, 3.0, 4.0, 2.0, 6.0])
    monkeypatch.setattr(precision, "_time_s", lambda *_: next(times_s))
    assert precision.time_layers("demo-student", torch.float32, packed=packed) == 2.0


@pytest.mark.parametrize(("arch", "expected"), [("ViT-B-16", True), ("demo-student", False), ("RN50", False)])
def test_a_full_size_vit_is_heavy_and_small_ones_and_resnets_are_not(arch, expected):
    assert is_heavy(arch) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_layer_norm_has_the_backbones_dtype(dtype):
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, dtype=dtype)
    norms = [module for module in backbone.clip.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} == {dtype}
