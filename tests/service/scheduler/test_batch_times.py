import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeviceLostError, OverloadedError
from service.scheduler.batch_times import BatchTimes, calibrate

REAL = {
    "in proportion": lambda n: 0.03 * n,
    "with a start": lambda n: 0.05 + 0.003 * n,
    "flat, then in proportion": lambda n: 0.004 * max(8, n),
}
curves = pytest.mark.parametrize("real", REAL.values(), ids=REAL)


class Bench:
    """A runner on a clock of its own, which takes what `seconds(n_rows)` says; the first run of a size takes longer."""

    def __init__(self, seconds, *, first=0.0, fails_from=math.inf):
        self.now_s = 0.0
        self.seconds = seconds
        self.first = first
        self.fails_from = fails_from
        self.sizes = []

    def clock(self):
        return self.now_s

    async def run(self, rows):
        self.now_s += self.seconds(len(rows)) + (self.first if len(rows) not in self.sizes else 0)
        self.sizes.append(len(rows))
        is_too_many = len(rows) >= self.fails_from
        return [OverloadedError("no memory", retry_after_s=1) if is_too_many else row for row in rows]


def times_of(real, max_rows=32):
    times = BatchTimes(max_rows)
    times.set_measured({size: real(size) for size in times.sizes})
    return times


def test_nothing_is_known_at_first_and_the_first_batch_is_believed():
    times = BatchTimes(8)
    assert times.seconds(5, 7) == 0
    times.observe(2, 0, 3.0)
    assert times.seconds(2) == 3.0
    assert times.seconds(4) == 6.0


def test_more_rows_than_a_batch_holds_take_several():
    times = times_of(lambda n: 1 + n, max_rows=4)
    assert times.seconds(10) == pytest.approx(5 + 5 + 3)
    assert times.seconds(0) == 0


@pytest.mark.parametrize(
    ("max_rows", "sizes"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 3, 4, 6, 8)), (20, (1, 2, 3, 4, 6, 8, 12, 16, 20))]
)
def test_sizes_to_measure_grow_by_a_half_at_most_up_to_the_largest_batch(max_rows, sizes):
    assert BatchTimes(max_rows).sizes == sizes


@curves
def test_a_calibrated_curve_agrees_with_the_device_between_measured_sizes(real):
    times = times_of(real)
    for n_rows in range(1, 33):
        assert times.seconds(n_rows) == pytest.approx(real(n_rows), rel=0.15)


@curves
@settings(deadline=None)
@given(st.floats(0.01, 100), st.lists(st.integers(1, 32), min_size=1, max_size=6))
def test_a_wrong_estimate_mends_wherever_batches_run_and_stays_plausible_elsewhere(real, wrong_by, seen):
    times = times_of(lambda n: wrong_by * real(n))
    for _ in range(60):
        for n_rows in seen:
            times.observe(n_rows, 0, real(n_rows))
    for n_rows in seen:
        assert times.seconds(n_rows) == pytest.approx(real(n_rows), rel=0.05)
    last = seen[-1]
    for n_rows in range(1, 33):
        low, high = sorted((last, n_rows))
        assert times.seconds(low) <= times.seconds(high) * 1.001
        assert times.seconds(high) <= times.seconds(low) * 2.001 * high / low


@pytest.mark.parametrize("n_at_once", [2, 3, 4, 8])
def test_a_device_that_takes_rows_by_the_handful_is_known_by_its_steps(n_at_once):
    def real(n_rows):
        return 0.05 * -(-n_rows // n_at_once)

    times = times_of(real)
    for n_rows in 20 * list(range(1, 33)):
        times.observe(n_rows, 0, real(n_rows))
    for n_rows in range(1, 33):
        assert times.seconds(n_rows) == pytest.approx(real(n_rows), rel=0.15)


def test_one_batch_that_hangs_moves_the_estimate_by_less_than_a_third():
    times = times_of(REAL["in proportion"])
    times.observe(8, 0, 3600.0)
    assert 1 < times.seconds(8) / 0.24 < 4 / 3


def test_what_was_learned_of_one_size_bounds_the_others():
    times = times_of(lambda n: 100.0 * n)
    for _ in range(100):
        times.observe(1, 0, 0.01)
    assert times.seconds(1) == pytest.approx(0.01, rel=0.01)
    assert times.seconds(2) <= 0.041, "else two rows would never be let in, and never be measured"


@given(st.integers(1, 500), st.floats(1e-4, 1.0))
def test_costs_have_their_own_time_on_top_of_the_rows(cost, s_per_cost):
    times = times_of(REAL["in proportion"])
    times.observe(2, cost, 0.06 + cost * s_per_cost)
    assert times.seconds(2) == pytest.approx(0.06), "batches with a cost teach nothing about those without"
    assert times.seconds(4, 2 * cost) == pytest.approx(0.12 + 2 * cost * s_per_cost, rel=1e-3)


def test_rows_that_run_padded_take_the_time_of_the_larger_batch():
    times = BatchTimes(8, lambda n: 1 << (n - 1).bit_length())
    times.set_measured({1: 1.0, 2: 1.5, 4: 2.5, 8: 4.5})
    assert [times.seconds(n) for n in (0, 1, 2, 3, 4, 5, 8)] == [0.0, 1.0, 1.5, 2.5, 2.5, 4.5, 4.5]
    times.observe(5, 0, 9.0)
    assert times.seconds(8) > 4.5


@pytest.mark.anyio
@curves
async def test_calibration_measures_growing_batches_and_the_quicker_of_two_runs(real):
    bench, times = Bench(real, first=0.01), BatchTimes(16)
    measured = await calibrate(times, bench.run, "row", budget_s=100, clock=bench.clock)
    assert bench.sizes == [1, 1, 2, 2, 3, 3, 4, 4, 6, 6, 8, 8, 12, 12, 16, 16]
    assert measured == pytest.approx({size: real(size) for size in times.sizes})
    assert times.seconds(16) == pytest.approx(real(16))


@pytest.mark.anyio
@settings(deadline=None)
@given(st.floats(1e-4, 10), st.floats(0.1, 5))
async def test_calibration_keeps_to_its_budget_but_for_the_first_size_and_reckons_the_rest(s_per_row, budget_s):
    bench, times = Bench(lambda n: s_per_row * n), BatchTimes(64)
    measured = await calibrate(times, bench.run, "row", budget_s=budget_s, clock=bench.clock)
    assert bench.now_s <= max(budget_s, 2 * s_per_row) * 1.001
    assert 1 in measured
    assert times.seconds(64) == pytest.approx(64 * s_per_row)


@pytest.mark.anyio
async def test_calibration_stops_at_the_size_that_fails_and_a_lost_device_is_not_hidden():
    bench, times = Bench(REAL["in proportion"], fails_from=4), BatchTimes(16)
    assert list(await calibrate(times, bench.run, "row", budget_s=100, clock=bench.clock)) == [1, 2, 3]
    assert times.seconds(16) == pytest.approx(0.03 * 16)

    async def lost(rows):
        raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError):
        await calibrate(times, lost, "row")
