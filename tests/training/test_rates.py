"""Default learning rates by the size of the backbone."""

from types import SimpleNamespace

import pytest

from tests.tiny import tiny_backbone
from training.adapting.coop import CoOpRecipe
from training.rates import scale_rate
from training.recipe import BoostRecipe


@pytest.mark.parametrize("recipe", [BoostRecipe(), CoOpRecipe()])
def test_vit_b_16_gets_the_published_rate_and_smaller_backbones_less(recipe):
    b16 = SimpleNamespace(vision_width=768, n_vision_layers=12)
    assert scale_rate(recipe, b16).learning_rate == recipe.learning_rate
    smaller = scale_rate(recipe, tiny_backbone())
    assert 0 < smaller.learning_rate < recipe.learning_rate


def test_a_rate_that_was_set_is_kept():
    recipe = BoostRecipe(learning_rate=0.005)
    assert scale_rate(recipe, tiny_backbone()) is recipe
