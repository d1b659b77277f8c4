"""Phase 1: the loss and its equation, trainable parameters, and resuming."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from prompted_clip.internals import architecture_facts
from tests.reference.slow_clip import SlowClip
from tests.tiny import tiny_backbone
from training.boosting import Booster, distillation_loss, shared_loss
from training.caspl_student import CasplStudent
from training.class_sets import ClassSets
from training.data.images import find_images
from training.data.views import Views
from training.errors import BackbonePairError, DivergedError, RecipeError
from training.loop import CheckpointConfig, steps_per_epoch, train
from training.recipe import BoostRecipe
from training.teacher import Teacher

CLASSES = ["cat", "striped circle", "dog"]


def recipe(**changes):
    values = {
        "image_tokens": 2,
        "image_depth": 9,
        "text_tokens": 4,
        "text_depth": 2,
        "epochs": 3,
        "batch_size": 4,
        "augmentation": "none",
        "learning_rate": 0.02,
        "optimizer": "adamw",
        "reduction": "batchmean",
        "loss_weight": 1.0,
        "warmup_epochs": 0,
    }
    return BoostRecipe(**(values | changes))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(10):
        base = np.full((32, 32, 3), 25 * index, dtype=np.int16) + rng.integers(-20, 20, (32, 32, 3))
        Image.fromarray(base.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{index}.png")
    return tmp_path


def booster(folder, chosen):
    student, teacher = tiny_backbone("tiny", 0), tiny_backbone("tiny-teacher", 1)
    views = Views.for_training(find_images(folder).files, student, chosen)
    return Booster(
        CasplStudent(student, CLASSES, chosen), [Teacher(teacher, CLASSES, chosen.teacher_template)], views, chosen
    )


def kl(teacher, student, temperature):
    """KL of two lists of scores, term by term."""
    p, q = ([math.exp(z / temperature) for z in scores] for scores in (teacher, student))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_equals_the_papers_kl(reduction, temperature):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    chosen = recipe(reduction=reduction, temperature=temperature, loss_weight=7.0)
    total = sum(kl(teacher[row].tolist(), student[row].tolist(), temperature) for row in range(4))
    expected = total * temperature**2 * 7.0 / (20 if reduction == "mean" else 4)
    assert float(distillation_loss(student, teacher, chosen)) == pytest.approx(expected, rel=1e-9)


SETS = ClassSets.of({"pets": ["cat", "dog", "Newt"], "birds": ["crow", "newt", "tit", "owl"]}, [4, 5])
MIXED = torch.tensor([0, 1, 1, 0, 1])


def mixed_scores():
    """Scores of five images: the student's of the six names, the teacher's of three classes and four."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    return student, torch.randn(5, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_in_a_mixed_batch_each_image_is_scored_among_its_own_domains_classes(reduction, temperature):
    student, teacher = mixed_scores()
    chosen = recipe(reduction=reduction, temperature=temperature, loss_weight=7.0)
    places = {0: ([0, 1, 2], [0, 1, 2]), 1: ([3, 2, 4, 5], [3, 4, 5, 6])}  # "newt" is the third name in both domains
    total = 0.0
    for row, domain in enumerate(MIXED.tolist()):
        own, others = places[domain]
        found = kl(teacher[row, others].tolist(), student[row, own].tolist(), temperature)
        total += found / (len(own) if reduction == "mean" else 1)
    expected = total * temperature**2 * 7.0 / 5
    assert float(shared_loss(student, teacher, MIXED, SETS, chosen).detach()) == pytest.approx(expected, rel=1e-9)


def test_the_loss_of_a_mixed_batch_is_that_of_each_domains_images_alone():
    student, teacher = mixed_scores()
    shared_loss(student, teacher, MIXED, SETS, recipe()).backward()
    together, student.grad = student.grad, None
    for domain in (0, 1):
        rows = MIXED.eq(domain)
        alone = distillation_loss(
            student[rows][:, SETS.student[domain]], teacher[rows][:, SETS.teacher[domain]], recipe()
        )
        (alone * (rows.sum().item() / 5)).backward()
    torch.testing.assert_close(together, student.grad, rtol=1e-12, atol=0)
    assert not together[0, 3:].any()  # no gradient for classes of the other domain
    assert not together[1, :2].any()


