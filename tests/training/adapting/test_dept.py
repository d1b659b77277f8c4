"""DePT: a host method and a linear head."""

import dataclasses

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from tests.base_models import random_images, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, exported_logits, perturbed, pixel_batch
from training.adapting.dept import DePT, DePTRecipe
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.maple import MaPLe, MaPLeRecipe


def dept(base_model, host=MaPLe, host_recipe=MaPLeRecipe(), **recipe):  # noqa: B008 - recipes are frozen
    return DePT(base_model, CLASS_NAMES, DePTRecipe(**recipe), host(base_model, CLASS_NAMES, host_recipe))


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize(("host", "host_recipe"), [(MaPLe, MaPLeRecipe()), (IVLP, IVLPRecipe())])
def test_the_exported_prompts_score_like_the_method(boost, host, host_recipe):
    base_model = tiny_base_model(boost)
    method = perturbed(dept(base_model, host, host_recipe, head_share=0.6))

    found = exported_logits(base_model, method, CLASS_NAMES, random_images(3))

    assert method.fold().head.share == 0.6
    torch.testing.assert_close(
        found, method.logits(pixel_batch(base_model)), rtol=0, atol=1e-6 * base_model.logit_scale
    )


def test_other_classes_use_the_host_alone():
    base_model = tiny_base_model((2, 3))
    method = perturbed(dept(base_model))

    with_head, of_host = method.fold(), method.host.fold()

    assert method.template == method.host.template == "of a {}."
    assert not with_head.is_closed_vocabulary
    assert torch.equal(with_head.text_adapt, of_host.text_adapt)
    assert torch.equal(with_head.image_adapt, of_host.image_adapt)
    assert dataclasses.replace(with_head, image_adapt=None, text_adapt=None, head=None) == dataclasses.replace(
        of_host, image_adapt=None, text_adapt=None
    )


def test_gradients_reach_host_scales_and_head_and_nothing_else():
    base_model = tiny_base_model((2, 3))
    method = dept(base_model)
    method.loss(pixel_batch(base_model)).backward()

    frozen = [*base_model.backbone.clip.parameters(), base_model.image_boost, base_model.text_boost]
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all(tensor.grad is None for tensor in frozen)


def test_scales_and_head_learn_faster_than_the_host():
    method = dept(tiny_base_model(None))
    of_host, own = method.parameter_groups()

    assert (of_host.rate_factor, own.rate_factor) == (1.0, 6.5)
    assert set(of_host.parameters) == set(method.host.parameters())
    assert len(own.parameters) == 6
    assert set(of_host.parameters) | set(own.parameters) == set(method.parameters())


def test_with_head_share_zero_it_equals_its_host():
    base_model = tiny_base_model(None)
    method, batch = perturbed(dept(base_model, head_share=0)), pixel_batch(base_model)

    assert torch.equal(method.loss(batch), method.host.loss(batch))
    assert torch.equal(method.logits(batch), method.host.logits(batch))


def test_a_few_steps_lower_the_loss():
    base_model = tiny_base_model(None)
    method, batch = dept(base_model), pixel_batch(base_model)
    groups = [{"params": group.parameters, "lr": 0.0035 * group.rate_factor} for group in method.parameter_groups()]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = method.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.8 * losses[0]


def test_host_and_head_resume_from_a_checkpoint_to_the_same_bits():
    base_model = tiny_base_model(None)
    trained, fresh = perturbed(dept(base_model)), dept(base_model)
    batch = pixel_batch(base_model)
    assert not torch.equal(fresh.logits(batch), trained.logits(batch))

    fresh.load_state_dict(trained.state_dict())

    assert torch.equal(fresh.logits(batch), trained.logits(batch))


def test_a_class_name_that_is_too_long_is_named():
    base_model = tiny_base_model((2, 3))
    with pytest.raises(TextTooLongError, match="striped striped"):
        DePT(base_model, ["striped " * 70], DePTRecipe(), MaPLe(base_model, ["striped " * 70], MaPLeRecipe()))
