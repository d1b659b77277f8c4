"""Loss and gradients of MaPLe match its equations, in float64."""

import pytest
import torch

from tests.base_models import tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import assert_same_step, cross_entropy, slow_features
from training.adapting.maple import MaPLe, MaPLeRecipe


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_step_of_maple_matches_its_equations(boost, depth):
    base_model = tiny_base_model(boost, torch.float64)
    method = perturbed(MaPLe(base_model, CLASS_NAMES, MaPLeRecipe(depth=depth)).double())
    batch, tensors = pixel_batch(base_model), dict(method.named_parameters())

    image_prompts = [
        [weight @ token + bias for token in tensors["text_prompts"][layer]]
        for layer in range(depth)
        for weight, bias in [(tensors[f"couplings.{layer}.weight"], tensors[f"couplings.{layer}.bias"])]
    ]
    image_prompts = torch.stack([torch.stack(layer) for layer in image_prompts])
    texts = [f"of a {name}." for name in CLASS_NAMES]
    f, g, s = slow_features(base_model, batch.images_BCHW, texts, image_prompts, tensors["text_prompts"])

    assert len(tensors) == 1 + 2 * depth
    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))
