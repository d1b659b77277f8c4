"""Recipes and class lists: parsing and validation."""

from pathlib import Path

import pytest

from training.data.class_list import read_classes
from training.errors import ClassListError, RecipeError
from training.recipe import PAPER, PAPER_BOOST, BoostRecipe, read_boost_recipe, read_recipe


def test_a_printed_recipe_reads_back_as_itself(tmp_path):
    recipe = BoostRecipe(epochs=3, text_init='say "hi"')
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert read_recipe(BoostRecipe, tmp_path / "r.toml") == recipe


def test_a_printed_recipe_names_every_key():
    assert all(f"{name} = " in BoostRecipe().to_toml() for name in BoostRecipe.model_fields)


def test_an_unknown_key_is_an_error_that_lists_the_known_ones(tmp_path):
    (tmp_path / "r.toml").write_text("epoch = 3\n")
    with pytest.raises(RecipeError, match=r"unknown recipe key 'epoch'.*epochs"):
        read_recipe(BoostRecipe, tmp_path / "r.toml")


def test_overrides_win_over_the_file(tmp_path):
    (tmp_path / "r.toml").write_text("epochs = 3\nbatch_size = 2\n")
    recipe = read_recipe(BoostRecipe, tmp_path / "r.toml", ["epochs=7", "optimizer=adamw"])
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (7, 2, "adamw")


@pytest.mark.parametrize(
    ("entry", "message"),
    [("epochs=0", "'epochs'.*found 0"), ("epochs", "key=value"), ("optimizer=adam", "'optimizer'")],
)
def test_invalid_values_are_named(entry, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(BoostRecipe, None, [entry])


def test_a_missing_or_broken_recipe_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="absent"):
        read_recipe(BoostRecipe, tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(BoostRecipe, tmp_path / "bad.toml")


def test_the_papers_recipe_is_selected_by_its_name():
    recipe = read_boost_recipe(PAPER, ["epochs=7", "text_tokens=4"])
    expected = {"image_tokens": 8, "image_depth": 12, "text_depth": 12, "text_init": "", "text_rate_factor": 1.0}
    expected |= {"optimizer": "sgd", "learning_rate": 0.0025, "epochs": 7, "text_tokens": 4}
    assert {key: getattr(recipe, key) for key in expected} == expected
    assert recipe.model_fields_set == {*PAPER_BOOST, "epochs"}


def test_any_other_recipe_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("paper").write_text("epochs = 3\n")
    assert read_boost_recipe(Path("paper").resolve()).epochs == 3
    assert read_boost_recipe(None) == BoostRecipe()
    with pytest.raises(RecipeError, match="Cannot read the recipe papers"):
        read_boost_recipe(Path("papers"))


def test_class_lists_skip_blank_lines_and_turn_underscores_into_spaces(tmp_path):
    (tmp_path / "c.txt").write_text("annual_crop\n\n  forest  \n")
    assert read_classes(tmp_path / "c.txt") == ["annual crop", "forest"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), ("cat\nCat\n", "'Cat' twice"), ("a_b\na b\n", "'a b' twice")]
)
def test_empty_and_ambiguous_class_lists_are_rejected(tmp_path, text, message):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(ClassListError, match=message):
        read_classes(tmp_path / "c.txt")


def test_a_missing_class_list_is_named(tmp_path):
    with pytest.raises(ClassListError, match=r"absent\.txt"):
        read_classes(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["epochs=1", "warmup_epochs=1"], "warmup_epochs must be less than epochs, found 1 of 1"),
        (["image_tokens=0", "text_tokens=0"], "nothing to train"),
        (["image_tokens=0", "distillation=promptkd"], "nothing to train"),
    ],
)
def test_a_recipe_with_nothing_to_train_is_rejected(settings, says):
    with pytest.raises(RecipeError, match=says):
        read_recipe(BoostRecipe, None, settings)
