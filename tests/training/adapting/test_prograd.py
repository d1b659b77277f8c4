"""ProGrad: gradient projection, reference, initialisation and export."""

import pytest
import torch

from prompted_clip.errors import TextTooLongError
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_classes
from tests.base_models import feature_batch, random_images, tiny_base_model
from training.adapting.prograd import ProGrad, ProGradRecipe, general_loss, project_gradient
from training.errors import RecipeError

CLASSES = ["cat", "striped circle", "dog"]


def prograd(base_model, class_names=CLASSES, **changes):
    return ProGrad(base_model, class_names, ProGradRecipe(**({"context_tokens": 4, "context_init": ""} | changes)))


def test_an_agreeing_gradient_is_unchanged():
    task, general = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])

    assert torch.equal(project_gradient(task, general, 1.0), task)


def test_the_conflicting_component_of_a_gradient_is_removed():
    task, general = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 4.0]])

    assert torch.equal(project_gradient(task, general, 1.0), torch.tensor([[1.0, 0.0]]))
    assert torch.equal(project_gradient(task, general, 0.5), torch.tensor([[1.0, -1.0]]))
    assert torch.equal(project_gradient(task, general, 0.0), task)


def test_a_zero_general_gradient_leaves_the_gradient_unchanged():
    task = torch.tensor([[1.0, -2.0]])

    assert torch.equal(project_gradient(task, torch.zeros(1, 2), 1.0), task)


def test_the_projected_gradient_never_conflicts_with_the_general_one():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        task, general = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
        step = project_gradient(task, general, 1.0)
        assert (step * general).sum() > -1e-12
        assert (step * task).sum() > 0


def test_the_general_loss_has_the_gradient_of_the_kl():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    (found,) = torch.autograd.grad(general_loss(logits, reference, 2.0), logits)

    target = (reference / 2).softmax(1)
    kl = 4 * torch.nn.functional.kl_div((logits / 2).log_softmax(1), target, reduction="batchmean")
    (expected,) = torch.autograd.grad(kl, logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_value_is_the_cross_entropy_and_gradients_reach_the_context_alone():
    base_model = tiny_base_model((2, 3))
    method, batch = prograd(base_model), feature_batch(base_model, [0, 2])

    loss = method.loss(batch)
    loss.backward()

    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert torch.equal(loss, torch.nn.functional.cross_entropy(method.logits(batch), batch.labels_B))
    assert [name for name, _ in method.named_parameters()] == ["context"]
    assert [list(group.parameters) for group in method.parameter_groups()] == [[method.context]]
    assert method.context.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in base_model.backbone.clip.parameters())
    assert not base_model.text_boost.requires_grad
    assert base_model.text_boost.grad is None


def test_computing_the_gradients_does_not_populate_grad():
    base_model = tiny_base_model()
    method = prograd(base_model)

    method.loss(feature_batch(base_model, [0, 2]))

    assert method.context.grad is None


def test_under_autocast_the_value_is_float32_and_the_gradient_keeps_its_direction():
    base_model = tiny_base_model((2, 3))
    batch, steps = feature_batch(base_model, [0, 2]), []
    for enabled in (False, True):
        method = prograd(base_model)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = method.loss(batch)
        loss.backward()
        assert loss.dtype == torch.float32
        steps.append(method.context.grad.flatten())

    assert torch.cosine_similarity(*steps, dim=0) > 0.98


@pytest.mark.parametrize("reference", ["boosted", "plain"])
def test_the_recipe_selects_the_zero_shot_reference(reference):
    base_model = tiny_base_model((2, 3))
    method = prograd(base_model, reference=reference, template="a drawing of a {}.")

    boost = join_groups([base_model.text_boost if reference == "boosted" else None])
    expected = encode_classes(base_model.backbone, CLASSES, ["a drawing of a {}."], boost)
    assert torch.equal(method.reference_text_KE, expected)
    assert not method.reference_text_KE.requires_grad


def test_the_initial_context_is_zeros_then_words():
    base_model = tiny_base_model()
    backbone = base_model.backbone
    words = backbone.clip.token_embedding(torch.tensor(backbone.tokenizer.encode("a photo of a")))

    context = ProGrad(base_model, CLASSES, ProGradRecipe()).context

    assert context.shape == (16, 32)
    assert torch.equal(context[12:], words)
    assert not context[:12].any()


def test_words_outside_the_context_stay_in_the_text():
    base_model = tiny_base_model((2, 3))
    method = prograd(base_model, context_init="a type of pet, a photo of", context_tokens=16, context_template="a {}.")
    exported = method.fold()

    assert method.context[8:].abs().sum(1).min() > 0
    assert not method.context[:8].any()
    assert method.template == "a {}."
    group = join_groups([exported.text_adapt, base_model.text_boost])
    texts = encode_classes(base_model.backbone, CLASSES, ["a {}."], group)
    torch.testing.assert_close(method.texts.encode(method.context).detach(), texts, rtol=0, atol=1e-6)


def test_words_longer_than_the_context_are_rejected_with_both_lengths():
    with pytest.raises(RecipeError, match=r"'a photo of a' has 4 tokens, more than context_tokens \(3\)"):
        prograd(tiny_base_model(), context_init="a photo of a", context_tokens=3)


@pytest.mark.parametrize("boost", [None, (2, 3)])
def test_the_exported_context_scores_like_the_method(boost):
    base_model = tiny_base_model(boost)
    method = prograd(base_model)
    exported = method.fold()

    assert exported.text_adapt.shape == (1, 4, 32)
    assert not exported.is_closed_vocabulary
    group = join_groups([exported.text_adapt, base_model.text_boost])
    texts = encode_classes(base_model.backbone, CLASSES, [method.template], group)
    cosines = method.logits(feature_batch(base_model, [0, 2])) / base_model.logit_scale
    assert not texts.requires_grad
    torch.testing.assert_close(base_model.encode_images(random_images(2)) @ texts.T, cosines, rtol=0, atol=1e-6)


def test_a_class_name_that_is_too_long_is_named():
    name = " ".join(["cat"] * 70)  # SOS + 4 + 70 + "." + EOT = 77
    prograd(tiny_base_model(), ["dog", name])

    with pytest.raises(TextTooLongError, match="cat cat"):
        prograd(tiny_base_model((2, 3)), ["dog", name])


def test_the_seed_determines_the_context():
    first, again, other = (prograd(tiny_base_model(), seed=seed).context for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_state_dict_is_the_context_alone_and_gives_an_equal_method():
    base_model = tiny_base_model((2, 3))
    trained, fresh = prograd(base_model, seed=1), prograd(base_model, seed=2)
    batch = feature_batch(base_model, [0, 2])

    fresh.load_state_dict(trained.state_dict())

    assert list(trained.state_dict()) == ["context"]
    assert torch.equal(fresh.logits(batch), trained.logits(batch))
    assert torch.equal(fresh.loss(batch), trained.loss(batch))


def test_the_defaults_are_those_of_the_paper():
    recipe = ProGradRecipe()

    assert (recipe.learning_rate, recipe.epochs, recipe.batch_size) == (0.002, 100, 32)
    assert (recipe.kl_temperature, recipe.projection, recipe.reference) == (1.0, 1.0, "boosted")
