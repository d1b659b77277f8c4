import math

import pytest
import torch

from training.demo.evaluate import Accuracy, accuracy, measure
from training.demo.models import CONFIG_DIR, create
from training.demo.world import BASE_LABELS, N_CLASSES


def test_correct_predictions_count_in_every_column():
    labels = torch.arange(N_CLASSES)
    assert accuracy(torch.eye(N_CLASSES), labels) == Accuracy(every=1.0, held_out=1.0, base=1.0, new=1.0)


def test_base_accuracy_ignores_predictions_of_new_classes():
    labels = torch.arange(N_CLASSES)
    scores = torch.eye(N_CLASSES)
    scores[:, N_CLASSES - 1] = 2.0
    measured = accuracy(scores, labels)
    assert measured.every == pytest.approx(1 / N_CLASSES)
    assert measured.base == 1.0
    assert measured.new == pytest.approx(1 / (N_CLASSES - len(BASE_LABELS)))


def test_the_harmonic_mean_of_zero_accuracy_is_zero():
    assert Accuracy(every=0.0, held_out=0.0, base=0.0, new=0.0).harmonic_mean == 0.0
    assert math.isclose(Accuracy(every=0.0, held_out=0.0, base=0.5, new=1.0).harmonic_mean, 2 / 3)


# Floors well below what docs/demo-world.md reports: they catch broken weights, not noise.
@pytest.mark.parametrize(
    ("arch", "every", "held_out"),
    [("demo-student", 0.88, 0.70), ("demo-teacher", 0.88, 0.70), ("demo-second-teacher", 0.85, 0.60)],
)
def test_packaged_weights_classify_clean_images(arch, every, held_out):
    measured = measure(create(arch, CONFIG_DIR / f"{arch}.safetensors").eval(), "clean", n_pictures=512)
    assert measured.every > every
    assert measured.held_out > held_out


@pytest.mark.parametrize("arch", ["demo-teacher", pytest.param("demo-second-teacher", marks=pytest.mark.slow)])
def test_the_teachers_beat_the_student_in_shifted_domains(arch):
    student, teacher = (create(name, CONFIG_DIR / f"{name}.safetensors").eval() for name in ("demo-student", arch))
    for domain in ("thermal", "blueprint"):
        assert measure(teacher, domain, 256).every > measure(student, domain, 256).every + 0.1


def test_packaged_weights_fit_the_budget():
    sizes = [path.stat().st_size for path in CONFIG_DIR.glob("*.safetensors")]
    assert len(sizes) == 3
    assert sum(sizes) <= 25 * 2**20
