"""The figures of a rollout, and when they end it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_store import RolloutPlan
from service.domains.rollouts.tally import STANDARD_ERRORS, Tally
from service.inference import Prediction

PLAN = RolloutPlan(version=2, max_disagreement=0.1, max_confidence_shift=0.1, min_images=20)
PROBABILITIES = st.floats(0, 1, allow_nan=False)


def answer(label="red", probability=0.8):
    return Prediction(0, label, probability)


def tally_of(n_agreed=0, n_disagreed=0, n_failed=0):
    tally = Tally()
    for _ in range(n_agreed):
        tally.add(answer(), answer())
    for _ in range(n_disagreed):
        tally.add(answer(), answer("blue"))
    for _ in range(n_failed):
        tally.add_failed()
    return tally


@given(st.lists(st.tuples(PROBABILITIES, PROBABILITIES, st.booleans()), min_size=2, max_size=50))
def test_the_figures_are_those_of_float64_arrays(images):
    tally = Tally()
    for live, candidate, agrees in images:
        assert tally.add(answer("red", live), answer("red" if agrees else "blue", candidate)) == agrees
    live, candidate, agrees = (np.array(column) for column in zip(*images, strict=True))
    assert tally.disagreement == pytest.approx(1 - agrees.mean())
    assert tally.confidence_shift == pytest.approx((candidate - live).mean(), abs=1e-12)
    error = (candidate - live).std(ddof=1) / np.sqrt(len(images))
    assert tally.confidence_shift_error == pytest.approx(error, abs=1e-9)


def test_without_images_there_are_no_figures_and_no_decision():
    tally = Tally()
    assert (tally.disagreement, tally.confidence_shift, tally.confidence_shift_error) == (None, None, None)
    assert tally.decide(PLAN) is None


def test_nothing_is_decided_before_the_fewest_images():
    assert tally_of(n_disagreed=19).decide(PLAN) is None
    assert tally_of(n_disagreed=20).decide(PLAN).event == "rollback"


def test_a_candidate_that_disagrees_more_often_than_allowed_is_rolled_back():
    assert tally_of(n_agreed=18, n_disagreed=2).decide(PLAN) is None
    decision = tally_of(n_agreed=17, n_disagreed=3).decide(PLAN)
    assert decision.event == "rollback"
    assert decision.detail == "15.0% of 20 images disagree; at most 10.0% may"


def test_images_that_the_candidate_cannot_score_count_as_disagreements_but_shift_no_confidence():
    tally = tally_of(n_agreed=17, n_failed=3)
    assert tally.decide(PLAN).event == "rollback"
    assert "3 failed" in tally.decide(PLAN).detail
    assert (tally.confidence_shift, tally_of(n_failed=1).confidence_shift) == (0, None)


def test_a_candidate_that_only_fails_is_rolled_back():
    assert tally_of(n_failed=20).decide(PLAN).event == "rollback"


@pytest.mark.parametrize("shift", [-0.15, 0.15])
def test_a_shift_of_the_confidence_beyond_its_noise_ends_the_rollout_in_either_direction(shift):
    rng = np.random.default_rng(1)
    tally = Tally()
    decisions = []
    for noise in rng.normal(0, 0.05, 200):
        tally.add(answer(probability=0.5), answer(probability=0.5 + shift + noise))
        decisions.append(tally.decide(PLAN))
    assert decisions[18] is None
    assert decisions[-1].event == "rollback"
    assert "confidence shift" in decisions[-1].detail


def test_a_shift_that_may_be_noise_decides_nothing():
    tally = Tally()
    for probability in (0.0, 1.0) * 10 + (0.9,) * 6:
        tally.add(answer(probability=0.4), answer(probability=probability))
    assert tally.confidence_shift > PLAN.max_confidence_shift
    assert tally.confidence_shift - STANDARD_ERRORS * tally.confidence_shift_error < PLAN.max_confidence_shift
    assert tally.decide(PLAN) is None


def test_a_good_candidate_is_activated_if_the_plan_has_that_and_otherwise_the_rollout_goes_on():
    activates = PLAN.model_copy(update={"then": "activate"})
    assert tally_of(n_agreed=19).decide(activates) is None
    decision = tally_of(n_agreed=19, n_disagreed=1).decide(activates)
    assert (decision.event, decision.detail) == ("complete", "5.0% of 20 images disagree")
    assert tally_of(n_agreed=19, n_disagreed=1).decide(PLAN) is None
    assert tally_of(n_agreed=15, n_disagreed=5).decide(activates).event == "rollback"


def test_decisions_after_every_image_end_few_rollouts_of_equal_confidence():
    """200 rollouts of 1,000 images whose paired differences are noise of 0.25 around 0, around half the threshold."""
    rng = np.random.default_rng(0)
    n_ended = {}
    for mean in (0.0, 0.05):
        n_ended[mean] = 0
        for shifts in rng.normal(mean, 0.25, (200, 1000)):
            tally, ended = Tally(), False
            for shift in shifts:
                tally.add(answer(probability=0.5), answer(probability=0.5 + shift))
                ended = ended or tally.decide(PLAN) is not None
            n_ended[mean] += ended
    assert n_ended[0.0] == 0
    assert n_ended[0.05] <= 2
