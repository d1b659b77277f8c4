"""Linear layers with what follows them worked in; a failure of the first test names what torch moved."""

import pytest
import torch
from torch.nn import functional as F

from prompted_clip import fused_linear as module
from prompted_clip.fused_linear import Linears, PackedLinear, PlainLinear, packs

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


def test_types_without_packed_layers_are_computed_plainly():
    weight, bias, x, _ = layer_parts(torch.float64)
    layer = Linears.usual(CPU, torch.float64).layer(weight, bias, "silu")
    assert isinstance(layer, PlainLinear)
    torch.testing.assert_close(layer(x), F.silu(F.linear(x, weight, bias)))


def test_without_onednn_layers_are_computed_plainly(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight, bias, *_ = layer_parts(torch.float32)
    assert isinstance(Linears.usual(CPU, torch.float32).layer(weight, bias), PlainLinear)


def test_weights_of_another_device_are_not_packed():
    assert not packs(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("n_inputs", [1, 64, 1024, 1025, 3072, 3073, 4096, 5120])
def test_slices_cover_wide_inputs_in_order_in_nearly_equal_shares(n_inputs):
    slices = Linears(torch.bfloat16, is_packed=True).slices(n_inputs)
    assert [index for part in slices for index in range(n_inputs)[part]] == list(range(n_inputs))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) <= module.MOST_INPUTS + 64
    assert max(sizes) - min(sizes) <= 2 * 64
    assert all(part.start % 64 == 0 for part in slices)


@pytest.mark.parametrize(("dtype", "is_packed"), [(torch.float32, True), (torch.bfloat16, False)])
def test_where_wide_products_are_not_slow_they_stay_whole(dtype, is_packed):
    assert Linears(dtype, is_packed).slices(4096) == [slice(0, 4096)]
