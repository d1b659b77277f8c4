"""IVLP: independent prompts in both towers."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from tests.base_models import random_images, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, exported_logits, perturbed, pixel_batch
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.method import Batch


def ivlp(base_model, **recipe):
    return IVLP(base_model, CLASS_NAMES, IVLPRecipe(**recipe))


@pytest.mark.parametrize("boost", BOOSTS)
def test_the_exported_prompts_score_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = perturbed(ivlp(base_model, image_depth=3, text_depth=1))

    found = exported_logits(base_model, method, CLASS_NAMES, random_images(3))

    torch.testing.assert_close(
        found, method.logits(pixel_batch(base_model)), rtol=0, atol=1e-6 * base_model.logit_scale
    )


def test_gradients_reach_the_prompts_and_nothing_else():
    base_model = tiny_base_model((2, 3))
    method = ivlp(base_model)
    method.loss(pixel_batch(base_model)).backward()

    frozen = [*base_model.backbone.clip.parameters(), base_model.image_boost, base_model.text_boost]
    assert dict(method.named_parameters()).keys() == {"text_prompts", "image_prompts"}
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all(tensor.grad is None for tensor in frozen)


def test_with_text_depth_1_it_starts_as_the_hand_written_prompt():
    base_model = tiny_base_model(None)
    method = ivlp(base_model, text_depth=1)

    started = base_model.encode_text(method.tokens, method.text_prompts)

    torch.testing.assert_close(started, base_model.zero_shot_text(CLASS_NAMES, ["a photo of a {}."]))


@pytest.mark.parametrize(
    ("tokens", "words", "text"),
    [(4, "a photo of a", "{}."), (2, "a photo of a", "of a {}."), (8, "a photo of a", "{}."), (4, "", "{}.")],
)
def test_words_beyond_the_prompts_stay_in_the_template(tokens, words, text):
    assert ivlp(tiny_base_model(None), text_tokens=tokens, text_init=words).template == text


def test_depths_are_clamped_to_the_towers():
    method = ivlp(tiny_base_model(None), image_depth=9, text_depth=2)

    assert method.image_prompts.shape == (3, 4, 32)
    assert method.text_prompts.shape == (2, 4, 32)


def test_the_seed_determines_the_initial_prompts():
    one, same, other = (ivlp(tiny_base_model(None), seed=seed) for seed in (1, 1, 2))

    assert torch.equal(one.image_prompts, same.image_prompts)
    assert torch.equal(one.text_prompts, same.text_prompts)
    assert not torch.equal(one.image_prompts, other.image_prompts)


def test_a_class_name_that_is_too_long_is_named():
    with pytest.raises(TextTooLongError, match="striped striped"):
        IVLP(tiny_base_model((2, 3)), ["cat", "striped " * 70], IVLPRecipe())


def test_boosting_prompts_count_towards_the_context_length():
    name = "striped " * 69  # with SOS, ".", EOT and 4 prompts: 76 of 77 positions
    assert IVLP(tiny_base_model(None), [name], IVLPRecipe())
    with pytest.raises(TextTooLongError, match="7 prompt tokens"):
        IVLP(tiny_base_model((2, 3)), [name], IVLPRecipe())


def test_a_batch_without_images_is_a_clear_error():
    with pytest.raises(ValueError, match="'images'"):
        ivlp(tiny_base_model(None)).loss(Batch(labels_B=torch.tensor([0])))
