"""Loss and gradients of UPT match its equations, in float64."""

import math

import pytest
import torch

from tests.base_models import tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import assert_same_step, cross_entropy, slow_features
from training.adapting.upt import UPT, UPTRecipe


def layer_norm(x, tensors, name):
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x, tensors, name):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def attention(x, tensors, heads, size):
    """Each head by itself; query, key and value maps are thirds of one matrix."""
    width, mixed = heads * size, []
    joint = linear(x, tensors, "queries_keys_values")
    for head in range(heads):
        q, k, v = (joint[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
        mixed.append((q @ k.T / math.sqrt(size)).softmax(dim=-1) @ v)
    return linear(torch.cat(mixed, dim=1), tensors, "attention_out")


def transformed(u, tensors, heads, size):
    """U' = SA(U) + LN(U), then FFN(LN(U')) + LN(U')."""
    u = attention(u, tensors, heads, size) + layer_norm(u, tensors, "norm_attention")
    u = layer_norm(u, tensors, "norm_ffn")
    return linear(linear(u, tensors, "ffn_in").clamp(min=0), tensors, "ffn_out") + u


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize(("depth", "heads"), [(1, 1), (3, 2)])
def test_a_step_of_upt_matches_its_equations(boost, depth, heads):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = UPTRecipe(tokens=2, depth=depth, heads=heads, head_width=8, ffn_width=12)
    method = perturbed(UPT(base_model, CLASS_NAMES, recipe).double())
    batch, tensors = pixel_batch(base_model), dict(method.named_parameters())

    layers = [transformed(u, tensors, heads, 8) for u in tensors["unified"]]
    text_prompts = torch.stack([linear(layer[:2], tensors, "to_text") for layer in layers])
    image_prompts = torch.stack([linear(layer[2:], tensors, "to_image") for layer in layers])
    texts = [f"{name}." for name in CLASS_NAMES]
    f, g, s = slow_features(base_model, batch.images_BCHW, texts, image_prompts, text_prompts)

    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))
