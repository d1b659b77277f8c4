"""The table of further methods: its runs, its lines and the saved numbers."""

import json
from pathlib import Path

import pytest

from training.adapting.methods import METHODS
from training.demo.further_methods import PROMPTKD, RECIPES, SEEDS, markdown_table, trials
from training.recipe import BoostRecipe, read_recipe

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def filed():
    return json.loads((ROOT / "docs" / "results" / "demo-further.json").read_text())


def test_the_table_has_a_line_for_each_method_and_names_the_teachers():
    rows = [
        {"domain": "fog", "method": method, "boosted": boosted, "seed": seed}
        | dict.fromkeys(("base", "new", "h"), 40.0 + seed + (10 if boosted else 0))
        for method in ("coop", "coop-attributes")
        for seed in (1, 2)
        for boosted in (False, True)
    ]
    teachers = {"plain": {"base": 60.0, "new": 50.0, "h": 54.55}}

    _, _, *lines, _, facts = markdown_table({"rows": rows, "teachers": teachers}).splitlines()

    cell = "41.5 ± 0.7 / 41.5 ± 0.7 / 41.5 ± 0.7"
    assert lines[1] == f"| coop-attributes | {cell} | {cell.replace('41.5', '51.5')} | +10.0 |"
    assert facts == "Domain: fog. Teachers of PromptKD: plain 60.0 / 50.0 / 54.5."


def test_lines_are_compared_with_equal_training_and_numbers_of_tokens():
    recipes = {label: trial.recipe for label, trial in trials()}
    with_attributes, plain = recipes["coop-attributes"], recipes["coop-six-tokens"]
    n_tokens = len(with_attributes.attributes) * (with_attributes.attribute_tokens + 1) + with_attributes.context_tokens

    assert n_tokens == plain.context_tokens
    shared = ("learning_rate", "epochs", "batch_size", "optimizer", "weight_decay", "augmentation")
    assert len({tuple(getattr(recipe, name) for name in shared) for recipe in recipes.values()}) == 1
    assert [trial.seed for _, trial in trials()] == list(SEEDS) * len(recipes)
    assert {trial.method for _, trial in trials()} <= METHODS.keys()


def test_promptkd_has_a_recipe():
    assert read_recipe(BoostRecipe, RECIPES, table=PROMPTKD).distillation == "promptkd"


def test_the_file_has_every_line_with_and_without_boosting(filed):
    expected = {(label, trial.seed) for label, trial in trials()} | {
        ("zero-shot", None),
        *((PROMPTKD, seed) for seed in SEEDS),
    }
    for boosted in (False, True):
        assert {(row["method"], row["seed"]) for row in filed["rows"] if row["boosted"] is boosted} == expected
    for row in filed["rows"]:
        assert row["h"] == pytest.approx(2 * row["base"] * row["new"] / (row["base"] + row["new"]), abs=0.02)


def test_the_page_shows_the_saved_numbers(filed):
    assert markdown_table(filed) in (ROOT / "docs" / "methods.md").read_text()
