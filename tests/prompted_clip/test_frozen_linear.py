"""Frozen linear layers; a failure of the first test names the operator that torch moved."""

import pytest
import torch
from torch.nn import functional as F

from prompted_clip.frozen_linear import PackedLinear, PlainLinear, make_linear, packs

CPU = torch.device("cpu")
KINDS = [PlainLinear, PackedLinear]
ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu, "silu": F.silu}
needs_packing = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def layer_parts(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"weight": (48, 32), "bias": (48,), "x": (7, 32), "residual": (7, 48)}
    return [torch.randn(*size, generator=generator).to(dtype) for size in sizes.values()]


@needs_packing
def test_torch_still_has_the_operators_behind_packed_layers():
    for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"):
        assert hasattr(torch.ops.mkldnn, name), f"torch moved `mkldnn::{name}`; serving on the CPU falls back to plain"
    assert "binary" in torch.ops.mkldnn._linear_pointwise.overloads()
    assert packs(CPU, torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_its_product_its_bias_and_its_activation(kind, activation):
    weight, bias, x, _ = layer_parts(torch.float32)
    expected = ACTIVATIONS[activation](x @ weight.T + bias)
    torch.testing.assert_close(kind(weight, bias, activation)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_is_added_and_stays_as_it_was(kind):
    weight, bias, x, residual = layer_parts(torch.float32)
    before = residual.clone()
    torch.testing.assert_close(kind(weight, bias)(x, residual), x @ weight.T + bias + residual, rtol=1e-5, atol=1e-5)
    assert torch.equal(residual, before)


@pytest.mark.skipif(not packs(CPU, torch.bfloat16), reason="this processor packs no bfloat16")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_bfloat16_only_the_answer_is_rounded(activation):
    weight, bias, x, residual = layer_parts(torch.bfloat16)
    exact = ACTIVATIONS[activation](x.double() @ weight.double().T + bias.double())
    layer = PackedLinear(weight, bias, activation)
    torch.testing.assert_close(layer(x).double(), exact, rtol=2**-7, atol=2**-9)
    if activation == "none":
        torch.testing.assert_close(layer(x, residual).double(), exact + residual.double(), rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float64), ("cpu", torch.float16), ("cuda", torch.bfloat16)]
)
def test_other_devices_and_dtypes_are_not_packed(device, dtype):
    assert not packs(torch.device(device), dtype)


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not packs(CPU, torch.float32)


def test_layers_are_made_in_the_form_and_dtype_asked_for():
    weight, bias, x, _ = layer_parts(torch.float32)
    plain = make_linear(weight, bias, "silu", dtype=torch.float64, packed=False)
    assert isinstance(plain, PlainLinear)
    assert plain(x.double()).dtype == torch.float64
    if packs(CPU, torch.float32):
        assert isinstance(make_linear(weight, bias, dtype=torch.float32, packed=True), PackedLinear)