def test_the_loss_of_one_domain_is_bit_identical_to_the_loss_without_domains():
    student, teacher = mixed_scores()
    one = ClassSets.of({"all": list("abcdef")}, [5])
    found = shared_loss(student.float(), teacher[:, :6].float(), torch.zeros(5, dtype=torch.long), one, recipe())
    assert torch.equal(found, distillation_loss(student.float(), teacher[:, :6].float(), recipe()))


def test_loss_and_gradients_match_the_slow_reference(folder):
    run = booster(folder, recipe())
    run.precompute_teacher_logits()
    loss = run.loss(torch.tensor([0, 3, 7]), 0)
    loss.backward()

    models = {}
    for name, backbone in (("student", run.student.backbone), ("teacher", run.teachers[0].backbone)):
        facts = architecture_facts(backbone.clip)
        models[name] = SlowClip(
            backbone.clip.state_dict(), vision_heads=facts["vision_heads"], text_heads=facts["text_heads"]
        )
    image = run.student.image.detach().double().requires_grad_()
    text = run.student.text.detach().double().requires_grad_()
    pixels = run._views.load([0, 3, 7], 0).double() / 255
    mean, std = (
        torch.tensor(run.student.backbone.preprocess[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std")
    )
    tokenizer = run.student.backbone.tokenizer

    def ids(words):
        return [tokenizer.sot_token_id, *tokenizer.encode(words), tokenizer.eot_token_id]

    student_text = torch.stack([models["student"].text(ids(f"{name}."), boost=text) for name in CLASSES])
    teacher_text = torch.stack([models["teacher"].text(ids(f"a photo of a {name}.")) for name in CLASSES])
    expected = 0.0
    for row in (pixels - mean) / std:
        z_student = run.student.backbone.logit_scale * student_text @ models["student"].image(row, boost=image)
        z_teacher = run.teachers[0].backbone.logit_scale * teacher_text @ models["teacher"].image(row)
        p = z_teacher.softmax(0)
        expected = expected + (p * (z_teacher.log_softmax(0) - z_student.log_softmax(0))).sum() / 3
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(run.student.image.grad.double(), image.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(run.student.text.grad.double(), text.grad, rtol=1e-3, atol=1e-6)


def test_only_prompts_change_and_the_student_approaches_the_teacher(folder):
    run = booster(folder, recipe(epochs=20))
    before = {name: tensor.clone() for name, tensor in run.student.backbone.clip.state_dict().items()}
    run.precompute_teacher_logits()
    result = train(run, run._recipe)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.student.backbone.clip.state_dict().items())
    assert not any(parameter.requires_grad for parameter in run.teachers[0].backbone.clip.parameters())
    assert np.mean(result.losses[-3:]) < 0.7 * np.mean(result.losses[:3])


def test_caching_teacher_logits_does_not_change_the_run(folder):
    once, each = booster(folder, recipe()), booster(folder, recipe())
    each._teacher_logits = SimpleNamespace(
        get=lambda indices, epoch, pixels=None: each.teachers[0].logits(each._views.load(indices.tolist(), epoch))
    )
    assert train(once, recipe()).losses == pytest.approx(train(each, recipe()).losses, rel=1e-5)


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_a_killed_run_resumes_with_identical_prompts(folder, tmp_path, augmentation):
    chosen = recipe(augmentation=augmentation)
    whole = booster(folder, chosen)
    whole.precompute_teacher_logits()
    train(whole, chosen)

    class KilledError(Exception):
        pass

    def kill(run):
        if run.step == 5:
            raise KilledError

    checkpoint = CheckpointConfig(tmp_path / "state", {"recipe": "a"}, every_n_steps=2)
    first = booster(folder, chosen)
    first.precompute_teacher_logits()
    with pytest.raises(KilledError):
        train(first, chosen, checkpoint=checkpoint, on_step=kill)
    second = booster(folder, chosen)
    second.precompute_teacher_logits()
    steps = []
    result = train(second, chosen, checkpoint=checkpoint, on_step=lambda run: steps.append(run.step))
    assert steps[0] == 5
    assert result.step == chosen.epochs * steps_per_epoch(chosen, whole.n_images)
    assert torch.equal(second.student.image, whole.student.image)
    assert torch.equal(second.student.text, whole.student.text)


def test_a_non_finite_loss_stops_the_run_and_names_the_step(folder):
    run = booster(folder, recipe())
    with torch.no_grad():
        run.student.image.fill_(float("nan"))
    with pytest.raises(DivergedError, match="nan at step 0"):
        train(run, run._recipe)


def test_student_and_teacher_of_different_image_sizes_are_rejected(folder, monkeypatch):
    import dataclasses

    run = booster(folder, recipe())
    other = tiny_backbone("tiny-teacher", 1)
    wide = dataclasses.replace(other)
    monkeypatch.setattr(type(other), "image_size", property(lambda self: 64 if self is wide else 32))
    with pytest.raises(BackbonePairError, match="takes 32 px images and teacher tiny-teacher 64 px"):
        Booster(run.student, [*run.teachers, Teacher(wide, CLASSES, "{}.")], run._views, recipe())


def test_a_student_starts_from_the_prompts_of_a_bundle():
    backbone = tiny_backbone()
    first = CasplStudent(backbone, CLASSES, recipe(seed=5))
    again = CasplStudent(backbone, ["owl"], recipe(seed=6), first.fold()[0])
    assert torch.equal(again.image, first.image)
    assert torch.equal(again.text, first.text)
    with torch.no_grad():
        again.image.add_(1)
    assert not torch.equal(again.image, first.image)


def test_a_start_with_fewer_text_tokens_than_initial_words_needs_no_other_words():
    backbone = tiny_backbone()
    first = CasplStudent(backbone, CLASSES, recipe(text_tokens=2, text_init=""))
    again = CasplStudent(backbone, CLASSES, recipe(text_tokens=2, text_init="a photo of a"), first.fold()[0])
    assert torch.equal(again.text, first.text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_tokens": 3}, "has 2 image tokens in 3 layers, the recipe 3 in 3. Set image_tokens and image_depth"),
        ({"text_depth": 1}, "has 4 text tokens in 2 layers, the recipe 4 in 1"),
        ({"text_tokens": 0}, "has 4 text tokens in 2 layers, the recipe 0 in 2"),
    ],
)
def test_a_start_of_another_shape_is_an_error(changes, message):
    start = CasplStudent(tiny_backbone(), CLASSES, recipe()).fold()[0]
    with pytest.raises(RecipeError, match=message):
        CasplStudent(tiny_backbone(), CLASSES, recipe(**changes), start)


def test_depths_are_clamped_to_the_towers():
    prompts = CasplStudent(tiny_backbone(), CLASSES, recipe(image_depth=9, text_depth=9))
    assert prompts.image.shape == (3, 2, 32)
    assert prompts.text.shape == (3, 4, 32)


def test_text_rate_factor_scales_the_learning_rate_of_text_prompts(folder):
    frozen, slow = booster(folder, recipe(text_rate_factor=0.0)), booster(folder, recipe(text_rate_factor=0.1))
    starts = [(run.student.text.detach().clone(), run.student.image.detach().clone()) for run in (frozen, slow)]
    moved = []
    for run, (text, image) in zip((frozen, slow), starts, strict=True):
        train(run, run._recipe)
        assert not torch.equal(run.student.image, image)
        moved.append(float((run.student.text.detach() - text).abs().max()))
    assert moved[0] == 0
    assert moved[1] > 0
