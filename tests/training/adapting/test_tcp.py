"""TCP: export, further classes, initial values and errors."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.errors import StackMismatchError, TextTooLongError
from prompted_clip.model import PromptedClip
from prompted_clip.provenance import new_provenance
from tests.base_models import feature_batch, tiny_base_model
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed
from tests.tiny import random_pixels
from training.adapting.tcp import TCP, TCPRecipe
from training.errors import ClassListError, RecipeError
from training.export import export_bundle


def tcp(base_model, class_names=CLASS_NAMES, **changes):
    return TCP(base_model, class_names, TCPRecipe(**changes))


def stack_of(base_model, method):
    data = export_bundle(
        base_model,
        method.fold(),
        domain="demo",
        class_names=CLASS_NAMES,
        template=method.template,
        provenance=new_provenance(method="tcp", phase="adapt", recipe={}, data_digests={}, metrics={}),
    )
    return PromptedClip(base_model.backbone).load_stack(read_bundle(data))


@pytest.mark.parametrize("boost", BOOSTS)
def test_the_bundle_scores_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = perturbed(tcp(base_model))
    model, stack, pixels = PromptedClip(base_model.backbone), stack_of(base_model, method), random_pixels(3)

    images = model.encode_images(pixels, [stack] * 3)
    expected = method.logits(feature_batch(base_model, [0, 1, 2]))

    features = feature_batch(base_model, [0, 1, 2]).features_BE
    cosines = features @ stack.text_features.T
    torch.testing.assert_close(base_model.logit_scale * cosines, expected, rtol=0, atol=1e-4)
    assert model.logits(images, stack).shape == (3, 3)


def test_a_further_class_has_the_features_that_it_would_have_with_images():
    base_model = tiny_base_model((2, 3))
    alone = tcp(base_model, further_classes=("lorry", "striped circle"))
    together = tcp(base_model, [*CLASS_NAMES, "lorry", "striped circle"])
    together.load_state_dict(alone.state_dict())

    exported = alone.fold()

    assert exported.further_classes == ("lorry", "striped circle")
    torch.testing.assert_close(exported.text_features_KE, together.fold().text_features_KE, rtol=0, atol=1e-6)
    assert stack_of(base_model, alone).class_names == (*CLASS_NAMES, "lorry", "striped circle")


def test_other_labels_are_refused_with_the_reason():
    base_model = tiny_base_model()
    stack = stack_of(base_model, tcp(base_model))

    with pytest.raises(StackMismatchError, match="text features that its prompts cannot compute"):
        PromptedClip(base_model.backbone).with_labels(stack, ["lorry"])


def test_the_boosting_prompts_under_it_serve_alone():
    base_model = tiny_base_model((2, 3))
    stack = stack_of(base_model, perturbed(tcp(base_model)))

    boosted = PromptedClip(base_model.backbone).boost_stack(stack)

    expected = base_model.zero_shot_text(CLASS_NAMES, ["{}."])
    torch.testing.assert_close(boosted.text_features, expected, rtol=0, atol=1e-6)
    assert (boosted.text_features - stack.text_features).abs().max() > 0.1
    assert boosted.labels == "any"


def test_the_tokens_of_a_class_depend_on_its_name():
    method = perturbed(tcp(tiny_base_model()))
    with torch.no_grad():
        before = method.logits(feature_batch(method.base_model, [0, 1]))
        method.meta_net.linear2.weight.zero_()
        after = method.logits(feature_batch(method.base_model, [0, 1]))

    assert (before - after).abs().min() > 1e-4


def test_a_layer_beyond_the_tower_is_the_last_one():
    base_model = tiny_base_model()
    last, beyond = (tcp(base_model, layer=layer) for layer in (2, 8))

    assert torch.equal(last.fold().text_features_KE, beyond.fold().text_features_KE)


def test_the_defaults_are_those_of_the_repository():
    recipe = TCPRecipe()
    method = tcp(tiny_base_model())

    assert (recipe.learning_rate, recipe.epochs, recipe.batch_size, recipe.warmup_learning_rate) == (
        0.002,
        50,
        32,
        1e-5,
    )
    assert (recipe.layer, recipe.text_weight) == (8, 8.0)
    assert method.context.shape == (4, 32)
    assert method.meta_net.linear1.out_features == method.meta_net.linear1.in_features // 4
    assert method.meta_net.linear2.out_features == 4 * 32


@pytest.mark.parametrize("further", [("cat",), ("lorry", "Lorry")])
def test_a_further_class_must_be_new(further):
    with pytest.raises(RecipeError, match="each once"):
        tcp(tiny_base_model(), further_classes=further)


def test_an_invalid_further_class_is_an_error_before_training():
    with pytest.raises(ClassListError, match="further_classes, class 0"):
        tcp(tiny_base_model(), further_classes=("\u200b",))


def test_a_class_name_that_is_too_long_is_named():
    with pytest.raises(TextTooLongError, match="striped striped"):
        tcp(tiny_base_model((2, 3)), ["cat", "striped " * 70])
