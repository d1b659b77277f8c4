"""Losses on CUDA: as on the CPU, without a wait for the device; on a real GPU with the backward pass."""

import numpy as np
import pytest
from PIL import Image

from prompted_clip.backbone import load_backbone
from tests.tiny import register_tiny_models
from training.adapting.adapter import Adapter
from training.adapting.methods import METHODS
from training.boosting import Booster
from training.caspl_student import CasplStudent
from training.data.views import Views
from training.prompted_backbone import PromptedBackbone
from training.promptkd_student import PromptKDStudent
from training.recipe import BoostRecipe
from training.teacher import Teacher

NAMES = ["cat", "striped dog", "bird"]
SHORT = {"epochs": 1, "warmup_epochs": 0, "batch_size": 3}
ENGINE = "torch's autograd engine, which the loss of this method runs"
REAL_ONLY = {"prograd": [pytest.mark.gpu(real_only=ENGINE)]}
LEARNERS = [pytest.param(name, marks=REAL_ONLY.get(name, [])) for name in ("caspl", "promptkd", *METHODS)]

NARROW = [LEARNERS[0], *(pytest.param(*one.values, marks=[*one.marks, pytest.mark.slow]) for one in LEARNERS[1:])]
pytestmark = pytest.mark.gpu


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return paths


def learner_of(name, device, files, precision):
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device=device)

    if name in METHODS:
        method, base = METHODS[name], PromptedBackbone(backbone)
        recipe = method.recipe(**SHORT, precision=precision)
        views = Views.for_training(files, backbone, recipe)
        return Adapter(method.build(base, NAMES, recipe), base, views, [0, 1, 2, 0, 1, 2], recipe)
    recipe = BoostRecipe(image_depth=2, text_depth=2, distillation=name, **SHORT, precision=precision)
    teacher = Teacher(load_backbone("tiny-teacher", random_seed=1, device=device), NAMES, recipe.teacher_template)
    views = Views.for_training(files, backbone, recipe)
    if name == "caspl":
        return Booster(CasplStudent(backbone, NAMES, recipe), [teacher], views, recipe)
    return Booster(
        PromptKDStudent(PromptedBackbone(backbone), teacher.text_features_KE, recipe), [teacher], views, recipe
    )


def losses(learner, after_first=lambda: None):
    order = learner.order(0)
    first = learner.loss(order[:3], 0)
    after_first()
    return [first, learner.loss(order[3:], 0)]


@pytest.mark.parametrize("name", LEARNERS)
def test_losses_on_cuda_are_the_cpus_and_no_step_waits_for_the_device(name, files, simulated_or_real):
    expected = [loss.item() for loss in losses(learner_of(name, "cpu", files, "float32"))]
    simulated = simulated_or_real
    found = losses(learner_of(name, "cuda", files, "float32"), simulated.waits.clear if simulated else lambda: None)
    assert simulated is None or not simulated.waits
    assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-4)
    if simulated is None:
        found[1].backward()


@pytest.mark.parametrize("name", NARROW)
def test_losses_in_bfloat16_are_near_those_in_float32(name, files):
    exact, found = (losses(learner_of(name, "cuda", files, precision)) for precision in ("float32", "bfloat16"))
    for one, other in zip(found, exact, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=0.15)
