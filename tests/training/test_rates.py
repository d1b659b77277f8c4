"""Default learning rates by the size of the backbone."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from training.adapting.coop import CoOpRecipe
from training.rates import scale_rate
from training.recipe import BoostRecipe


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
