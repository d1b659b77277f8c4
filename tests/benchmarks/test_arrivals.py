"""Schedules have the rate, the bursts and the seed that were asked for; popularity falls by its power law."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.arrivals import arrival_times, draw_domains, popularity


@given(
    rate=st.floats(1, 500),
    duration=st.floats(0.1, 20),
    cv=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    seed=st.integers(0, 9),
)
def test_arrivals_are_in_order_and_inside_the_duration(rate, duration, cv, seed):
    times = arrival_times(rate, duration, cv=cv, seed=seed)

    assert np.all(np.diff(times) >= 0)
    assert times.size == 0 or (times[0] >= 0 and times[-1] < duration)


@pytest.mark.parametrize("cv", [0.0, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_that_were_asked_for(cv):
    gaps = np.diff(arrival_times(200, 500, cv=cv, seed=3))

    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1, abs=1e-6)


def test_gaps_of_a_poisson_process_are_exponential():
    gaps = np.sort(np.diff(arrival_times(100, 200, seed=5)))
    expected = 1 - np.exp(-100 * gaps)

    assert np.abs(expected - np.arange(1, gaps.size + 1) / gaps.size).max() < 1.63 / np.sqrt(gaps.size)  # 1 % level


def test_a_schedule_is_the_same_for_the_same_seed_only():
    assert np.array_equal(arrival_times(50, 5, seed=1), arrival_times(50, 5, seed=1))
    assert not np.array_equal(arrival_times(50, 5, seed=1), arrival_times(50, 5, seed=2))


@pytest.mark.parametrize(("rate", "duration", "cv"), [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_a_schedule_without_rate_or_duration_is_refused(rate, duration, cv):
    with pytest.raises(ValueError, match="positive rate and duration"):
        arrival_times(rate, duration, cv=cv)


@given(n=st.integers(1, 300), alpha=st.floats(0, 2))
def test_popularity_adds_up_and_never_rises_with_rank(n, alpha):
    weights = popularity(n, alpha)

    assert weights.sum() == pytest.approx(1)
    assert np.all(np.diff(weights) <= 1e-12)


def test_popularity_falls_by_its_power():
    weights = popularity(100, 0.6)

    assert weights[0] / weights[9] == pytest.approx(10**0.6)
    assert np.ptp(popularity(100, 0.0)) == 0


def test_domains_are_drawn_by_popularity():
    drawn = draw_domains(10, 50_000, alpha=1.0, rng=np.random.default_rng(0))

    assert np.bincount(drawn, minlength=10) / 50_000 == pytest.approx(popularity(10, 1.0), abs=0.01)
