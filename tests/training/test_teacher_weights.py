"""Targets from several teachers: weights, loss and gradients against the equations, written out in float64."""

import math

import pytest
import torch

from training.boosting import distillation_loss
from training.recipe import BoostRecipe
from training.teacher_weights import image_weights, joint_logits, joint_logits_of_domains

KINDS = ["mean", "entropy", "agreement"]


def recipe(kind="mean", **changes):
    return BoostRecipe(teacher_weights=kind, **changes)


def scores(n_teachers=3, n_images=4, n_classes=5, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n_teachers, n_images, n_classes)
    return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)


def softmax(values, temperature=1.0):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def expected_weights(kind, logits):
    """The weights of the teachers for one image, from their lists of scores."""
    own = [softmax(values) for values in logits]
    mean = [sum(shares) / len(own) for shares in zip(*own, strict=True)]
    if kind == "entropy":
        found = [math.exp(sum(q * math.log(q) for q in shares)) for shares in own]
    elif kind == "agreement":
        found = [sum(q * m for q, m in zip(shares, mean, strict=True)) for shares in own]
    else:
        found = [1.0] * len(own)
    return [weight / sum(found) for weight in found]


def expected_target(kind, logits, temperature):
    weights = expected_weights(kind, logits)
    own = [softmax(values, temperature) for values in logits]
    return [sum(w * p for w, p in zip(weights, shares, strict=True)) for shares in zip(*own, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_teachers", [2, 3])
def test_the_weights_are_those_of_the_equations(kind, n_teachers):
    logits = scores(n_teachers)
    found = image_weights(logits, recipe(kind)).exp()
    for image in range(logits.shape[1]):
        assert found[:, image].tolist() == pytest.approx(expected_weights(kind, logits[:, image].tolist()), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_and_gradients_are_those_of_the_weighted_mean_of_the_distributions(kind, temperature):
    logits = scores()
    chosen = recipe(kind, temperature=temperature, reduction="batchmean", loss_weight=3.0)
    student = scores(1, seed=1)[0].requires_grad_()
    loss = distillation_loss(student, joint_logits(list(logits), chosen), chosen)
    loss.backward()

    total, gradient = 0.0, []
    for image in range(logits.shape[1]):
        target = expected_target(kind, logits[:, image].tolist(), temperature)
        own = softmax(student[image].tolist(), temperature)
        total += sum(p * math.log(p / q) for p, q in zip(target, own, strict=True))
        # d KL(p || softmax(z / τ)) / dz = (q - p) / τ
        gradient.append([(q - p) / temperature for p, q in zip(target, own, strict=True)])
    scale = temperature**2 * 3.0 / logits.shape[1]
    assert loss.item() == pytest.approx(total * scale, rel=1e-10)
    torch.testing.assert_close(
        student.grad, scale * torch.tensor(gradient, dtype=torch.float64), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_teacher_gives_its_own_logits_and_equal_ones_their_distribution(kind):
    chosen, logits = recipe(kind, temperature=2.0), scores(1)[0]
    assert joint_logits([logits], chosen) is logits
    assert joint_logits_of_domains([logits], chosen, [torch.arange(5)]) is logits
    together = joint_logits([logits, logits], chosen)
    torch.testing.assert_close((together / 2).softmax(1), (logits / 2).softmax(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_teachers_has_no_effect(kind):
    logits = list(scores())
    torch.testing.assert_close(
        joint_logits(logits, recipe(kind)), joint_logits(logits[::-1], recipe(kind)), rtol=1e-12, atol=1e-12
    )


def test_by_entropy_a_confident_teacher_outweighs_a_uniform_one_by_the_number_of_classes():
    confident, uniform = torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64)
    confident[0, 3] = 200
    weights = image_weights(torch.stack([confident, uniform]), recipe("entropy")).exp()
    assert (weights[0] / weights[1]).item() == pytest.approx(8)


def test_by_agreement_the_teacher_that_contradicts_the_others_has_the_lowest_weight():
    logits = torch.zeros(3, 1, 4, dtype=torch.float64)
    logits[:2, 0, 0], logits[2, 0, 1] = 10, 10
    weights = image_weights(logits, recipe("agreement")).exp()[:, 0]
    assert weights[0] == weights[1]
    assert (weights[0] / weights[2]).item() == pytest.approx(2, rel=1e-3)
    assert image_weights(logits, recipe("entropy")).exp()[:, 0].tolist() == pytest.approx([1 / 3] * 3)


def test_each_domains_classes_are_weighed_among_themselves():
    logits = list(scores(2, n_classes=7))
    columns = [torch.arange(3), torch.arange(3, 7)]
    for kind in KINDS:
        together = joint_logits_of_domains(logits, recipe(kind), columns)
        assert together.shape == logits[0].shape
        for own in columns:
            alone = joint_logits([found[:, own] for found in logits], recipe(kind))
            assert torch.equal(together[:, own], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_scores_give_finite_targets_in_float32(kind):
    logits = torch.tensor([[[100.0, -100.0, 0.0]], [[-100.0, 100.0, 0.0]]])
    found = joint_logits(list(logits), recipe(kind))
    assert found.isfinite().all()
    assert found.softmax(1)[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
