"""Which type serves fastest: known for cards, measured for processors, and never left to chance for small ones."""

import pytest
import torch

from prompted_clip import precision
from prompted_clip.backbone import image_tower_size, load_backbone
from prompted_clip.fused_linear import Linears
from prompted_clip.precision import CLEAR_GAIN, bfloat16_gain, fastest_dtype, fastest_linears
from tests.tiny import register_tiny_models, tiny_backbone

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """Sets what a measurement finds; packed bfloat16 layers are there."""
    monkeypatch.setattr(precision, "packs", lambda *_: True)
    return lambda gain: monkeypatch.setattr(precision, "bfloat16_gain", lambda _: gain)


@pytest.mark.parametrize(
    ("gain", "dtype"), [(7.0, torch.bfloat16), (CLEAR_GAIN, torch.bfloat16), (1.2, torch.float32), (0.1, torch.float32)]
)
def test_a_processor_gets_bfloat16_only_where_it_is_clearly_faster(measured, gain, dtype):
    measured(gain)
    assert fastest_dtype("ViT-B-16", "cpu") == dtype


@pytest.mark.parametrize("arch", ["demo-student", "demo-teacher", "tiny", "RN50", "no-such-model"])
def test_small_unsuitable_and_unknown_models_stay_in_float32_without_a_measurement(monkeypatch, arch):
    register_tiny_models()
    monkeypatch.setattr(precision, "bfloat16_gain", lambda _: pytest.fail("measured"))
    assert fastest_dtype(arch, "cpu") == torch.float32


def test_a_processor_without_packed_bfloat16_layers_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "packs", lambda *_: False)
    monkeypatch.setattr(precision, "bfloat16_gain", lambda _: pytest.fail("measured"))
    assert fastest_dtype("ViT-B-16", "cpu") == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)],
)
def test_a_card_gets_the_type_that_it_has_matrix_units_for(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fastest_dtype("ViT-B-16", "cuda:1") == dtype


def test_the_gain_is_over_the_faster_form_of_float32_by_the_best_times(monkeypatch):
    # Packed, plain, bfloat16; the first trial does not count.
    times_s = iter([9.0] * 3 + [0.5, 0.8, 0.4, 0.6, 0.3, 0.2, 0.4, 0.7, 0.1, 0.9, 0.5, 0.3, 0.5, 0.6, 0.2])
    monkeypatch.setattr(precision, "_time_s", lambda *_: next(times_s))
    monkeypatch.setattr(precision, "_Mlp", lambda *_: None)
    assert bfloat16_gain(8) == pytest.approx(3.0)


@pytest.mark.parametrize(("packed_s", "plain_s", "is_packed"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_float32_layers_take_the_form_that_is_faster_here(monkeypatch, packed_s, plain_s, is_packed):
    monkeypatch.setattr(Linears, "usual", lambda _, dtype: Linears(dtype, is_packed=True))
    monkeypatch.setattr(precision, "_best_times_s", lambda *_: [packed_s, plain_s])
    assert fastest_linears("ViT-B-16", CPU, torch.float32).is_packed is is_packed
    assert fastest_linears("ViT-B-16", CPU, torch.bfloat16).is_packed, "plain steps would pack them every time"


@pytest.mark.parametrize("arch", ["demo-student", "tiny", "no-such-model"])
def test_the_form_of_small_and_unknown_models_is_not_measured(monkeypatch, arch):
    register_tiny_models()
    monkeypatch.setattr(precision, "_best_times_s", lambda *_: pytest.fail("measured"))
    assert fastest_linears(arch, CPU, torch.float32) == Linears.usual(CPU, torch.float32)


def test_both_forms_of_float32_run_when_they_are_measured():
    assert fastest_linears("ViT-B-16", CPU, torch.float32).dtype == torch.float32


def test_a_size_known_by_name_is_that_of_the_loaded_model():
    register_tiny_models()
    size, backbone = image_tower_size("tiny"), tiny_backbone()
    assert (size.width, size.n_layers) == (backbone.vision_width, backbone.n_vision_layers)
    assert size.n_tokens == len(backbone.clip.visual.positional_embedding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_layer_norm_has_the_type_of_the_tokens_it_gets(dtype):
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, dtype=dtype)
    norms = [module for module in backbone.clip.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} == {dtype}
