"""The demo world's ablation: values that the settings may vary are not fixed."""

from training.ablation.settings import STUDIES, Grid
from training.adapting.methods import RECIPES
from training.demo.ablate_domain import ADAPT_VALUES, BOOST_EPOCHS, DEPTHS, TOKENS, _values
from training.demo.adapt_domains import read_recipes
from training.demo.boost_domains import RECIPE
from training.recipe import BoostRecipe, read_recipe


def test_image_prompts_vary_and_text_prompts_keep_the_demo_recipes():
    boost, adapt = read_recipe(BoostRecipe, RECIPE), read_recipes()["promptsrc"]
    for setting in Grid(DEPTHS, TOKENS).settings(STUDIES):
        found = read_recipe(
            RECIPES["promptsrc"], None, [*setting.adapt_overrides("promptsrc"), *_values(adapt, ADAPT_VALUES)]
        )
        assert (found.image_tokens, found.image_depth) == (setting.adapting_tokens, setting.adapting_depth)
        assert (found.text_tokens, found.text_depth) == (adapt.text_tokens, adapt.text_depth)
        assert (found.boosting == "learnable") == setting.learnable
        assert found.epochs == ADAPT_VALUES["epochs"]
        if setting.is_boosted:
            values = [*setting.boost_overrides(), *_values(boost, {"epochs": BOOST_EPOCHS})]
            own = read_recipe(BoostRecipe, None, values)
            assert (own.image_tokens, own.image_depth) == (setting.boosting_tokens, setting.boosting_depth)
            assert (own.text_tokens, own.text_depth, own.epochs) == (boost.text_tokens, boost.text_depth, BOOST_EPOCHS)
