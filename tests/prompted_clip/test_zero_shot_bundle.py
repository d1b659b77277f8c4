import numpy as np
import pytest

from prompt_store.bundle import read_bundle
from prompt_store.errors import BundleInvalidError
from prompted_clip.errors import StackMismatchError
from prompted_clip.model import PromptedClip
from prompted_clip.zero_shot_bundle import text_stack, zero_shot_bundle
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone

NAMES = ["cat", "striped dog"]
TEMPLATES = ["a photo of a {}.", "a {}."]
PROMPTS = {"image_boost": (2, 3), "text_boost": (2, 2)}


def make(boosted=None, names=NAMES):
    """A bundle of class names and, if given, another bundle's boosting prompts, as a stack of the tiny backbone."""
    model = PromptedClip(tiny_backbone())
    source = boosted and model.load_stack(boosted)
    scale = boosted.manifest.logit_scale if boosted else model.backbone.logit_scale
    encoded = model.with_labels(text_stack("new", TEMPLATES, scale, source), names).text_features
    data = zero_shot_bundle(
        "new", names, encoded.numpy(), templates=TEMPLATES, backbone=model.backbone.spec(), logit_scale=scale,
        boosted=boosted,
    )  # fmt: skip
    return model, model.load_stack(read_bundle(data))


def test_without_boosting_it_is_the_plain_zero_shot_classifier():
    model, stack = make()
    plain = model.plain_stack("new", NAMES, TEMPLATES)
    np.testing.assert_array_equal(stack.text_features, plain.text_features)
    assert (stack.image, stack.text, stack.head, stack.logit_scale) == (None, None, None, plain.logit_scale)


def test_with_boosting_it_is_the_boosted_stack_with_other_classes():
    source = read_bundle(random_bundle(logit_scale=20.0, templates=TEMPLATES, image_adapt=(1, 2), **PROMPTS))
    model, stack = make(source)
    expected = model.with_labels(model.boost_stack(model.load_stack(source)), NAMES)
    np.testing.assert_array_equal(stack.text_features, expected.text_features)
    np.testing.assert_array_equal(stack.image_boost, expected.image_boost)
    assert (stack.image_adapt, stack.head, stack.logit_scale) == (None, None, 20.0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image_boost": None}, "no boosting prompts"),
        ({"head": "projector", "labels": "own"}, "only with its projector"),
    ],
)
def test_prompts_that_cannot_be_copied_are_an_error(options, reason):
    with pytest.raises(StackMismatchError, match=reason):
        make(read_bundle(random_bundle(**options)))


def test_invalid_names_are_an_error():
    with pytest.raises(BundleInvalidError, match="duplicates"):
        make(names=["cat", "Cat"])
