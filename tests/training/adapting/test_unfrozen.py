"""Boosting prompts that phase 2 trains further."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from prompted_clip.provenance import new_provenance
from tests.base_models import random_images, tiny_base_model
from tests.labelled import CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import assert_same_step, cross_entropy, slow_features
from training.adapting.dept import DePT
from training.adapting.ivlp import IVLP, IVLPRecipe
from training.adapting.maple import MaPLe, MaPLeRecipe
from training.adapting.methods import METHODS, RECIPES
from training.adapting.promptsrc import PromptSRC, PromptSRCRecipe
from training.errors import RecipeError
from training.export import export_bundle
from training.recipe import read_recipe

KINDS = [(IVLP, IVLPRecipe), (MaPLe, MaPLeRecipe), (PromptSRC, PromptSRCRecipe)]


def learnable(kind, recipe, base_model, **values):
    return kind(base_model, CLASS_NAMES, recipe(boosting="learnable", **values))


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_frozen_boosting_is_the_default_and_trains_no_boosting_prompt(kind, recipe):
    base_model = tiny_base_model((2, 3))
    method = kind(base_model, CLASS_NAMES, recipe())
    assert method.base_model is base_model
    assert not [name for name, _ in method.named_parameters() if "boosting" in name]
    assert (method.fold().image_boost, method.fold().text_boost) == (None, None)


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_learnable_boosting_starts_from_the_bundle_and_leaves_the_base_model_as_it_was(kind, recipe):
    base_model = tiny_base_model((2, 3))
    before = base_model.image_boost.clone(), base_model.text_boost.clone()
    frozen, method = kind(base_model, CLASS_NAMES, recipe()), learnable(kind, recipe, base_model)
    batch = pixel_batch(base_model)
    torch.testing.assert_close(method.logits(batch), frozen.logits(batch), rtol=0, atol=0)

    method.loss(batch).backward()
    trained = {id(parameter) for group in method.parameter_groups() for parameter in group.parameters}
    assert len(method.boosting) == 2
    for parameter in method.boosting:
        assert id(parameter) in trained
        assert parameter.grad.abs().max() > 0
    perturbed(method)
    assert torch.equal(base_model.image_boost, before[0])
    assert torch.equal(base_model.text_boost, before[1])
    assert not base_model.image_boost.requires_grad


def test_the_gradients_of_the_boosting_prompts_match_the_equations():
    base_model = tiny_base_model((2, 3), torch.float64)
    method = perturbed(learnable(IVLP, IVLPRecipe, base_model, image_tokens=2, text_tokens=2, text_init="").double())
    batch, texts = pixel_batch(base_model), [f"{name}." for name in CLASS_NAMES]
    f, g, s = slow_features(method.base_model, batch.images_BCHW, texts, method.image_prompts, method.text_prompts)
    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_the_bundle_holds_the_trained_boosting_prompts_and_scores_like_the_method(kind, recipe):
    base_model = tiny_base_model((2, 3))
    method = perturbed(learnable(kind, recipe, base_model))
    bundle = read_bundle(
        export_bundle(
            base_model,
            method.fold(),
            domain="pets",
            class_names=CLASS_NAMES,
            template=method.template,
            provenance=new_provenance(method="x", phase="adapt", recipe={}, data_digests={}, metrics={}, seed=1),
        )
    )
    image, text = (torch.from_numpy(bundle.tensors[f"{tower}.boost"].copy()) for tower in ("image", "text"))
    assert torch.equal(image, method.boosting[0].detach())
    assert torch.equal(text, method.boosting[1].detach())
    model = PromptedClip(base_model.backbone)
    stack = model.load_stack(bundle)
    found = method.base_model.logit_scale * (
        method.base_model.encode_images(random_images(3), bundle_group(bundle, "image.adapt"))
        @ torch.from_numpy(bundle.tensors["text.features"].copy()).T
    )
    assert stack.class_names == CLASS_NAMES
    torch.testing.assert_close(
        found, method.logits(pixel_batch(base_model)), rtol=0, atol=1e-5 * base_model.logit_scale
    )


def bundle_group(bundle, name):
    return torch.from_numpy(bundle.tensors[name].copy())


def test_a_checkpoint_restores_the_trained_boosting_prompts():
    base_model = tiny_base_model((2, 3))
    method = perturbed(learnable(PromptSRC, PromptSRCRecipe, base_model))
    other = learnable(PromptSRC, PromptSRCRecipe, base_model)
    other.load_state_dict(method.state_dict())
    batch = pixel_batch(base_model)
    torch.testing.assert_close(other.logits(batch), method.logits(batch), rtol=0, atol=0)


def test_promptsrc_averages_trained_boosting_prompts_over_epochs_as_it_does_the_others():
    method = learnable(PromptSRC, PromptSRCRecipe, tiny_base_model((2, 3)), epochs=2, gpa_mean=1.5, gpa_std=9.0)
    first = method.boosting[0].detach().clone()
    method.end_epoch(0)
    with torch.no_grad():
        method.boosting[0].add_(1.0)
    method.end_epoch(1)
    torch.testing.assert_close(method.boosting[0].detach(), first + 0.5)


def test_dept_trains_the_boosting_prompts_of_its_host():
    base_model = tiny_base_model((2, 3))
    recipe = read_recipe(RECIPES["dept"], None, ['host_values={boosting="learnable"}'])
    method = METHODS["dept"].build(base_model, CLASS_NAMES, recipe)
    assert isinstance(method, DePT)
    assert method.fold().text_boost.shape == base_model.text_boost.shape


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_a_plain_base_model_has_no_boosting_prompts_to_train(kind, recipe):
    with pytest.raises(RecipeError, match="needs boosting prompts"):
        learnable(kind, recipe, tiny_base_model(None))


@pytest.mark.parametrize("method", ["coop", "cocoop", "prograd", "vpt", "upt"])
def test_other_methods_have_no_such_setting(method):
    with pytest.raises(RecipeError, match="unknown recipe key 'boosting'"):
        read_recipe(RECIPES[method], None, ["boosting=learnable"])
