"""Loss and gradients of VPT and IVLP match their equations, in float64."""

import pytest
import torch

from tests.base_models import tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import assert_same_step, cross_entropy, slow_features
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.vpt import VPT, VPTRecipe


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_step_of_vpt_matches_its_equation(boost, depth):
    base_model = tiny_base_model(boost, torch.float64)
    method = perturbed(VPT(base_model, CLASS_NAMES, VPTRecipe(image_tokens=2, image_depth=depth)).double())
    batch = pixel_batch(base_model)

    texts = [f"a photo of a {name}." for name in CLASS_NAMES]
    f, g, s = slow_features(base_model, batch.images_BCHW, texts, method.image_prompts, None)

    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize(("image_depth", "text_depth"), [(1, 3), (3, 1), (2, 2)])
def test_a_step_of_ivlp_matches_its_equation(boost, image_depth, text_depth):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = IVLPRecipe(image_tokens=2, image_depth=image_depth, text_tokens=4, text_depth=text_depth)
    method = perturbed(IVLP(base_model, CLASS_NAMES, recipe).double())
    batch = pixel_batch(base_model)

    texts = [f"{name}." for name in CLASS_NAMES]
    f, g, s = slow_features(base_model, batch.images_BCHW, texts, method.image_prompts, method.text_prompts)

    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))
