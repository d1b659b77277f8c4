"""The teacher, plain and prompted."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.errors import StackMismatchError
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import random_pixels, tiny_backbone
from training.teacher import Teacher

CLASSES = ["cat", "striped circle", "dog", "bird"]


def backbone():
    return tiny_backbone("tiny-teacher", 1)


def prompted(**changes):
    return read_bundle(random_bundle(backbone=backbone(), text_boost=(2, 2), text_adapt=(1, 3), **changes))


def test_a_plain_teacher_scores_like_the_plain_backbone():
    model = PromptedClip(backbone())
    stack = model.plain_stack("plain", CLASSES, ["a photo of a {}."])
    expected = model.logits(model.encode_images(random_pixels(3), [stack] * 3), stack)
    torch.testing.assert_close(Teacher(backbone(), CLASSES, "a photo of a {}.").logits(random_pixels(3)), expected)


def test_a_prompted_teacher_uses_its_prompts_for_the_requested_classes():
    model = PromptedClip(backbone())
    stack = model.with_labels(model.load_stack(prompted()), CLASSES)
    expected = model.logits(model.encode_images(random_pixels(3), [stack] * 3), stack)
    taught = Teacher(backbone(), CLASSES, "ignored {}", prompted())
    torch.testing.assert_close(taught.logits(random_pixels(3)), expected)
    assert taught.digest == prompted().digest
    plain = Teacher(backbone(), CLASSES, "a photo of a {}.").logits(random_pixels(3))
    assert not torch.allclose(plain, expected, atol=0.1)


def test_a_teachers_logits_can_be_used_in_a_loss():
    logits = torch.zeros(3, 4, requires_grad=True)
    target = Teacher(backbone(), CLASSES, "{}.", prompted()).logits(random_pixels(3))
    torch.nn.functional.kl_div(
        logits.log_softmax(1), target.log_softmax(1), log_target=True, reduction="sum"
    ).backward()
    assert logits.grad.abs().max() > 0


def test_a_teacher_bundle_of_another_backbone_is_rejected():
    with pytest.raises(StackMismatchError, match="fingerprint"):
        Teacher(tiny_backbone(), CLASSES, "{}.", prompted())
