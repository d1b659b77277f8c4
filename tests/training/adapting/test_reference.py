"""Templates of frozen models: the boosting template, or the hand-written one for a plain model."""

import dataclasses

import pytest
import torch

from tests.base_models import tiny_base_model
from training.adapting.methods import METHODS
from training.adapting.promptsrc import REFERENCE_TEMPLATES, reference_text

CLASSES = ["cat", "striped dog", "bird"]
LEARNED, TEMPLATE = "{} again.", "a drawing of a {}."
BOOSTED = dataclasses.replace(tiny_base_model((2, 3)), template=LEARNED)
PLAIN = tiny_base_model()


def built(name, base_model, **changes):
    return METHODS[name].build(base_model, CLASSES, METHODS[name].recipe(**changes))


@pytest.mark.parametrize(
    ("base_model", "boosted_text", "expected"),
    [(BOOSTED, "learned", LEARNED), (BOOSTED, "template", TEMPLATE), (PLAIN, "learned", TEMPLATE)],
)
def test_prograds_reference_and_vpt_use_the_same_template(base_model, boosted_text, expected):
    vpt = built("vpt", base_model, boosted_text=boosted_text, template=TEMPLATE)
    prograd = built("prograd", base_model, boosted_text=boosted_text, template=TEMPLATE)
    assert vpt.template == expected
    assert torch.equal(prograd.reference_text_KE, base_model.zero_shot_text(CLASSES, [expected]))
    assert torch.equal(vpt.text_KE, prograd.reference_text_KE)


def test_a_plain_reference_of_a_boosted_model_uses_the_hand_written_template():
    prograd = built("prograd", BOOSTED, reference="plain", template=TEMPLATE)
    assert torch.equal(prograd.reference_text_KE, PLAIN.zero_shot_text(CLASSES, [TEMPLATE]))


@pytest.mark.parametrize(
    ("base_model", "choice", "expected"),
    [
        (BOOSTED, "templates", REFERENCE_TEMPLATES),
        (BOOSTED, "learned", (LEARNED,)),
        (PLAIN, "learned", REFERENCE_TEMPLATES),
    ],
)
def test_promptsrc_uses_sixty_templates_or_the_boosting_template(base_model, choice, expected):
    method = built("promptsrc", base_model, reference_text=choice)
    assert torch.equal(method.reference_KE, reference_text(base_model, CLASSES, expected))


def test_only_methods_with_a_frozen_reference_have_its_recipe_keys():
    with_template = {name for name, entry in METHODS.items() if "template" in entry.recipe.model_fields}
    with_reference = {name for name, entry in METHODS.items() if "reference" in entry.recipe.model_fields}
    assert with_template == {"vpt", "prograd", "tcp"}
    assert with_reference == {"promptsrc", "prograd"}
