"""UPT: unified prompts through a small Transformer."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from tests.base_models import random_images, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, exported_logits, perturbed, pixel_batch
from training.adapting.upt import UPT, UPTRecipe


def upt(base_model, **recipe):
    return UPT(base_model, CLASS_NAMES, UPTRecipe(**({"head_width": 16, "ffn_width": 24} | recipe)))


@pytest.mark.parametrize("boost", BOOSTS)
def test_the_exported_prompts_score_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = perturbed(upt(base_model, heads=2))

    found = exported_logits(base_model, method, CLASS_NAMES, random_images(3))

    assert not method.fold().image_adapt.requires_grad
    torch.testing.assert_close(
        found, method.logits(pixel_batch(base_model)), rtol=0, atol=1e-6 * base_model.logit_scale
    )


def test_gradients_reach_prompts_and_transformer_and_nothing_else():
    base_model = tiny_base_model((2, 3))
    method = upt(base_model)
    method.loss(pixel_batch(base_model)).backward()

    frozen = [*base_model.backbone.clip.parameters(), base_model.image_boost, base_model.text_boost]
    assert len(list(method.parameters())) == 1 + 2 * 8
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all(tensor.grad is None for tensor in frozen)


def test_each_tower_attends_to_the_other_towers_tokens():
    method = perturbed(upt(tiny_base_model(None), tokens=2))
    image_before, text_before = method.prompts()
    with torch.no_grad():
        method.unified[:, 0] += torch.linspace(-1, 1, 16)

    image_after, text_after = method.prompts()

    assert (image_after - image_before).abs().max() > 1e-4
    assert (text_after - text_before).abs().max() > 1e-4


def test_layers_do_not_attend_to_each_other():
    method = perturbed(upt(tiny_base_model(None), depth=2))
    before = torch.cat(method.prompts(), dim=-1)
    with torch.no_grad():
        method.unified[0, 0] += torch.linspace(-1, 1, 16)

    moved = (torch.cat(method.prompts(), dim=-1) - before).abs().amax(dim=(1, 2))

    assert moved[0] > 1e-4
    assert moved[1] == 0


def test_initial_prompts_have_a_standard_deviation_of_about_0_02():
    image, text = upt(tiny_base_model(None), tokens=16, head_width=64).prompts()

    assert 0.01 < image.std() < 0.04
    assert 0.01 < text.std() < 0.04


def test_a_few_steps_lower_the_loss():
    base_model = tiny_base_model(None)
    method, batch = upt(base_model), pixel_batch(base_model)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = method.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.8 * losses[0]


def test_prompts_stay_float32_under_autocast():
    method = perturbed(upt(tiny_base_model(None)))
    exact = torch.cat(method.prompts())

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.cat(method.prompts()), exact)


def test_the_depth_is_clamped_to_the_towers():
    exported = upt(tiny_base_model(None), depth=9).fold()

    assert exported.image_adapt.shape == (3, 4, 32)
    assert exported.text_adapt.shape == (3, 4, 32)


def test_a_class_name_that_is_too_long_is_named():
    with pytest.raises(TextTooLongError, match="striped striped"):
        UPT(tiny_base_model((2, 3)), ["cat", "striped " * 70], UPTRecipe(head_width=16, ffn_width=24))
