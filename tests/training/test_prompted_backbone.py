"""The base model: loading and rejecting boosting bundles."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import random_pixels, tiny_backbone
from training.errors import BoostBundleError
from training.prompted_backbone import PromptedBackbone, boosted_backbone, load_prompted_backbone


def bundle(**changes):
    return read_bundle(random_bundle(image_boost=(2, 3), text_boost=(3, 2), **changes))


def test_a_boosted_base_model_encodes_images_and_classes_like_the_service():
    model = PromptedClip(tiny_backbone())
    base_model = boosted_backbone(tiny_backbone(), bundle())
    stack = model.with_labels(model.load_stack(bundle()), ["cat", "dog"])
    images = random_pixels(2)
    served = model.encode_images(images, [stack, stack]).unit_BE
    from prompted_clip.preprocess import normalize_pixels

    found = base_model.encode_images(normalize_pixels(images, tiny_backbone().preprocess))
    torch.testing.assert_close(found, served)
    tokens = base_model.tokenize(["cat", "dog"], "{}.", n_prompts=0)
    torch.testing.assert_close(base_model.encode_text(tokens), stack.text_features.clone())


def test_boosting_prompts_never_receive_gradients():
    base_model = boosted_backbone(tiny_backbone(), bundle())
    assert not base_model.image_boost.requires_grad
    assert not base_model.text_boost.requires_grad


def test_the_reference_is_the_boosted_model_or_the_plain_one():
    base_model = boosted_backbone(tiny_backbone(), bundle())
    assert base_model.reference("boosted") is base_model
    plain = base_model.reference("plain")
    assert plain.image_boost is None
    assert plain.text_boost is None


def test_a_bundle_of_another_backbone_is_rejected():
    with pytest.raises(BoostBundleError, match="Boost this backbone"):
        boosted_backbone(tiny_backbone(seed=5), bundle())


def test_a_bundle_without_boosting_prompts_is_rejected():
    with pytest.raises(BoostBundleError, match="contains no boosting prompts"):
        boosted_backbone(tiny_backbone(), read_bundle(random_bundle(image_boost=None)))


def test_a_bundle_with_a_class_head_gives_its_boosting_prompts():
    base_model = boosted_backbone(tiny_backbone(), bundle(head="class", head_input="unit"))
    assert base_model.image_boost.shape[:2] == (2, 3)


def test_a_missing_bundle_is_named(tmp_path):
    with pytest.raises(BoostBundleError, match=r"gone\.safetensors"):
        load_prompted_backbone("tiny", None, tmp_path / "gone.safetensors", is_random=True, device="cpu")


def test_a_plain_base_model_is_the_backbone():
    base_model = PromptedBackbone(tiny_backbone())
    assert base_model.image_boost is None
    assert base_model.n_text_boost == 0


def test_a_boosted_base_model_has_the_template_it_was_boosted_with():
    assert boosted_backbone(tiny_backbone(), bundle(templates=["{} here."])).template == "{} here."
    assert PromptedBackbone(tiny_backbone()).template is None
