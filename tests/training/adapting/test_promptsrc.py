"""PromptSRC: regularisation towards a reference, and averaging over epochs."""

import math

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from tests.base_models import random_images, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, exported_logits, perturbed, pixel_batch
from training.adapting.promptsrc import REFERENCE_TEMPLATES, PromptSRC, PromptSRCRecipe, aggregation_weights


def promptsrc(base_model, **recipe):
    return PromptSRC(base_model, CLASS_NAMES, PromptSRCRecipe(**recipe))


def wander(method, epoch):
    """Prompts as some epoch might have left them."""
    generator = torch.Generator().manual_seed(100 + epoch)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("boost", BOOSTS)
def test_the_exported_prompts_score_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = perturbed(promptsrc(base_model))

    found = exported_logits(base_model, method, CLASS_NAMES, random_images(3))

    torch.testing.assert_close(
        found, method.logits(pixel_batch(base_model)), rtol=0, atol=1e-6 * base_model.logit_scale
    )


def test_gradients_reach_the_prompts_and_nothing_else():
    base_model = tiny_base_model((2, 3))
    method = promptsrc(base_model)
    method.loss(pixel_batch(base_model)).backward()

    frozen = [*base_model.backbone.clip.parameters(), base_model.image_boost, base_model.text_boost]
    assert dict(method.named_parameters()).keys() == {"text_prompts", "image_prompts"}
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all(tensor.grad is None for tensor in frozen)
    assert method.reference_KE.grad_fn is None


def test_after_the_last_epoch_the_prompts_are_the_weighted_sum_over_epochs():
    method = promptsrc(tiny_base_model(None), epochs=5, gpa_mean=3, gpa_std=1.5)
    images, texts = [], []
    for epoch in range(5):
        wander(method, epoch)
        images.append(method.image_prompts.detach().double().clone())
        texts.append(method.text_prompts.detach().double().clone())
        method.end_epoch(epoch)
        if epoch < 4:
            assert torch.equal(method.image_prompts.double(), images[-1])

    density = [math.exp(-0.5 * ((e - 3) / 1.5) ** 2) for e in (1, 2, 3, 4, 5)]
    weights = [value / sum(density) for value in density]
    expected_image = sum(weight * prompts for weight, prompts in zip(weights, images, strict=True))
    expected_text = sum(weight * prompts for weight, prompts in zip(weights, texts, strict=True))
    torch.testing.assert_close(method.image_prompts.detach().double(), expected_image, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.text_prompts.detach().double(), expected_text, rtol=0, atol=1e-6)


def test_the_sums_resume_from_a_checkpoint_to_the_same_bits():
    straight = promptsrc(tiny_base_model(None), epochs=4, gpa_mean=2)
    for epoch in range(4):
        wander(straight, epoch)
        straight.end_epoch(epoch)

    first = promptsrc(tiny_base_model(None), epochs=4, gpa_mean=2)
    for epoch in range(2):
        wander(first, epoch)
        first.end_epoch(epoch)
    second = promptsrc(tiny_base_model(None), epochs=4, gpa_mean=2)
    second.load_state_dict(first.state_dict())
    for epoch in range(2, 4):
        wander(second, epoch)
        second.end_epoch(epoch)

    assert torch.equal(second.image_prompts, straight.image_prompts)
    assert torch.equal(second.text_prompts, straight.text_prompts)


def test_a_checkpoint_contains_prompts_and_sums_but_no_features():
    names = {"image_prompts", "text_prompts", "image_sum", "text_sum"}
    assert promptsrc(tiny_base_model(None)).state_dict().keys() == names


def test_weights_peak_at_their_mean_and_stay_finite_far_from_it():
    usual = aggregation_weights(PromptSRCRecipe())
    short = aggregation_weights(PromptSRCRecipe(epochs=2, gpa_mean=45, gpa_std=1))

    assert usual.sum() == pytest.approx(1)
    assert int(usual.argmax()) == 14
    assert usual[14] / usual[13] == pytest.approx(math.exp(0.5))
    assert short.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("kind", ["boosted", "plain"])
def test_the_recipe_selects_the_reference_model(kind):
    base_model = tiny_base_model((2, 3))
    method = promptsrc(base_model, reference=kind)

    expected = promptsrc(base_model if kind == "boosted" else tiny_base_model(None)).reference_KE

    assert torch.equal(method.reference_KE, expected)
    assert not torch.equal(
        method.reference_KE, promptsrc(base_model.plain() if kind == "boosted" else base_model).reference_KE
    )


def test_the_reference_text_uses_the_first_sixty_templates_of_clip():
    assert len(set(REFERENCE_TEMPLATES)) == 60
    assert (REFERENCE_TEMPLATES[0], REFERENCE_TEMPLATES[59]) == ("a bad photo of a {}.", "itap of the {}.")
    assert "a photo of a {}." in REFERENCE_TEMPLATES
    assert all(template.count("{}") == 1 for template in REFERENCE_TEMPLATES)


def test_without_distances_the_loss_is_cross_entropy_and_the_divergence_from_the_reference():
    base_model = tiny_base_model(None)
    method, batch = promptsrc(base_model, image_weight=0, text_weight=0), pixel_batch(base_model)
    z = method.logits(batch)
    reference = base_model.logit_scale * batch.reference_BE @ method.reference_KE.T
    kl = (reference.softmax(1) * (reference.log_softmax(1) - z.log_softmax(1))).sum() / z.numel()

    expected = torch.nn.functional.cross_entropy(z, batch.labels_B) + kl

    torch.testing.assert_close(method.loss(batch), expected)


def test_depths_are_clamped_to_the_towers():
    method = promptsrc(tiny_base_model(None), image_depth=9, text_depth=9)

    assert method.image_prompts.shape == method.image_sum.shape == (3, 4, 32)
    assert method.text_prompts.shape == method.text_sum.shape == (3, 4, 32)


def test_a_class_name_that_is_too_long_is_named():
    with pytest.raises(TextTooLongError, match="striped striped"):
        PromptSRC(tiny_base_model((2, 3)), ["cat", "striped " * 70], PromptSRCRecipe())


def test_a_class_name_that_is_too_long_for_a_template_is_named():
    with pytest.raises(TextTooLongError, match=r"photo.*striped striped"):
        PromptSRC(tiny_base_model(None), ["cat", "striped " * 70], PromptSRCRecipe())
