"""Weights are compared with the architecture before they are used."""

import logging
import math

import pytest
import torch
from safetensors.torch import save_file

from prompted_clip.backbone import load_backbone
from prompted_clip.errors import WeightsError
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone


@pytest.fixture(autouse=True)
def _tiny_models():
    register_tiny_models()


@pytest.fixture
def load(tmp_path):
    """Load the tiny backbone from its own tensors with some replaced, or removed if None."""

    def load_changed(changes, **options):
        state = {name: tensor.clone().contiguous() for name, tensor in tiny_backbone().clip.state_dict().items()}
        state = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
        save_file(state, tmp_path / "weights.safetensors")
        return load_backbone("tiny", pretrained=str(tmp_path / "weights.safetensors"), **options)

    return load_changed


def refusal(load, changes, **options):
    with pytest.raises(WeightsError) as caught:
        load(changes, **options)
    return str(caught.value)


def longer(name, n_positions):
    return {name: torch.randn(n_positions, tiny_backbone().clip.state_dict()[name].shape[1])}


def test_another_text_length_is_an_error_that_names_both(load):
    message = refusal(load, longer("positional_embedding", 154))
    assert "positional_embedding is [154, 32], not [77, 32]" in message
    assert "154 positions" in message
    assert "77 positions" in message
    assert "--interpolate-positions" in message


def test_another_image_grid_is_an_error_that_names_both(load):
    message = refusal(load, longer("visual.positional_embedding", 1 + 36))
    assert "6 x 6 patches" in message
    assert "4 x 4 patches" in message
    assert "--interpolate-positions" in message


@pytest.mark.parametrize(
    ("name", "n_positions", "message"),
    [
        ("positional_embedding", 154, "interpolated 154 text positions to 77"),
        ("visual.positional_embedding", 37, "interpolated 37 image positions to 17"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_are_interpolated_on_request_with_a_warning(load, caplog, name, n_positions, message, dtype):
    positions = {key: value.to(dtype) for key, value in longer(name, n_positions).items()}
    loaded = load(positions, interpolate_positions=True)
    assert loaded.clip.state_dict()[name].shape == tiny_backbone().clip.state_dict()[name].shape
    assert any(message in record.getMessage() and record.levelno == logging.WARNING for record in caplog.records)


def test_weights_of_another_architecture_name_the_one_that_fits(tmp_path):
    teacher = tiny_backbone("tiny-teacher").clip
    save_file({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}, tmp_path / "t.safetensors")
    with pytest.raises(
        WeightsError, match=r"does not fit tiny: .*has the size of tiny-teacher: pass that as --backbone"
    ):
        load_backbone("tiny", pretrained=str(tmp_path / "t.safetensors"))


def test_a_changed_shape_names_the_tensor(load):
    message = refusal(load, {"visual.proj": torch.ones(32, 25)})
    assert "visual.proj is [32, 25], not [32, 24]" in message
    assert "--interpolate-positions" not in message


def test_missing_and_unknown_tensors_are_named(load):
    message = refusal(load, {"visual.proj": None, "ln_final.bias": None, "adapter.weight": torch.ones(1)})
    assert "2 tensors are missing: ln_final.bias, visual.proj" in message
    assert "1 are unknown: adapter.weight" in message


def test_the_layout_of_hugging_face_transformers_is_recognised(tmp_path):
    names = ("text_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.class_embedding")
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layout of Hugging Face transformers.*--pretrained openai"):
        load_backbone("tiny", pretrained=str(tmp_path / "model.safetensors"))


def test_a_bundle_of_prompts_is_recognised(tmp_path):
    (tmp_path / "pets.safetensors").write_bytes(random_bundle())
    with pytest.raises(WeightsError, match="is a bundle of prompts, not weights of a backbone"):
        load_backbone("tiny", pretrained=str(tmp_path / "pets.safetensors"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite_name_their_tensor(load, value, dtype):
    damaged = tiny_backbone().clip.state_dict()["visual.conv1.weight"].to(dtype, copy=True)
    damaged[3, 1, 2, 2] = value
    assert "NaN, infinity or only zeros in visual.conv1.weight" in refusal(load, {"visual.conv1.weight": damaged})


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(load, dtype):
    message = refusal(load, {"visual.proj": torch.ones(32, 24).to(dtype)})
    assert f"is quantised: visual.proj is {dtype}" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_types_are_converted(load, dtype):
    proj = tiny_backbone().clip.state_dict()["visual.proj"].to(dtype)
    assert torch.equal(load({"visual.proj": proj}).clip.visual.proj, proj.float())


def test_a_matrix_of_zeros_is_refused(load):
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    zeros = torch.zeros_like(tiny_backbone().clip.state_dict()[name])
    assert f"only zeros in {name}" in refusal(load, {name: zeros})


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_logit_scale_stored_without_logarithm_is_converted_with_a_warning(load, caplog, shape):
    loaded = load({"logit_scale": torch.full(shape, 100.0)})
    assert loaded.logit_scale == pytest.approx(100)
    assert loaded.fingerprint == load({"logit_scale": torch.tensor(math.log(100))}).fingerprint
    assert "stores the logit scale 100 itself instead of its natural logarithm; using 4.6052" in caplog.text


@pytest.mark.parametrize("value", [0.01, -4.6, 1000.0, math.nan, math.inf])
def test_an_implausible_logit_scale_is_refused(load, value):
    message = refusal(load, {"logit_scale": torch.tensor(value)})
    assert "expected the natural logarithm of the scale" in message
    assert "4.6052 = ln 100" in message


@pytest.mark.parametrize("scale", [10.0, 1 / 0.07, 100.0])
def test_the_usual_logit_scales_are_kept(load, caplog, scale):
    assert load({"logit_scale": torch.tensor(math.log(scale))}).logit_scale == pytest.approx(scale)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_log_names_the_weights_in_use(load, caplog):
    with caplog.at_level(logging.INFO, "prompted_clip"):
        loaded = load({})
    (record,) = [record for record in caplog.records if record.getMessage() == "backbone.loaded"]
    assert record.arch == "tiny"
    assert record.pretrained == "weights.safetensors"
    assert record.n_tensors == len(loaded.clip.state_dict())
    assert record.fingerprint == loaded.fingerprint
    assert record.activation == "GELU"
    assert record.preprocess["mean"] == loaded.preprocess["mean"]
