"""VPT: image prompts and hand-written text features."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from tests.base_models import random_images, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, exported_logits, perturbed, pixel_batch
from training.adapting.vpt import VPT, VPTRecipe


def vpt(base_model, **recipe):
    return VPT(base_model, CLASS_NAMES, VPTRecipe(**recipe))


@pytest.mark.parametrize("boost", BOOSTS)
def test_the_exported_prompts_score_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = perturbed(vpt(base_model, image_depth=3, template="a sketch of a {}."))

    found = exported_logits(base_model, method, CLASS_NAMES, random_images(3))

    assert method.fold().text_adapt is None
    torch.testing.assert_close(
        found, method.logits(pixel_batch(base_model)), rtol=0, atol=1e-6 * base_model.logit_scale
    )


def test_gradients_reach_the_image_prompts_and_nothing_else():
    base_model = tiny_base_model((2, 3))
    method = vpt(base_model)
    method.loss(pixel_batch(base_model)).backward()

    frozen = [*base_model.backbone.clip.parameters(), base_model.image_boost, base_model.text_boost]
    assert dict(method.named_parameters()).keys() == {"image_prompts"}
    assert method.image_prompts.grad.abs().max() > 0
    assert all(tensor.grad is None for tensor in frozen)


def test_a_checkpoint_contains_the_prompts_but_no_text_features():
    assert vpt(tiny_base_model(None)).state_dict().keys() == {"image_prompts"}


def test_the_depth_is_clamped_to_the_tower():
    assert vpt(tiny_base_model(None), image_depth=12, image_tokens=8).image_prompts.shape == (3, 8, 32)


def test_a_class_name_that_is_too_long_is_named():
    with pytest.raises(TextTooLongError, match="striped striped"):
        VPT(tiny_base_model(None), ["cat", "striped " * 75], VPTRecipe())
