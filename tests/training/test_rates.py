"""Default learning rates by the size of the backbone."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from training.adapting.coop import CoOpRecipe
from training.rates import boost_defaults, scale_rate
from training.recipe import PAPER, SMALL_BOOST, BoostRecipe, read_boost_recipe


def backbone(width, depth):
    return SimpleNamespace(arch="some-vit", vision_width=width, n_vision_layers=depth)


@pytest.mark.parametrize(
    ("width", "depth", "factor"), [(768, 12, 1), (1024, 24, 0.375), (384, 12, 2), (96, 4, 24), (192, 12, 4)]
)
def test_a_default_rate_is_divided_by_width_times_depth(width, depth, factor):
    recipe = scale_rate(BoostRecipe(), backbone(width, depth), Console(quiet=True))
    assert recipe.learning_rate == pytest.approx(BoostRecipe().learning_rate * factor)


def test_the_rate_of_very_small_backbones_is_limited():
    assert scale_rate(BoostRecipe(), backbone(32, 2), Console(quiet=True)).learning_rate == 0.02


@pytest.mark.parametrize("recipe", [BoostRecipe(learning_rate=0.005), CoOpRecipe()])
def test_a_rate_that_was_set_and_the_papers_sgd_are_kept(recipe):
    assert scale_rate(recipe, backbone(96, 4), Console(quiet=True)) is recipe


def test_a_scaled_rate_is_printed():
    out = Console(file=io.StringIO(), width=200)
    scale_rate(BoostRecipe(), backbone(96, 4), out)
    scale_rate(BoostRecipe(), backbone(768, 12), out)
    assert out.file.getvalue() == "learning_rate 0.0096 for some-vit, scaled from 0.0004 for ViT-B/16\n"


@pytest.mark.parametrize(("width", "depth", "is_small"), [(96, 4, True), (384, 12, True), (512, 12, False)])
def test_small_backbones_have_boosting_defaults_of_their_own(width, depth, is_small):
    out = Console(file=io.StringIO(), width=200)
    recipe = boost_defaults(BoostRecipe(), backbone(width, depth), out)
    values = SMALL_BOOST if is_small else {key: getattr(BoostRecipe(), key) for key in SMALL_BOOST}
    assert {key: getattr(recipe, key) for key in SMALL_BOOST} == dict(values)
    line = "temperature 4.0, augmentation none for some-vit: defaults for small backbones\n"
    assert out.file.getvalue().startswith(line) == is_small


def test_promptkd_has_the_same_values_for_every_backbone():
    recipe = boost_defaults(BoostRecipe(distillation="promptkd"), backbone(96, 4), Console(quiet=True))
    assert {key: getattr(recipe, key) for key in SMALL_BOOST} == {"temperature": 1.0, "augmentation": "crop-flip"}


def test_boosting_values_that_were_set_are_kept():
    recipe = boost_defaults(BoostRecipe(temperature=1.0), backbone(96, 4), Console(quiet=True))
    assert (recipe.temperature, recipe.augmentation) == (1.0, "none")


def test_the_papers_recipe_is_the_same_for_every_backbone():
    paper = read_boost_recipe(PAPER)
    assert boost_defaults(paper, backbone(96, 4), Console(quiet=True)) is paper
    assert paper.temperature == 1.0
