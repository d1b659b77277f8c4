import dataclasses

import pytest

from tests.training.data.tiny_images import imagined
from training.errors import RecipeError
from training.evaluation.paper_recipes import adapt_recipe, boost_recipe, check_overrides


@pytest.fixture
def named(tmp_path):
    imagination = imagined(tmp_path, {"train": [0, 1], "test": [0, 1]}, 2, template="{} texture.")
    return lambda name: dataclasses.replace(imagination, name=name)


@pytest.mark.parametrize(
    ("method", "dataset", "protocol", "shots", "values"),
    [
        ("coop", "dtd", "few-shot", 1, {"epochs": 50, "context_init": "", "context_tokens": 16}),
        ("coop", "dtd", "few-shot", 4, {"epochs": 100, "context_init": ""}),
        ("coop", "dtd", "few-shot", 16, {"epochs": 200, "context_init": ""}),
        ("coop", "imagenet", "few-shot", 16, {"epochs": 50, "context_init": ""}),
        ("coop", "dtd", "base-to-new", 16, {"epochs": 200, "context_init": "a photo of a"}),
        ("coop", "imagenet", "base-to-new", 16, {"epochs": 50, "context_init": "a photo of a"}),
        ("coop", "imagenet", "cross-dataset", 16, {"epochs": 50, "context_init": "a photo of a"}),
        ("coop", "imagenet", "domain-generalisation", 16, {"epochs": 50, "context_init": "a photo of a"}),
        ("maple", "imagenet", "cross-dataset", 16, {"epochs": 2, "learning_rate": 0.0026, "depth": 3}),
        ("maple", "imagenet", "domain-generalisation", 16, {"epochs": 2, "learning_rate": 0.0026, "depth": 3}),
        ("maple", "dtd", "base-to-new", 16, {"epochs": 5, "learning_rate": 0.0035, "depth": 9}),
        ("promptsrc", "dtd", "few-shot", 16, {"epochs": 50, "gpa_mean": 45, "gpa_std": 5}),
        ("promptsrc", "ucf101", "few-shot", 16, {"epochs": 50, "gpa_mean": 30, "gpa_std": 30}),
        ("promptsrc", "imagenet", "domain-generalisation", 16, {"text_depth": 3, "image_depth": 3, "gpa_std": 10}),
        ("promptsrc", "dtd", "base-to-new", 16, {"epochs": 20, "gpa_mean": 15, "gpa_std": 1}),
    ],
)
def test_each_table_has_its_own_values(named, method, dataset, protocol, shots, values):
    recipe = adapt_recipe(method, named(dataset), protocol, shots=shots)
    assert {key: getattr(recipe, key) for key in values} == values


@pytest.mark.parametrize("method", ["vpt", "prograd"])
def test_recipes_use_the_data_sets_hand_written_prompt(named, method):
    assert adapt_recipe(method, named("dtd"), "base-to-new", shots=16).template == "{} texture."


def test_an_override_applies_to_the_methods_with_its_key(named):
    overrides = ["epochs=3", "coop.batch_size=2", "gpa_std=2.5"]
    check_overrides(["coop", "promptsrc"], overrides)
    coop = adapt_recipe("coop", named("dtd"), "few-shot", shots=1, overrides=overrides)
    promptsrc = adapt_recipe("promptsrc", named("dtd"), "few-shot", shots=1, overrides=overrides)
    assert (coop.epochs, coop.batch_size) == (3, 2)
    assert (promptsrc.epochs, promptsrc.batch_size, promptsrc.gpa_std) == (3, 4, 2.5)


@pytest.mark.parametrize("entry", ["epoch=3", "maple.epochs=3", "coop.gpa_std=1", "epochs", "seed=2"])
def test_an_override_without_a_matching_method_is_rejected(entry):
    with pytest.raises(RecipeError):
        check_overrides(["coop", "promptsrc"], [entry])


def test_three_data_sets_use_a_lower_loss_weight_by_default(named):
    weights = {name: boost_recipe(named(name)).loss_weight for name in ("dtd", "oxford_flowers", "fgvc_aircraft")}
    assert set(weights.values()) == {200}
    assert boost_recipe(named("ucf101")).loss_weight == 1000
    assert boost_recipe(named("dtd"), ["loss_weight=500"]).loss_weight == 500
    assert boost_recipe(named("dtd")).teacher_template == "{} texture."
