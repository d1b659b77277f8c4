"""LaFTer: both losses and their gradients against the equations in float64, class texts, and the bundle."""

import math

import pytest
import torch

from tests.base_models import random_images, relative_error, slow_twin, tiny_base_model
from tests.labelled import exported_logits, perturbed
from tests.reference.one_step import TOLERANCE, assert_same_step
from training.adapting.method import Batch
from training.errors import RecipeError
from training.label_free.lafter import LaFTer, LaFTerRecipe, class_texts, learn_lafter, text_classifier, text_loss
from training.label_free.method import Encoded, Unlabelled
from training.recipe import read_recipe

CLASSES = ["cat", "dog", "striped circle"]


def method_of(base_model, **values):
    text = base_model.zero_shot_text(CLASSES, ["{}."])
    recipe = LaFTerRecipe(image_depth=2, image_tokens=3, **values)
    method = LaFTer(base_model, base_model.logit_scale * text, "{}.", recipe)
    return method.double() if base_model.backbone.dtype == torch.float64 else method


def strong_views(base_model):
    return Batch(torch.tensor([2, 0, 1]), images_BCHW=random_images(3, base_model.backbone.dtype))


def smoothed(scores, label, share):
    """-(1 - share) log p_y - share mean_c log p_c."""
    log_p = scores - scores.exp().sum().log()
    return -(1 - share) * log_p[label] - share * log_p.mean()


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("boost", [None, (2, 3)])
def test_loss_and_gradients_of_images_match_the_equations(boost, share):
    base_model = tiny_base_model(boost, torch.float64)
    method, batch = perturbed(method_of(base_model, smoothing=share)), strong_views(base_model)
    slow = slow_twin(base_model)

    expected = 0
    for image, label in zip(batch.images_BCHW, batch.labels_B.tolist(), strict=True):
        scores = method.weight @ slow.image(image, base_model.image_boost, method.image_prompts)
        expected = expected + smoothed(scores, label, share) / 3
    assert_same_step(method, batch, expected)


def test_loss_and_gradient_of_texts_match_the_equations():
    generator = torch.Generator().manual_seed(1)
    noisy, weight = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (4, 3))
    weight.requires_grad_()
    labels = [0, 2, 1, 2]
    expected = sum(
        smoothed(weight @ (row / math.sqrt(float(row @ row))), label, 0.1)
        for row, label in zip(noisy, labels, strict=True)
    ) / len(labels)
    found = text_loss(weight, noisy, torch.tensor(labels), 0.1)
    assert relative_error(found, expected) < TOLERANCE
    mine, theirs = (torch.autograd.grad(loss, [weight])[0] for loss in (found, expected))
    assert relative_error(mine, theirs) < TOLERANCE


def test_the_text_classifier_learns_texts_that_its_start_confuses():
    texts = torch.eye(4, dtype=torch.float32)
    labels = torch.tensor([0, 0, 1, 1])
    recipe = LaFTerRecipe(text_steps=200, text_learning_rate=0.05)
    weight = text_classifier(texts, labels, torch.zeros(2, 4), recipe)
    assert (texts @ weight.T).argmax(1).tolist() == labels.tolist()
    assert torch.equal(weight, text_classifier(texts, labels, torch.zeros(2, 4), recipe))
    assert not torch.equal(
        weight, text_classifier(texts, labels, torch.zeros(2, 4), recipe.model_copy(update={"seed": 2}))
    )
    assert torch.equal(text_classifier(texts, labels, torch.ones(2, 4), LaFTerRecipe(text_steps=0)), torch.ones(2, 4))


@pytest.mark.parametrize("boost", [None, (2, 3)])
def test_the_bundles_tensors_score_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method, batch = perturbed(method_of(base_model)), strong_views(base_model)
    found = exported_logits(base_model, method, CLASSES, batch.images_BCHW)
    torch.testing.assert_close(found, method.logits(batch), rtol=1e-5, atol=1e-4)


def test_the_text_classifier_predicts_the_pseudo_labels_from_the_unchanged_images():
    base_model, trained = tiny_base_model((2, 3)), []
    features, text = base_model.encode_images(random_images(6)), base_model.zero_shot_text(CLASSES, ["{}."])
    encoded = Encoded(features, text, torch.zeros(6, 3), "{}.")
    recipe = LaFTerRecipe(text_steps=5, templates=0, image_depth=2)
    learned = learn_lafter(
        Unlabelled(base_model, CLASSES, encoded, lambda method, found, _: trained.append((method, found)), None),
        recipe,
    )
    ((method, found),) = trained
    assert found.rows_N.tolist() == list(range(6))
    assert torch.equal(found.labels_N, (features @ method.weight.T).argmax(dim=1))
    assert learned.metrics["n_pseudo_labels"] == 6


def test_a_class_has_its_descriptions_or_templates():
    texts, labels = class_texts(CLASSES, {"Dog": ["a dog barks", "a dog runs"]}, ["{}.", "a {}."])
    assert texts == ["cat.", "a cat.", "a dog barks", "a dog runs", "striped circle.", "a striped circle."]
    assert labels == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("descriptions", "says"),
    [({"wolf": ["it howls"]}, "'wolf', which is not among"), ({"dog": []}, "no sentence for 'dog'")],
)
def test_descriptions_that_fit_no_class_are_an_error(descriptions, says):
    with pytest.raises(RecipeError, match=says):
        class_texts(CLASSES, descriptions, ["{}."])


def test_descriptions_are_read_from_a_table_of_the_recipe_file_and_printed(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[lafter]\nsmoothing = 0.2\n\n[lafter.descriptions]\n"striped circle" = ["a disc with bands"]\n')
    recipe = read_recipe(LaFTerRecipe, path, table="lafter")
    assert (recipe.smoothing, recipe.descriptions) == (0.2, {"striped circle": ["a disc with bands"]})
    path.write_text(recipe.to_toml())
    assert read_recipe(LaFTerRecipe, path, table="lafter") == recipe
