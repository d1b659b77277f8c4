import pytest
import torch
from torch.nn import functional as F

from benchmarks.breakdown import REST, kind_of, shares

wide = torch.randn(300, 300)
heads = torch.randn(2, 4, 200, 16)


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (lambda: wide @ wide, "linear layers, activations worked in"),
        (lambda: F.linear(wide, wide), "linear layers, activations worked in"),
        (lambda: F.scaled_dot_product_attention(heads, heads, heads), "attention"),
        (lambda: F.layer_norm(wide, (300,)), "norms"),
        (lambda: wide.exp(), REST),
    ],
)
def test_time_is_put_down_to_the_kind_of_operator_that_takes_it(run, kind):
    found = shares(run, "cpu")
    assert next(iter(found)) == kind
    assert sum(found.values()) == pytest.approx(1)


def test_packed_layers_are_linear_layers():
    assert kind_of("mkldnn::_linear_pointwise").startswith("linear")
