"""ATPrompt's attributes: the prompt with words, export of every host, and errors."""

import pytest
import torch

from tests.base_models import feature_batch, random_images, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, exported_logits, perturbed, pixel_batch
from training.adapting.coop import CoOp, CoOpRecipe
from training.adapting.methods import METHODS
from training.errors import RecipeError
from training.recipe import read_recipe, validate_recipe

HOSTS = ["coop", "prograd", "ivlp", "maple", "promptsrc"]


def built(name, base_model, *settings):
    recipe = read_recipe(METHODS[name].recipe, None, ['attributes=["color", "shape"]', *settings])
    return METHODS[name].build(base_model, CLASS_NAMES, recipe)


def both_batches(base_model):
    """A batch with every input."""
    pixels, features = pixel_batch(base_model), feature_batch(base_model, [2, 0, 1])
    return type(pixels)(features.labels_B, pixels.images_BCHW, features.features_BE, features.reference_BE)


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize("name", HOSTS)
def test_the_exported_prompts_score_like_the_method(name, boost):
    base_model = tiny_base_model(boost)
    method = perturbed(built(name, base_model))

    found = exported_logits(base_model, method, CLASS_NAMES, random_images(3))

    expected = method.logits(both_batches(base_model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * base_model.logit_scale)
    assert not method.fold().is_closed_vocabulary


@pytest.mark.parametrize("name", HOSTS)
def test_gradients_reach_the_tokens_of_every_attribute_and_no_word(name):
    base_model = tiny_base_model((2, 3))
    method = built(name, base_model)
    method.loss(both_batches(base_model)).backward()

    assert method.attributes.soft.grad.abs().amax(dim=(1, 2)).min() > 0
    assert any(parameter is method.attributes.soft for group in method.parameter_groups() for parameter in
               group.parameters)  # fmt: skip
    assert all(parameter.grad is None for parameter in base_model.backbone.clip.parameters())


def test_tokens_that_are_words_give_the_features_of_the_whole_text():
    base_model = tiny_base_model()
    method = built("coop", base_model, "context_init=a photo of a", "attribute_tokens=1")
    backbone = base_model.backbone
    words = torch.tensor([backbone.tokenizer.encode(word) for word in ("bright", "round")])
    with torch.no_grad():
        method.attributes.soft.copy_(backbone.clip.token_embedding(words))

    found = method.texts.encode(method.prompt())

    expected = base_model.zero_shot_text(CLASS_NAMES, ["bright color round shape a photo of a {}."])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_without_attributes_a_method_has_no_further_parameters():
    method = CoOp(tiny_base_model(), CLASS_NAMES, CoOpRecipe(context_tokens=3))

    assert list(method.state_dict()) == ["context"]
    assert torch.equal(method.prompt(), method.context)


def test_attributes_leave_the_initial_context_unchanged():
    base_model = tiny_base_model()

    assert torch.equal(built("coop", base_model).context, CoOp(base_model, CLASS_NAMES, CoOpRecipe()).context)


def test_promptsrc_averages_the_tokens_of_the_attributes_over_epochs():
    method = perturbed(built("promptsrc", tiny_base_model(), "epochs=2", "gpa_mean=1"))
    first = method.attributes.soft.detach().clone()
    method.end_epoch(0)
    with torch.no_grad():
        method.attributes.soft += 1
    method.end_epoch(1)

    moved = method.attributes.soft - first
    assert moved.min() > 0
    assert moved.max() < 1
    torch.testing.assert_close(moved, moved.mean().expand_as(moved), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"position": "front"}, {"class_specific": True}])
def test_attributes_need_a_shared_context_before_the_name(settings):
    with pytest.raises(RecipeError, match="attributes need a context shared by all classes"):
        validate_recipe(CoOpRecipe, {"attributes": ["color"], **settings})


def test_a_blank_attribute_is_an_error():
    with pytest.raises(RecipeError, match=r"recipe key 'attributes\.1'"):
        validate_recipe(CoOpRecipe, {"attributes": ["color", " "]})


def test_more_tokens_than_a_bundle_can_have_are_an_error_before_training():
    with pytest.raises(RecipeError, match="take 68 tokens, but a bundle has at most 64"):
        built("coop", tiny_base_model(), "attribute_tokens=25")


def test_dept_passes_attributes_to_its_host():
    recipe = read_recipe(METHODS["dept"].recipe, None, ["host=coop", 'host_values={attributes=["color"]}'])
    method = METHODS["dept"].build(tiny_base_model(), CLASS_NAMES, recipe)

    assert method.host.attributes.soft.shape[:2] == (1, 2)
