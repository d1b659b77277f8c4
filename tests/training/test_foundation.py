"""The foundation: a boosting bundle put under a method, or refused."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import random_pixels, tiny_backbone
from training.errors import BoostBundleError
from training.foundation import Foundation, boosted_foundation, load_foundation


def bundle(**changes):
    return read_bundle(random_bundle(image_boost=(2, 3), text_boost=(3, 2), **changes))


def test_a_boosted_foundation_sees_images_and_classes_as_the_service_does():
    model = PromptedClip(tiny_backbone())
    foundation = boosted_foundation(tiny_backbone(), bundle())
    stack = model.with_labels(model.load_stack(bundle()), ["cat", "dog"])
    images = random_pixels(2)
    served = model.encode_images(images, [stack, stack]).unit_BE
    from prompted_clip.preprocess import normalize_pixels

    found = foundation.encode_images(normalize_pixels(images, tiny_backbone().preprocess))
    torch.testing.assert_close(found, served)
    tokens = foundation.tokenize(["cat", "dog"], "{}.", n_prompts=0)
    torch.testing.assert_close(foundation.encode_text(tokens), stack.text_features.clone())


def test_boosting_prompts_never_take_a_gradient():
    foundation = boosted_foundation(tiny_backbone(), bundle())
    assert not foundation.image_boost.requires_grad
    assert not foundation.text_boost.requires_grad


def test_the_reference_is_the_boosted_model_or_the_plain_one():
    foundation = boosted_foundation(tiny_backbone(), bundle())
    assert foundation.reference("boosted") is foundation
    assert not foundation.reference("plain").is_boosted


def test_a_bundle_of_another_backbone_is_refused():
    with pytest.raises(BoostBundleError, match="boost this backbone"):
        boosted_foundation(tiny_backbone(seed=5), bundle())


def test_a_bundle_without_boosting_prompts_is_refused():
    with pytest.raises(BoostBundleError, match="holds no boosting prompts"):
        boosted_foundation(tiny_backbone(), read_bundle(random_bundle(image_boost=None)))


def test_a_bundle_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BoostBundleError, match=r"gone\.safetensors"):
        load_foundation("tiny", None, tmp_path / "gone.safetensors", is_random=True, device="cpu")


def test_a_plain_foundation_is_the_backbone():
    assert not Foundation(tiny_backbone()).is_boosted
    assert Foundation(tiny_backbone()).n_text_boost == 0


def test_a_boosted_foundation_knows_the_text_it_was_boosted_with():
    assert boosted_foundation(tiny_backbone(), bundle(templates=["{} here."])).text == "{} here."
    assert Foundation(tiny_backbone()).text is None
