"""The settings that an ablation compares."""

import pytest

from training.ablation.settings import ABLATED_METHODS, Grid, Setting, quarter_depths
from training.adapting.methods import RECIPES
from training.errors import RecipeError
from training.recipe import BoostRecipe, read_recipe

GRID = Grid((1, 2, 4), tokens=(2, 4), default_tokens=4, budgets=(4, 8))


def test_depth_pairs_every_depth_of_phase_1_with_every_depth_of_phase_2():
    settings = GRID.settings(["depth"])
    assert {(each.boosting_depth, each.adapting_depth) for each in settings} == {
        (one, two) for one in (1, 2, 4) for two in (1, 2, 4)
    }
    assert {(each.boosting_tokens, each.adapting_tokens, each.learnable) for each in settings} == {(4, 4, False)}


def test_tokens_pairs_every_number_of_prompts_frozen_and_learnable_at_the_largest_depth():
    settings = GRID.settings(["tokens"])
    assert len(settings) == 2 * 2 * 2
    assert {(each.boosting_depth, each.adapting_depth) for each in settings} == {(4, 4)}


def test_budget_compares_adapting_prompts_alone_with_half_boosting_prompts():
    assert GRID.settings(["budget"]) == [
        Setting(0, 0, 4, 4),
        Setting(0, 0, 8, 4),
        Setting(2, 4, 2, 4),
        Setting(4, 4, 4, 4),
    ]
    for total in GRID.budgets:
        assert {setting.total_tokens for setting in GRID.budget_settings(total)} == {total}


def test_a_setting_of_several_studies_runs_once_and_equal_boosting_prompts_follow_each_other():
    settings = GRID.settings(["depth", "tokens", "budget"])
    assert len(settings) == len(set(settings)) == 9 + 8 - 1 + 2
    boosts = [(each.boosting_tokens, each.boosting_depth) for each in settings]
    assert len([one for one, before in zip(boosts, [None, *boosts], strict=False) if one != before]) == len(set(boosts))


def test_the_default_depths_of_twelve_layers_are_the_papers():
    assert quarter_depths(12) == (1, 3, 6, 9, 12)
    assert quarter_depths(4) == (1, 2, 3, 4)
    assert quarter_depths(3) == (1, 2, 3)


@pytest.mark.parametrize("method", ABLATED_METHODS)
def test_the_values_of_a_setting_fit_the_recipes(method):
    setting = Setting(6, 3, 5, 2, learnable=True)
    boost = read_recipe(BoostRecipe, None, setting.boost_overrides())
    assert (boost.image_tokens, boost.text_tokens, boost.image_depth, boost.text_depth) == (6, 6, 3, 3)
    recipe = read_recipe(RECIPES[method], None, setting.adapt_overrides(method))
    found = recipe.model_dump()
    assert {value for key, value in found.items() if key.endswith("tokens")} == {5}
    assert {value for key, value in found.items() if key.endswith("depth")} == {2}
    assert recipe.boosting == "learnable"


def test_the_ablated_methods_can_train_boosting_prompts():
    assert set(ABLATED_METHODS) == {"ivlp", "maple", "promptsrc"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depths": ()}, "depths must be integers of at least 1"),
        ({"depths": (1,), "tokens": (0,)}, "tokens must be integers of at least 1, found 0"),
        ({"depths": (1,), "budgets": (8, 7)}, "7 is odd"),
        ({"depths": (1,), "default_tokens": 0}, "at least 1, found 0"),
    ],
)
def test_impossible_grids_are_errors(values, message):
    with pytest.raises(RecipeError, match=message):
        Grid(**values)
