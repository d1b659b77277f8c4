"""PromptKD's student: its equation and its export."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.internals import architecture_facts
from prompted_clip.model import PromptedClip
from prompted_clip.preprocess import normalize_pixels
from tests.base_models import slow_twin, tiny_base_model
from tests.labelled import BOOSTS
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
    return trained(tiny_base_model(), teacher)


def trained(base_model, teacher):
    made = PromptKDStudent(base_model, teacher.text_features_KE, RECIPE)
    for _ in range(3):  # lets the batch norm gather statistics that differ from its first ones
        made.logits(images())
    return made


def images(n_rows=6):
    return normalize_pixels(random_pixels(n_rows), tiny_backbone().preprocess)


def bundle_of(student, teacher):
    base_model, exported = student.fold()
    digests = {"boost": f"sha256:{0:064}"} if student.base_model.boost_digest is not None else {}
    provenance = boost_provenance(recipe=RECIPE, data_digests=digests, teachers=[teacher], metrics={})
    return read_bundle(
        export_bundle(base_model, exported, domain="demo", class_names=CLASSES, template="{}.", provenance=provenance)
    )


def test_scores_and_gradients_match_the_equation(student, teacher):
    student.train(mode=False)
    backbone = student.backbone
    facts = architecture_facts(backbone.clip)
    slow = SlowClip(backbone.clip.state_dict(), vision_heads=facts["vision_heads"], text_heads=facts["text_heads"])
    embeddings = student.base_model.embed_images(images(3), student.image)
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


@pytest.mark.parametrize("boost", BOOSTS)
def test_the_bundle_scores_like_the_student_in_eval_mode(teacher, boost):
    student = trained(tiny_base_model(boost), teacher)
    student.train(mode=False)
    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle_of(student, teacher))
    served = model.logits(model.encode_images(random_pixels(6), [stack] * 6), stack)
    with torch.no_grad():
        torch.testing.assert_close(served, student.logits(images()), rtol=1e-5, atol=1e-4)


def test_a_bundle_in_the_teachers_space_cannot_be_adapted(student, teacher):
    with pytest.raises(BoostBundleError, match="Boost with distillation=caspl"):
        boosted_backbone(tiny_backbone(), bundle_of(student, teacher))


def test_on_boosting_prompts_it_trains_image_prompts_behind_them(teacher):
    base_model = tiny_base_model((2, 3))
    student = trained(base_model, teacher)
    student.train(mode=False)
    slow = slow_twin(base_model)
    rows = [slow.image(image, base_model.image_boost, student.image.detach()) for image in images(2)]

    found = base_model.encode_images(images(2), student.image)
    student.logits(images()).square().sum().backward()
    bundle = bundle_of(student, teacher)

    torch.testing.assert_close(found.double(), torch.stack(rows), rtol=0, atol=1e-5)
    assert student.image.grad.abs().max() > 0
    assert base_model.image_boost.grad is None
    assert {"image.boost", "image.adapt", "text.boost"} < bundle.tensors.keys()
    assert torch.equal(torch.from_numpy(bundle.tensors["image.boost"]), base_model.image_boost)
    assert torch.equal(torch.from_numpy(bundle.tensors["image.adapt"]), student.image.detach())
    assert bundle.manifest.provenance.phase == "adapt"


def test_the_boosting_prompts_under_a_projector_serve_alone(teacher):
    base_model = tiny_base_model((2, 3))
    model = PromptedClip(tiny_backbone())
    stack = model.load_stack(bundle_of(trained(base_model, teacher), teacher))

    boosted = model.boost_stack(stack)

    assert stack.has_boosting
    assert boosted.head is None
    torch.testing.assert_close(boosted.text_features, base_model.zero_shot_text(CLASSES, ["{}."]), rtol=0, atol=1e-6)


def test_the_prompts_of_a_student_on_a_plain_model_are_no_boosting_for_other_classes(student, teacher):
    assert not PromptedClip(tiny_backbone()).load_stack(bundle_of(student, teacher)).has_boosting
