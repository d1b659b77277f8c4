"""The temperature against a slow search, from any start; thresholds for abstaining."""

import numpy as np
import pytest

from prompted_clip.calibration import (
    COARSE,
    MAX_INVERSE_TEMPERATURE,
    abstention_thresholds,
    calibrate,
    calibrate_margins,
    margins,
    softmax,
)
from tests.reference.slow_few_shot import least_loss

STARTS = (1e-3, 0.05, 0.7, 1.0, 6.0, 29.0, 1e3)
LABELS = np.arange(60) % 3


def noisy_logits(scale):
    """Logits of the examples with `LABELS`, some of them wrong."""
    return scale * (np.eye(3)[LABELS] + np.random.default_rng(0).normal(size=(60, 3)))


def test_the_temperature_minimises_the_loss():
    loss, temperature = calibrate(noisy_logits(3.0), LABELS)
    expected = least_loss(noisy_logits(3.0), LABELS)
    assert loss == pytest.approx(expected[0], rel=1e-9)
    assert temperature == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("scale", [1.0, 3.0, 20.0])
def test_any_start_gives_the_same_temperature_and_loss(scale, start):
    expected = calibrate(noisy_logits(scale), LABELS)
    found = calibrate_margins(margins(noisy_logits(scale), LABELS), start)
    assert tuple(found) == pytest.approx(tuple(expected), rel=1e-11)
    assert calibrate_margins(margins(noisy_logits(scale), LABELS), 1 / expected.temperature).temperature == (
        pytest.approx(expected.temperature, rel=1e-14)
    ), "a search from the result stays there"


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("scale", "bound"), [(1e-3, MAX_INVERSE_TEMPERATURE), (-1.0, 1 / MAX_INVERSE_TEMPERATURE)])
def test_beyond_the_bounds_the_temperature_is_the_bound(scale, bound, start):
    found = calibrate_margins(margins(scale * np.eye(3)[LABELS], LABELS), start)
    assert 1 / found.temperature == pytest.approx(bound, rel=1e-11)


def test_the_temperature_of_separable_examples_is_bounded():
    labels = np.arange(8) % 2
    assert calibrate(100.0 * np.eye(2)[labels], labels)[1] > 10


@pytest.mark.parametrize("start", STARTS)
def test_a_candidate_ends_early_only_if_its_least_loss_is_too_high(start):
    found, expected = margins(noisy_logits(3.0), LABELS), calibrate(noisy_logits(3.0), LABELS).loss
    assert calibrate_margins(found, start, COARSE, expected + 1e-9).loss == pytest.approx(expected, rel=1e-9)
    for least in (expected - 1e-9, 0.9 * expected, 0.1 * expected):
        assert calibrate_margins(found, start, COARSE, least).loss > least


def test_thresholds_leave_the_stated_share_below_them():
    probabilities = softmax(np.random.default_rng(0).normal(size=(999, 5)))
    for rate, threshold in abstention_thresholds(probabilities).items():
        assert (probabilities.max(1) < threshold).sum() == round(rate * 1000) - 1
    assert abstention_thresholds(probabilities[:50], [0.01]) == {0.01: 0.0}
