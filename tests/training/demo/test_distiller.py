"""Variants of boosting: targets, class names, averages, and equality with `caspl boost` where nothing is changed."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_backbone
from training.boosting import Booster
from training.caspl_student import CasplStudent
from training.data.views import Views
from training.demo.distiller import Distiller, Domain, MovingAverage, TargetSource, Variant, distil
from training.errors import DivergedError
from training.loop import CheckpointConfig, train
from training.recipe import BoostRecipe
from training.teacher import Teacher

NAMES = ("cat", "striped circle", "dog")
LABELS = (0, 1, 2, 0, 1, 2, 0, 1)
RECIPE = BoostRecipe(image_tokens=2, epochs=2, batch_size=4, learning_rate=0.02)
SOME = torch.tensor([0, 3, 6])


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = []
    for index in range(len(LABELS)):
        files.append(folder / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(files[-1])
    return Domain(files, LABELS, NAMES, ("bird", "fish"))


@pytest.fixture(scope="module")
def teacher():
    return Teacher(tiny_backbone("tiny-teacher", 1), NAMES, RECIPE.teacher_template)


def views(domain, recipe=RECIPE):
    return Views.for_training(domain.files, tiny_backbone(), recipe)


def served(domain):
    return Views.as_served(domain.files, tiny_backbone().image_size, tiny_backbone().preprocess)


def targets(variant, teacher, source):
    return TargetSource(variant, teacher, source, LABELS)


def test_without_a_change_the_losses_are_those_of_boosting(domain, teacher):
    booster = Booster(CasplStudent(tiny_backbone(), NAMES, RECIPE), [teacher], views(domain), RECIPE)
    source = targets(Variant("default"), teacher, served(domain))
    distiller = Distiller(CasplStudent(tiny_backbone(), NAMES, RECIPE), teacher, views(domain), RECIPE, source)
    assert train(distiller, RECIPE).losses == train(booster, RECIPE).losses
    assert torch.equal(distiller.student.image, booster.student.image)


def test_targets_of_the_whole_image_are_the_teachers_prediction_whatever_the_student_sees(domain, teacher):
    source = targets(Variant("", targets="image"), teacher, served(domain))
    found = source.logits(SOME, torch.zeros(3, 3, 32, 32, dtype=torch.uint8)).softmax(1)
    expected = teacher.logits(served(domain).load(SOME.tolist(), 0)).softmax(1)
    torch.testing.assert_close(found, expected)


def test_targets_of_several_views_are_the_mean_of_the_predictions(domain, teacher):
    source = targets(Variant("", targets="views"), teacher, views(domain))
    found = source.logits(SOME, torch.empty(0)).softmax(1)
    each = [teacher.logits(views(domain).load(SOME.tolist(), number)).double().softmax(1) for number in range(4)]
    torch.testing.assert_close(found.double(), sum(each) / 4, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["view", "image"])
def test_balanced_targets_are_divided_by_the_mean_prediction(domain, teacher, kind):
    source = targets(Variant("", targets=kind, is_balanced=True), teacher, served(domain))
    pixels = served(domain).load(SOME.tolist(), 0)
    found = source.logits(SOME, pixels).softmax(1)
    everything = teacher.logits(served(domain).load(range(len(LABELS)), 0)).double().softmax(1)
    for row, probabilities in zip(found.tolist(), everything[SOME].tolist(), strict=True):
        weighted = [p / q for p, q in zip(probabilities, everything.mean(0).tolist(), strict=True)]
        assert row == pytest.approx([w / math.fsum(weighted) for w in weighted], rel=1e-4)


def test_labels_as_targets_give_the_cross_entropy(domain, teacher):
    source = targets(Variant("", targets="labels"), teacher, served(domain))
    recipe = RECIPE.model_copy(update={"reduction": "batchmean", "loss_weight": 1.0})
    distiller = Distiller(CasplStudent(tiny_backbone(), NAMES, recipe), teacher, views(domain), recipe, source)
    logits = distiller.served_logits(views(domain).load(SOME.tolist(), 0)).double()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)[SOME])
    assert float(distiller.loss(SOME, 0).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_moving_average_weighs_recent_steps_most(domain):
    student = CasplStudent(tiny_backbone(), NAMES, RECIPE)
    average = MovingAverage(student, 0.5)
    expected, start = student.image.detach().clone(), student.image.detach().clone()
    for step in range(12):
        with torch.no_grad():
            student.image.copy_(start + step)
        average.update()
        weight = min(0.5, (1 + step) / (10 + step))
        expected = weight * expected + (1 - weight) * (start + step)
    torch.testing.assert_close(average.state["image"], expected)


@pytest.mark.parametrize(
    "variant",
    [Variant("wide", is_wide=True), Variant("average", average=0.9), Variant("selected", is_selected=True)],
    ids=lambda variant: variant.label,
)
def test_a_variant_gives_other_prompts_than_the_default(domain, variant):
    recipe = RECIPE.model_copy(update={"reduction": "batchmean", "loss_weight": 1.0})
    backbones = tiny_backbone(), tiny_backbone("tiny-teacher", 1)
    default, changed = (distil(one, recipe, domain, *backbones) for one in (Variant("default"), variant))
    assert default.n_steps == changed.n_steps == 4
    assert not torch.equal(default.model.image_boost, changed.model.image_boost)


def test_a_stopped_run_resumes_to_the_same_prompts(domain, tmp_path, monkeypatch):
    backbones = tiny_backbone(), tiny_backbone("tiny-teacher", 1)
    whole = distil(Variant(""), RECIPE, domain, *backbones).model
    checkpoint = CheckpointConfig(tmp_path / "state", {"run": "a"}, every_n_steps=1)
    loss = Distiller.loss

    def fails_in_the_second_epoch(self, indices, epoch):
        return loss(self, indices, epoch) * (math.nan if epoch else 1)

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "loss", fails_in_the_second_epoch)
        with pytest.raises(DivergedError):
            distil(Variant(""), RECIPE, domain, *backbones, checkpoint)
    resumed = distil(Variant(""), RECIPE, domain, *backbones, checkpoint)
    assert torch.equal(resumed.model.image_boost, whole.image_boost)
