import dataclasses

import pytest

from tests.tiny import tiny_backbone
from tests.training.data.tiny_images import imagined
from training.adapting.methods import METHODS
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
        ("prograd", "dtd", "base-to-new", 16, {"epochs": 100, "projection": 1, "context_tokens": 16}),
        ("prograd", "imagenet", "base-to-new", 4, {"epochs": 50}),
        ("prograd", "ucf101", "few-shot", 1, {"epochs": 50, "projection": 1}),
        ("prograd", "dtd", "few-shot", 4, {"epochs": 100, "projection": 1}),
        ("prograd", "ucf101", "few-shot", 16, {"epochs": 200, "projection": 1}),
        ("prograd", "imagenet", "few-shot", 16, {"epochs": 50}),
        ("prograd", "imagenet", "domain-generalisation", 4, {"epochs": 50, "projection": 1}),
        *(
            ("prograd", name, "few-shot", shots, {"epochs": 200, "projection": 0.8})
            for name in ("oxford_flowers", "dtd", "eurosat")
            for shots in (8, 16)
        ),
    ],
)
def test_each_table_has_its_own_values(named, method, dataset, protocol, shots, values):
    recipe = adapt_recipe(method, named(dataset), protocol, shots=shots)
    assert {key: getattr(recipe, key) for key in values} == values


def test_recipes_use_the_data_sets_hand_written_prompt(named):
    assert adapt_recipe("vpt", named("dtd"), "base-to-new", shots=16).template == "{} texture."
    assert adapt_recipe("prograd", named("own"), "base-to-new", shots=16).template == "{} texture."
    assert adapt_recipe("prograd", named("own"), "base-to-new", shots=16).context_init == "a photo of a"


@pytest.mark.parametrize(
    ("dataset", "template", "n_inside"),
    [
        ("oxford_pets", "a type of pet, a photo of a {}.", 8),
        ("oxford_flowers", "a type of flower, a photo of a {}.", 8),
        ("fgvc_aircraft", "a type of aircraft, a photo of a {}.", 8),
        ("food101", "a type of food, a photo of {}.", 7),
        ("dtd", "a texture of {}.", 3),
        ("eurosat", "a centered satellite photo of {}.", 5),
        ("ucf101", "a photo of a person doing {}.", 6),
        ("stanford_cars", "a photo of a {}.", 4),
        ("imagenet", "a photo of a {}.", 4),
    ],
)
def test_prograds_context_starts_with_as_many_tokens_as_its_words(named, dataset, template, n_inside):
    recipe, tokenizer = adapt_recipe("prograd", named(dataset), "few-shot", shots=16), tiny_backbone().tokenizer
    words = template.removesuffix(" {}.")
    assert recipe.template == template
    assert len(words.split(" ")) == n_inside
    assert tokenizer.encode(recipe.context_init) == tokenizer.encode(words)[:n_inside]
    assert f"{recipe.context_init} {recipe.context_template}" == template


@pytest.mark.parametrize("method", METHODS)
def test_the_last_incomplete_batch_is_dropped_as_in_dassl(named, method):
    assert adapt_recipe(method, named("dtd"), "base-to-new", shots=16).drop_last
    assert not adapt_recipe(method, named("dtd"), "few-shot", shots=1, overrides=["drop_last=false"]).drop_last
    assert boost_recipe(named("dtd")).drop_last


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


def test_boosting_for_a_table_uses_the_papers_values_not_the_default(named):
    recipe = boost_recipe(named("dtd"))
    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs, recipe.temperature) == ("sgd", 0.0025, 20, 1)
    assert (recipe.image_tokens, recipe.text_tokens, recipe.image_depth, recipe.text_depth) == (8, 8, 12, 12)
    assert (recipe.text_init, recipe.text_rate_factor) == ("", 1.0)  # all prompts start at random
    assert (recipe.batch_size, recipe.weight_decay, recipe.warmup_epochs) == (8, 5e-4, 1)  # PromptKD's


@pytest.mark.parametrize(
    ("method", "protocol", "values"),
    [
        ("coop", "base-to-new", {"context_tokens": 8, "context_init": "", "epochs": 50, "learning_rate": 0.002}),
        ("cocoop", "base-to-new", {"context_tokens": 8, "context_init": "", "epochs": 10, "learning_rate": 0.002}),
        ("maple", "base-to-new", {"tokens": 8, "depth": 12, "epochs": 5, "learning_rate": 0.0035}),
        ("maple", "domain-generalisation", {"tokens": 8, "depth": 12, "epochs": 2, "learning_rate": 0.0026}),
        ("promptsrc", "base-to-new", {"image_tokens": 8, "text_tokens": 8, "image_depth": 12, "epochs": 20}),
        ("promptsrc", "few-shot", {"image_tokens": 8, "text_tokens": 8, "text_depth": 12, "epochs": 50}),
    ],
)
def test_methods_on_boosting_prompts_use_the_papers_settings(named, method, protocol, values):
    boosted = adapt_recipe(method, named("dtd"), protocol, shots=16, boosted=True)
    assert {key: getattr(boosted, key) for key in values} == values
    assert adapt_recipe(method, named("dtd"), protocol, shots=16) != boosted


def test_methods_that_the_paper_does_not_boost_use_the_same_recipe_on_boosting_prompts(named):
    for method in ("vpt", "ivlp", "prograd", "dept", "upt"):
        plain, boosted = (
            adapt_recipe(method, named("dtd"), "base-to-new", shots=16, boosted=flag) for flag in (False, True)
        )
        assert plain == boosted
