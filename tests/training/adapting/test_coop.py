"""CoOp: gradients, contexts and export."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_classes
from tests.base_models import feature_batch, random_images, tiny_base_model
from training.adapting.coop import CoOp, CoOpRecipe

CLASSES = ["cat", "striped circle", "dog"]
POSITIONS = ["end", "middle", "front"]
STACKS = [None, (2, 3)]


def coop(base_model, class_names=CLASSES, **changes):
    return CoOp(base_model, class_names, CoOpRecipe(**({"context_tokens": 3} | changes)))


@pytest.mark.parametrize("position", POSITIONS)
def test_gradients_reach_the_context_and_nothing_else(position):
    base_model = tiny_base_model((2, 3))
    method = coop(base_model, position=position)

    loss = method.loss(feature_batch(base_model, [0, 2]))
    loss.backward()

    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert [name for name, _ in method.named_parameters()] == ["context"]
    assert [list(group.parameters) for group in method.parameter_groups()] == [[method.context]]
    assert method.context.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in base_model.backbone.clip.parameters())
    assert not base_model.text_boost.requires_grad
    assert base_model.text_boost.grad is None


@pytest.mark.parametrize("class_specific", [False, True])
def test_steps_against_the_gradient_lower_the_loss(class_specific):
    base_model = tiny_base_model((2, 3))
    method = coop(base_model, class_specific=class_specific)
    batch = feature_batch(base_model, [0, 1, 2])
    optimizer = torch.optim.SGD(method.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(method.loss(batch))
        losses[-1].backward()
        optimizer.step()

    assert losses[-1].item() < losses[0].item()


@pytest.mark.parametrize(
    ("position", "words", "template"),
    [
        ("end", "a photo of a", "a photo of a {}."),
        ("middle", "a photo of a", "a photo {} of a."),
        ("middle", "a photo of", "a {} photo of."),
        ("front", "a photo", "{} a photo."),
    ],
)
@pytest.mark.parametrize("class_specific", [False, True])
def test_a_context_of_word_embeddings_equals_the_hand_written_prompt(position, words, template, class_specific):
    base_model = tiny_base_model()
    method = coop(base_model, context_init=words, position=position, class_specific=class_specific)

    found = method.texts.encode(method.context)

    torch.testing.assert_close(found, base_model.zero_shot_text(CLASSES, [template]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("boost", STACKS)
def test_equal_class_specific_contexts_equal_the_shared_one(position, boost):
    base_model = tiny_base_model(boost)
    unified, specific = coop(base_model, position=position), coop(base_model, position=position, class_specific=True)
    with torch.no_grad():
        specific.context.copy_(unified.context.expand(3, -1, -1))
    batch = feature_batch(base_model, [0, 2])

    torch.testing.assert_close(specific.logits(batch), unified.logits(batch), rtol=0, atol=1e-5)


def test_a_class_specific_context_affects_only_its_class():
    base_model = tiny_base_model((2, 3))
    method, batch = coop(base_model, class_specific=True), feature_batch(base_model, [0, 2])
    before = method.logits(batch)
    with torch.no_grad():
        method.context[1] += torch.randn(3, 32, generator=torch.Generator().manual_seed(0))

    moved = (method.logits(batch) - before).abs().amax(dim=0)

    assert moved[1] > 1e-2
    assert moved[[0, 2]].max() == 0


@pytest.mark.parametrize("boost", STACKS)
@pytest.mark.parametrize("class_specific", [False, True])
def test_an_exported_context_scores_like_the_method(boost, class_specific):
    base_model = tiny_base_model(boost)
    method = coop(base_model, class_specific=class_specific)
    exported = method.fold()

    assert exported.text_adapt.shape == ((3, 1, 3, 32) if class_specific else (1, 3, 32))
    assert exported.is_closed_vocabulary is class_specific
    assert exported.text_features_KE is None
    group = join_groups([exported.text_adapt, base_model.text_boost])
    texts = encode_classes(base_model.backbone, CLASSES, [method.template], group)
    compare_with_logits(base_model, method, texts)


@pytest.mark.parametrize("boost", STACKS)
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", ["middle", "front"])
def test_exported_text_features_score_like_the_method_if_the_name_is_not_at_the_end(boost, class_specific, position):
    base_model = tiny_base_model(boost)
    method = coop(base_model, class_specific=class_specific, position=position)
    exported = method.fold()

    assert exported.text_adapt is None
    assert exported.is_closed_vocabulary
    compare_with_logits(base_model, method, exported.text_features_KE)


def compare_with_logits(base_model, method, texts):
    images = base_model.encode_images(random_images(2))
    cosines = method.logits(feature_batch(base_model, [0, 2])) / base_model.logit_scale
    assert not texts.requires_grad
    torch.testing.assert_close(images @ texts.T, cosines, rtol=0, atol=1e-6)


def test_exported_tensors_do_not_change_with_further_training():
    method = coop(tiny_base_model())
    exported = method.fold()
    before = exported.text_adapt.clone()
    with torch.no_grad():
        method.context.add_(1.0)

    assert torch.equal(exported.text_adapt, before)


def test_a_class_name_that_is_too_long_is_named():
    name = " ".join(["cat"] * 70)

    with pytest.raises(TextTooLongError, match="cat cat"):
        coop(tiny_base_model((2, 3)), ["dog", name])


@pytest.mark.parametrize("class_specific", [False, True])
def test_the_seed_determines_the_context(class_specific):
    base_model = tiny_base_model()
    first, again, other = (coop(base_model, class_specific=class_specific, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(first.context, again.context)
    assert not torch.equal(first.context, other.context)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_state_dict_is_the_context_alone_and_loads_for_other_classes(position):
    base_model = tiny_base_model((2, 3))
    trained = coop(base_model, ["lorry", "boat"], position=position, seed=1)
    fresh = coop(base_model, CLASSES, position=position, seed=2)

    state = trained.state_dict()
    fresh.load_state_dict(state)

    assert list(state) == ["context"]
    same_classes = coop(base_model, CLASSES, position=position, seed=1)
    batch = feature_batch(base_model, [0, 2])
    assert torch.equal(fresh.logits(batch), same_classes.logits(batch))


def test_the_defaults_are_those_of_the_paper():
    recipe = CoOpRecipe()

    assert (recipe.learning_rate, recipe.epochs, recipe.batch_size) == (0.002, 200, 32)
    assert (recipe.optimizer, recipe.weight_decay, recipe.warmup_epochs, recipe.warmup_learning_rate) == (
        "sgd",
        5e-4,
        1,
        1e-5,
    )
    assert CoOp(tiny_base_model(), CLASSES, recipe).context.shape == (16, 32)
