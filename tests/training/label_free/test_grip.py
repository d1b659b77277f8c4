"""GRIP: which pseudo-labels and how many, loss and gradients in float64, and the iterations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.base_models import feature_batch, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed, pixel_batch
from tests.reference.one_step import assert_same_step, cross_entropy, slow_features
from tests.reference.slow_upt import linear, transformed
from training.label_free.grip import GRIPRecipe, build_prompts, leaders, learn_grip
from training.label_free.method import Encoded, Unlabelled
from training.loop import TrainState
from training.recipe import read_recipe

N_IMAGES = 9


def probabilities(n_images, n_classes, seed, temperature=3.0):
    generator = torch.Generator().manual_seed(seed)
    scores = temperature * torch.randn(n_images, n_classes, generator=generator, dtype=torch.float64)
    return scores.softmax(dim=1)


def pairs(found):
    return list(zip(found.rows_N.tolist(), found.labels_N.tolist(), strict=True))


@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 12), st.integers(0, 99))
def test_every_class_takes_its_most_confident_images_and_those_that_their_own_class_left_over(
    n_images, n_classes, k, seed
):
    p = probabilities(n_images, n_classes, seed).tolist()
    predicted = [row.index(max(row)) for row in p]
    kept = set()
    for label in range(n_classes):
        own = sorted((i for i in range(n_images) if predicted[i] == label), key=lambda i: -p[i][label])
        kept |= {(i, label) for i in own[:k]}
    left_over = [i for i in range(n_images) if (i, predicted[i]) not in kept]
    expected = []
    for label in range(n_classes):
        candidates = [i for i in range(n_images) if (i, label) in kept] + left_over
        expected += [(i, label) for i in sorted(sorted(candidates, key=lambda i: -p[i][label])[:k])]

    assert pairs(leaders(torch.tensor(p, dtype=torch.float64), k)) == expected


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 99), st.data())
def test_no_class_has_fewer_pseudo_labels_than_another_while_there_are_enough_images(n_images, n_classes, seed, data):
    n_images = max(n_images, n_classes)
    k = data.draw(st.integers(1, n_images // n_classes))
    found = leaders(probabilities(n_images, n_classes, seed), k)
    assert found.labels_N.bincount(minlength=n_classes).tolist() == [k] * n_classes


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 99))
def test_the_order_of_the_images_has_no_effect(n_images, k, seed):
    p = probabilities(n_images, 3, seed)
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))
    moved = leaders(p[order], k)
    assert sorted((int(order[row]), label) for row, label in pairs(moved)) == sorted(pairs(leaders(p, k)))


def test_the_number_of_pseudo_labels_grows_to_all_images():
    recipe = GRIPRecipe()
    assert recipe.images_per_iteration(4000, 80) == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert recipe.images_per_iteration(1234, 10) == [number * 123 // 10 for number in range(1, 11)]
    assert recipe.images_per_iteration(7, 10) == [1] * 10


@pytest.mark.parametrize(("strategy", "expected"), [("fpl", [16]), ("ifpl", [16] * 4)])
def test_the_other_strategies_keep_the_number_of_pseudo_labels(strategy, expected):
    assert GRIPRecipe(strategy=strategy, iterations=4).images_per_iteration(4000, 80) == expected


@pytest.mark.parametrize("boost", BOOSTS)
def test_a_step_of_textual_prompts_matches_the_equations(boost):
    base_model = tiny_base_model(boost, torch.float64)
    method = perturbed(build_prompts(base_model, CLASS_NAMES, GRIPRecipe(tokens=3)).double())
    batch, labels = feature_batch(base_model, [2, 0, 1]), torch.tensor([2, 0, 1])
    texts = [f"{name}." for name in CLASS_NAMES]
    f, g, s = slow_features(base_model, pixel_batch(base_model).images_BCHW, texts, None, method.context.unsqueeze(0))
    assert_same_step(method, batch, cross_entropy(s * f @ g.T, labels))


@pytest.mark.parametrize("boost", BOOSTS)
def test_a_step_of_visual_prompts_matches_the_equations(boost):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = GRIPRecipe(prompts="visual", tokens=3, template="a drawing of a {}.")
    method, batch = perturbed(build_prompts(base_model, CLASS_NAMES, recipe).double()), pixel_batch(base_model)
    assert method.image_prompts.shape[:2] == (1, 3)
    texts = [f"a drawing of a {name}." for name in CLASS_NAMES]
    f, g, s = slow_features(base_model, batch.images_BCHW, texts, method.image_prompts, None)
    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))


@pytest.mark.parametrize("boost", BOOSTS)
def test_a_step_of_multimodal_prompts_matches_the_equations(boost):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = GRIPRecipe(prompts="multimodal", tokens=2, transformer_width=8)
    method, batch = perturbed(build_prompts(base_model, CLASS_NAMES, recipe).double()), pixel_batch(base_model)
    tensors = dict(method.named_parameters())
    assert tensors["ffn_in.weight"].shape == (32, 8)
    (layer,) = [transformed(u, tensors, 1, 8) for u in tensors["unified"]]
    prompts = (linear(layer[2:], tensors, "to_image")[None], linear(layer[:2], tensors, "to_text")[None])
    f, g, s = slow_features(base_model, batch.images_BCHW, [f"{name}." for name in CLASS_NAMES], *prompts)
    assert_same_step(method, batch, cross_entropy(s * f @ g.T, batch.labels_B))


class Spy:
    """Records trainings and scores images with fixed values per iteration."""

    def __init__(self):
        self.base_model = tiny_base_model()
        self.scores = [probabilities(N_IMAGES, 3, seed).log() for seed in range(4)]
        self.trained, self.scored, self.first_values = [], [], []

    def train(self, method, found, _recipe, *, iteration):
        self.first_values.append(method.context.detach().clone())
        with torch.no_grad():
            method.context.add_(1.0)
        self.trained.append((method, pairs(found), iteration))
        return TrainState(2, [1.0, 2.0])

    def score(self, method):
        self.scored.append(method)
        return self.scores[len(self.scored)]

    def learn(self, recipe):
        text = self.base_model.zero_shot_text(CLASS_NAMES, ["{}."])
        encoded = Encoded(torch.zeros(N_IMAGES, 24), text, self.scores[0], "{}.")
        return learn_grip(Unlabelled(self.base_model, CLASS_NAMES, encoded, self.train, self.score), recipe)


def test_each_iteration_trains_on_what_the_previous_prompts_predict():
    spy = Spy()
    learned = spy.learn(GRIPRecipe(iterations=3, tokens=2))

    methods = [method for method, _, _ in spy.trained]
    assert [found for _, found, _ in spy.trained] == [
        pairs(leaders(scores.double().softmax(1), k)) for scores, k in zip(spy.scores[:3], [1, 2, 3], strict=True)
    ]
    assert [iteration for _, _, iteration in spy.trained] == [(1, 3), (2, 3), (3, 3)]
    assert spy.scored == methods[:2]
    assert torch.equal(learned.exported.text_adapt, methods[2].context.detach().unsqueeze(0))
    assert (learned.trained.step, learned.trained.losses) == (6, [1.0, 2.0] * 3)
    assert learned.metrics["n_pseudo_labels"] == 9


def test_prompts_start_from_the_same_values_in_each_iteration():
    spy = Spy()
    spy.learn(GRIPRecipe(iterations=3, tokens=2))
    assert all(torch.equal(values, spy.first_values[0]) for values in spy.first_values)


def test_multimodal_prompts_have_defaults_of_their_own():
    recipe = read_recipe(GRIPRecipe, None, ["prompts=multimodal"])
    assert (recipe.learning_rate, recipe.tokens) == (0.01, 4)
    recipe = read_recipe(GRIPRecipe, None, ["prompts=multimodal", "learning_rate=0.3", "tokens=2"])
    assert (recipe.learning_rate, recipe.tokens) == (0.3, 2)
    assert (GRIPRecipe(prompts="visual").learning_rate, GRIPRecipe().tokens) == (0.1, 16)
