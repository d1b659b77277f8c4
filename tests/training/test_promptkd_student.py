"""PromptKD's student: its equation and its export."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.internals import architecture_facts
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import normalize_pixels
from tests.reference.slow_clip import SlowClip
from tests.tiny import random_pixels, tiny_backbone
from training.errors import BoostBundleError
from training.export import boost_provenance, export_bundle
from training.prompted_backbone import boosted_backbone
from training.promptkd_student import PromptKDStudent
from training.recipe import BoostRecipe
from training.teacher import Teacher

CLASSES = ["cat", "striped circle", "dog"]
RECIPE = BoostRecipe(distillation="promptkd", image_tokens=2, image_depth=2)


@pytest.fixture(scope="module")
def teacher():
    return Teacher(tiny_backbone("tiny-teacher", 1), CLASSES, "a photo of a {}.")


@pytest.fixture
def student(teacher):
    made = PromptKDStudent(tiny_backbone(), teacher.text_features_KE, RECIPE)
    for _ in range(3):  # lets the batch norm gather statistics that differ from its first ones
        made.logits(images())
    return made


def images(n_rows=6):
    return normalize_pixels(random_pixels(n_rows), tiny_backbone().preprocess)


def bundle_of(student, teacher):
    base_model, exported = student.fold()
    provenance = boost_provenance(recipe=RECIPE, data_digests={}, teacher=teacher, metrics={})
    return read_bundle(
        export_bundle(base_model, exported, domain="demo", class_names=CLASSES, template="{}.", provenance=provenance)
    )


def test_scores_and_gradients_match_the_equation(student, teacher):
    student.train(mode=False)
    backbone = student.backbone
    facts = architecture_facts(backbone.clip)
    slow = SlowClip(backbone.clip.state_dict(), vision_heads=facts["vision_heads"], text_heads=facts["text_heads"])
    embeddings = student._prompted().embed_images(images(3))
    directions = torch.stack([slow.image(image, boost=student.image.detach()) for image in images(3)])
    v = directions * embeddings.detach().double().norm(dim=1, keepdim=True)
    w = {name: tensor.detach().double().requires_grad_() for name, tensor in student.named_parameters()}
    norm = student.norm
    h = v @ w["hidden.weight"].T + w["hidden.bias"]
    h = (h - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
    h = (h * w["norm.weight"] + w["norm.bias"]).relu() @ w["out.weight"].T + w["out.bias"]
    expected = backbone.logit_scale * (h / h.norm(dim=1, keepdim=True)) @ teacher.text_features_KE.double().T
    found = student.logits(images(3))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    torch.autograd.backward(found.square().sum())
    torch.autograd.backward(expected.square().sum())
    for name in ("hidden.weight", "norm.weight", "norm.bias", "out.weight", "out.bias"):
        gradient = dict(student.named_parameters())[name].grad
        torch.testing.assert_close(gradient.double(), w[name].grad, rtol=1e-3, atol=1e-3)
    assert student.image.grad.abs().max() > 0
    assert not teacher.text_features_KE.requires_grad


def test_the_bundle_scores_like_the_student_in_eval_mode(student, teacher):
    student.train(mode=False)
    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle_of(student, teacher))
    served = model.logits(model.encode_images(random_pixels(6), [stack] * 6), stack)
    with torch.no_grad():
        torch.testing.assert_close(served, student.logits(images()), rtol=1e-5, atol=1e-4)


def test_a_bundle_in_the_teachers_space_cannot_be_adapted(student, teacher):
    with pytest.raises(BoostBundleError, match="Boost with distillation=caspl"):
        boosted_backbone(tiny_backbone(), bundle_of(student, teacher))
