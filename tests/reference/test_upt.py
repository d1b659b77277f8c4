"""Loss and gradients of UPT match its equations, in float64."""

import pytest
import torch

from tests.base_models import tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import assert_same_step, cross_entropy, slow_features
from tests.reference.slow_upt import linear, transformed
from training.adapting.upt import UPT, UPTRecipe


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
