import numpy as np
import pytest

from training.evaluation.metrics import (
    accuracy,
    class_accuracies,
    confusion_matrix,
    harmonic_mean,
    spread,
)

LABELS = np.array([0, 0, 1, 1, 1, 3], dtype=np.int64)
NAMED = np.array([0, 1, 1, 1, 0, 3], dtype=np.int64)


def test_accuracy_is_the_share_of_correct_predictions():
    assert accuracy(LABELS, NAMED) == pytest.approx(100 * 4 / 6)


@pytest.mark.parametrize(("labels", "named"), [([], []), ([1, 2], [1])])
def test_accuracy_of_empty_or_unequal_lists_is_an_error(labels, named):
    with pytest.raises(ValueError, match=r"\d predictions for \d images"):
        accuracy(np.array(labels, dtype=np.int64), np.array(named, dtype=np.int64))


@pytest.mark.parametrize(
    ("base", "new", "h"), [(0.0, 0.0, 0.0), (80.0, 0.0, 0.0), (60.0, 60.0, 60.0), (69.34, 74.22, 71.70)]
)
def test_the_harmonic_mean_of_two_rates(base, new, h):
    assert harmonic_mean(base, new) == pytest.approx(h, abs=0.005)


def test_spread_is_mean_and_sample_standard_deviation():
    values = [70.0, 73.0, 79.0]
    found = spread(values)
    assert (found.mean, found.n) == (pytest.approx(np.mean(values)), 3)
    assert found.sd == pytest.approx(np.std(values, ddof=1))


def test_a_single_value_has_no_deviation():
    assert (spread([70.0]).mean, spread([70.0]).sd) == (70.0, None)
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_confusion_counts_pairs_of_true_and_predicted_class():
    counts = confusion_matrix(LABELS, NAMED, 4)
    for true in range(4):
        for named in range(4):
            assert counts[true, named] == sum(
                (label, name) == (true, named) for label, name in zip(LABELS, NAMED, strict=True)
            )
    with pytest.raises(ValueError, match="out of range for 3 classes"):
        confusion_matrix(LABELS, NAMED, 3)


def test_the_accuracy_of_a_class_without_images_is_unknown():
    assert class_accuracies(confusion_matrix(LABELS, NAMED, 4)) == [50.0, pytest.approx(200 / 3), None, 100.0]
