"""CoCoOp: gradients, conditional text features, memory and export."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from prompted_clip.internals import text_blocks
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_classes
from tests.base_models import feature_batch, random_images, tiny_base_model
from training.adapting.cocoop import CoCoOp, CoCoOpRecipe

CLASSES = ["cat", "striped circle", "dog"]
NAMES = ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]


def cocoop(base_model, class_names=CLASSES, **changes):
    return CoCoOp(base_model, class_names, CoCoOpRecipe(**({"meta_reduction": 4} | changes)))


def test_gradients_reach_the_context_and_the_meta_net_and_nothing_else():
    base_model = tiny_base_model((2, 3))
    method = cocoop(base_model)

    loss = method.loss(feature_batch(base_model, [0, 2]))
    loss.backward()

    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert [name for name, _ in method.named_parameters()] == ["context", *[f"meta_net.{name}" for name in NAMES]]
    (group,) = method.parameter_groups()
    assert {id(parameter) for parameter in group.parameters} == {id(parameter) for parameter in method.parameters()}
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all(parameter.grad is None for parameter in base_model.backbone.clip.parameters())
    assert not base_model.text_boost.requires_grad
    assert base_model.text_boost.grad is None


def test_every_image_has_its_own_text_features():
    base_model = tiny_base_model()
    method, batch = cocoop(base_model), feature_batch(base_model, [0, 2])

    texts = method._text_features(batch.features_BE)

    assert texts.shape == (2, 3, 24)
    assert (texts[0] - texts[1]).abs().max() > 1e-4


def test_a_zero_meta_net_equals_the_hand_written_prompt():
    base_model = tiny_base_model()
    method, batch = cocoop(base_model), feature_batch(base_model, [0, 2])
    with torch.no_grad():
        method.meta_net.linear2.weight.zero_()
        method.meta_net.linear2.bias.zero_()

    expected = batch.features_BE @ base_model.zero_shot_text(CLASSES, ["a photo of a {}."]).T

    torch.testing.assert_close(method.logits(batch) / base_model.logit_scale, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("texts_per_pass", [1, 4, 5])
def test_texts_per_pass_changes_neither_scores_nor_gradients(texts_per_pass):
    base_model = tiny_base_model((2, 3))
    batch = feature_batch(base_model, [0, 2, 1])
    whole, parted = cocoop(base_model), cocoop(base_model, texts_per_pass=texts_per_pass)

    for method in (whole, parted):
        method.loss(batch).backward()

    torch.testing.assert_close(parted.logits(batch), whole.logits(batch), rtol=0, atol=1e-5)
    for mine, other in zip(parted.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_no_pass_exceeds_texts_per_pass_and_the_backward_recomputes_each():
    base_model = tiny_base_model()
    method, batch = cocoop(base_model, texts_per_pass=4), feature_batch(base_model, [0, 2, 1])
    sizes = []
    first_block = text_blocks(base_model.backbone.clip)[0]
    with first_block.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        loss = method.loss(batch)
        assert sizes == [3, 3, 3]
        loss.backward()

    assert sizes == [3] * 6


def test_under_autocast_the_loss_stays_float32_and_bounded_passes_agree_with_whole_ones():
    base_model = tiny_base_model((2, 3))
    batch, gradients = feature_batch(base_model, [0, 2]), []
    for texts_per_pass in (1024, 2):
        method = cocoop(base_model, texts_per_pass=texts_per_pass)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = method.loss(batch)
        loss.backward()
        assert loss.dtype == torch.float32
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in method.parameters()]))

    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.parametrize("boost", [None, (2, 3)])
def test_the_exported_tensors_score_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = cocoop(base_model)
    exported = method.fold()

    assert exported.text_adapt.shape == (1, 4, 32)
    assert list(exported.meta_net) == NAMES
    assert [tuple(exported.meta_net[name].shape) for name in NAMES] == [(6, 24), (6,), (32, 6), (32,)]
    rows = []
    for feature in base_model.encode_images(random_images(2)):
        hidden = torch.relu(exported.meta_net["linear1.weight"] @ feature + exported.meta_net["linear1.bias"])
        shift = exported.meta_net["linear2.weight"] @ hidden + exported.meta_net["linear2.bias"]
        group = join_groups([exported.text_adapt + shift, base_model.text_boost])
        rows.append(encode_classes(base_model.backbone, CLASSES, [method.template], group) @ feature)
    cosines = method.logits(feature_batch(base_model, [0, 2])) / base_model.logit_scale
    assert not rows[0].requires_grad
    torch.testing.assert_close(torch.stack(rows), cosines, rtol=0, atol=1e-6)


def test_exported_tensors_do_not_change_with_further_training():
    method = cocoop(tiny_base_model())
    exported = method.fold()
    before = [exported.text_adapt.clone(), *[tensor.clone() for tensor in exported.meta_net.values()]]
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0)

    after = [exported.text_adapt, *exported.meta_net.values()]
    assert all(torch.equal(mine, other) for mine, other in zip(after, before, strict=True))


def test_a_class_name_that_is_too_long_is_named():
    name = " ".join(["cat"] * 70)  # SOS + 4 + 70 + "." + EOT = 77
    cocoop(tiny_base_model(), ["dog", name])

    with pytest.raises(TextTooLongError, match="cat cat"):
        cocoop(tiny_base_model((2, 3)), ["dog", name])


def test_the_seed_determines_meta_net_and_random_context():
    base_model = tiny_base_model()
    torch.manual_seed(0)
    first = cocoop(base_model, context_init="", seed=1).state_dict()
    torch.manual_seed(1)
    again, other = (cocoop(base_model, context_init="", seed=seed).state_dict() for seed in (1, 2))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_meta_net_is_initialised_within_torchs_bounds():
    linear1, _, linear2 = cocoop(tiny_base_model()).meta_net

    for layer in (linear1, linear2):
        bound = layer.in_features**-0.5
        assert 0.7 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() <= bound


def test_loading_a_state_dict_gives_an_equal_method():
    base_model = tiny_base_model((2, 3))
    trained, fresh = cocoop(base_model, seed=1), cocoop(base_model, seed=2)
    batch = feature_batch(base_model, [0, 2])
    assert not torch.equal(fresh.logits(batch), trained.logits(batch))

    fresh.load_state_dict(trained.state_dict())

    assert torch.equal(fresh.logits(batch), trained.logits(batch))


def test_the_defaults_are_those_of_the_paper():
    recipe = CoCoOpRecipe()
    method = CoCoOp(tiny_base_model(), CLASSES, recipe)

    assert (recipe.learning_rate, recipe.epochs, recipe.batch_size) == (0.002, 10, 1)
    assert method.context.shape == (4, 32)
    assert method.meta_net.linear1.out_features == 24 // 16
