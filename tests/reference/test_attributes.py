"""ATPrompt: prompt, loss and gradients of each host match the equations, one text at a time in float64."""

import pytest
import torch

from tests.base_models import feature_batch, tiny_base_model, token_ids
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import assert_same_step, cross_entropy, slow_twin
from training.adapting.coop import CoOp, CoOpRecipe
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.maple import MaPLe, MaPLeRecipe

ATTRIBUTES = ("color", "surface texture")
"""The second one has two tokens."""


def slow_prefix(slow, base_model, soft_MNW):
    """[A_1, attribute 1, A_2, attribute 2] at layer 0: [1, A, W]."""
    rows = []
    for soft_NW, attribute in zip(soft_MNW, ATTRIBUTES, strict=True):
        rows += list(soft_NW)
        rows += [slow.w["token_embedding.weight"][one] for one in base_model.backbone.tokenizer.encode(attribute)]
    return torch.stack(rows).unsqueeze(0)


def slow_texts(slow, base_model, texts, prompts_LPW, soft_MNW):
    """g [K, E] of [SOS, prefix, T, boost, text, EOT]: T has tokens of its own in L layers, the prefix flows on."""
    prefix = slow_prefix(slow, base_model, soft_MNW)
    rows = [slow.text(token_ids(base_model, text), prompts_LPW, base_model.text_boost, prefix) for text in texts]
    return torch.stack(rows)


def slow_images(slow, base_model, images, prompts):
    return torch.stack([slow.image(image, base_model.image_boost, prompts) for image in images])


@pytest.mark.parametrize("boost", BOOSTS)
def test_a_step_of_coop_with_attributes_matches_its_equations(boost):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = CoOpRecipe(context_tokens=2, attributes=ATTRIBUTES, attribute_tokens=3)
    method = perturbed(CoOp(base_model, CLASS_NAMES, recipe).double())
    slow, batch = slow_twin(base_model), feature_batch(base_model, [2, 0, 1])

    texts = [f"{name}." for name in CLASS_NAMES]
    g = slow_texts(slow, base_model, texts, method.context.unsqueeze(0), method.attributes.soft)
    s = slow.w["logit_scale"].exp()

    assert_same_step(method, batch, cross_entropy(s * batch.features_BE @ g.T, batch.labels_B))


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_step_of_ivlp_with_attributes_matches_its_equations(boost, depth):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = IVLPRecipe(text_tokens=2, text_init="", text_depth=depth, attributes=ATTRIBUTES, attribute_tokens=2)
    method = perturbed(IVLP(base_model, CLASS_NAMES, recipe).double())
    slow, batch = slow_twin(base_model), pixel_batch(base_model)

    texts = [f"{name}." for name in CLASS_NAMES]
    g = slow_texts(slow, base_model, texts, method.text_prompts, method.attributes.soft)
    f = slow_images(slow, base_model, batch.images_BCHW, method.image_prompts)
    s = slow.w["logit_scale"].exp()

    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))


@pytest.mark.parametrize("boost", BOOSTS)
def test_attributes_have_no_effect_on_the_couplings_of_maple(boost):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = MaPLeRecipe(text_init="", depth=2, attributes=ATTRIBUTES, attribute_tokens=2)
    method = perturbed(MaPLe(base_model, CLASS_NAMES, recipe).double())
    slow, batch, tensors = slow_twin(base_model), pixel_batch(base_model), dict(method.named_parameters())

    image_prompts = torch.stack(
        [
            tensors["text_prompts"][layer] @ tensors[f"couplings.{layer}.weight"].T + tensors[f"couplings.{layer}.bias"]
            for layer in range(2)
        ]
    )
    texts = [f"{name}." for name in CLASS_NAMES]
    g = slow_texts(slow, base_model, texts, method.text_prompts, method.attributes.soft)
    f = slow_images(slow, base_model, batch.images_BCHW, image_prompts)
    s = slow.w["logit_scale"].exp()

    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))
