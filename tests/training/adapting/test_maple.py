"""MaPLe: coupled prompts."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from tests.base_models import random_images, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, exported_logits, perturbed, pixel_batch
from training.adapting.maple import MaPLe, MaPLeRecipe


def maple(base_model, **recipe):
    return MaPLe(base_model, CLASS_NAMES, MaPLeRecipe(**recipe))


@pytest.mark.parametrize("boost", BOOSTS)
def test_the_exported_prompts_score_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = perturbed(maple(base_model))

    found = exported_logits(base_model, method, CLASS_NAMES, random_images(3))

    torch.testing.assert_close(
        found, method.logits(pixel_batch(base_model)), rtol=0, atol=1e-6 * base_model.logit_scale
    )


def test_couplings_are_applied_on_export():
    method = perturbed(maple(tiny_base_model(None), depth=2))
    before = method.fold()
    with torch.no_grad():
        method.couplings[1].bias += 1.0

    after = method.fold()

    assert torch.equal(after.text_adapt, before.text_adapt)
    torch.testing.assert_close(
        after.image_adapt - before.image_adapt, torch.stack([torch.zeros(2, 32), torch.ones(2, 32)])
    )
    by_hand = before.text_adapt[0] @ method.couplings[0].weight.T + method.couplings[0].bias
    torch.testing.assert_close(before.image_adapt[0], by_hand.detach())
    assert not after.image_adapt.requires_grad


def test_gradients_reach_prompts_and_couplings_and_nothing_else():
    base_model = tiny_base_model((2, 3))
    method = maple(base_model)
    method.loss(pixel_batch(base_model)).backward()

    frozen = [*base_model.backbone.clip.parameters(), base_model.image_boost, base_model.text_boost]
    assert len(list(method.parameters())) == 1 + 2 * 3
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all(tensor.grad is None for tensor in frozen)
    assert set(method.parameter_groups()[0].parameters) == set(method.parameters())


def test_two_tokens_replace_a_photo_and_leave_of_a_in_the_template():
    base_model = tiny_base_model(None)
    method = maple(base_model, depth=1)

    started = base_model.encode_text(method.tokens, method.text_prompts)

    assert method.template == "of a {}."
    torch.testing.assert_close(started, base_model.zero_shot_text(CLASS_NAMES, ["a photo of a {}."]))


def test_deeper_couplings_start_equal_and_differ_from_layer_0():
    first, second, third = maple(tiny_base_model(None)).couplings

    assert torch.equal(second.weight, third.weight)
    assert second.weight is not third.weight
    assert not torch.equal(first.weight, second.weight)


def test_image_prompts_stay_float32_under_autocast():
    method = perturbed(maple(tiny_base_model(None)))
    exact = method.image_prompts()

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.image_prompts(), exact)


def test_the_depth_is_clamped_to_the_towers():
    method = maple(tiny_base_model(None), depth=9)

    assert method.text_prompts.shape == (3, 2, 32)
    assert method.fold().image_adapt.shape == (3, 2, 32)


def test_a_class_name_that_is_too_long_is_named():
    with pytest.raises(TextTooLongError, match="striped striped"):
        MaPLe(tiny_base_model((2, 3)), ["cat", "striped " * 70], MaPLeRecipe())
