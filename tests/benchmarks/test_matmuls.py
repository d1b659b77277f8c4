"""The model's matrix products alone: exactly those of its forward, and nothing else."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.matmuls import forward_products
from benchmarks.operations import operations
from prompted_clip.fused_linear import Linears
from prompted_clip.vision import embed_image
from tests.tiny import tiny_backbone


@pytest.mark.parametrize("n_rows", [1, 3])
def test_they_are_as_many_operations_as_open_clips_forward(n_rows):
    backbone = tiny_backbone()
    with torch.no_grad():
        counted = operations(lambda: embed_image(backbone, torch.zeros(n_rows, 3, 32, 32)))
    assert forward_products(backbone, n_rows, linears=Linears(torch.float32, is_packed=True)).operations == counted


@pytest.mark.parametrize("n_prompts", [0, 4])
@pytest.mark.parametrize("with_attention", [True, False])
@pytest.mark.parametrize("in_slices", [True, False])
def test_a_run_computes_as_many_operations_as_are_named(monkeypatch, n_prompts, with_attention, in_slices):
    monkeypatch.setattr(Linears, "slices", lambda *_: [slice(0, 64), slice(64, 128)])
    products = forward_products(
        tiny_backbone(),
        2,
        linears=Linears(torch.float32, is_packed=False),  # torch counts no operations of packed layers
        n_prompts=n_prompts,
        with_attention=with_attention,
        in_slices=in_slices,
    )
    with FlopCounterMode(display=False) as counter:
        products.run()
    assert counter.get_total_flops() == products.operations
