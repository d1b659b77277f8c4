"""Ways take turns, ratios are taken inside rounds, and their spread is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.interleaved import Ratio, in_turn, rates, ratio


class Clock:
    """Goes on only where work is done."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def work(self, log, name, takes_s):
        def run():
            log.append(name)
            self.now_s += takes_s

        return run


def test_ways_run_in_turn_and_not_one_after_the_other():
    clock, log = Clock(), []
    taken = in_turn({"a": clock.work(log, "a", 1.0), "b": clock.work(log, "b", 2.0)}, budget_s=12, clock=clock)

    assert log == ["a", "b"] * 4
    assert taken == {"a": [1.0] * 4, "b": [2.0] * 4}


def test_no_round_begins_that_would_end_late_but_the_fewest_are_run():
    clock, log = Clock(), []
    in_turn({"a": clock.work(log, "a", 1.0)}, budget_s=0, clock=clock)

    assert len(log) == 3
    in_turn({"a": clock.work(log, "a", 1.0)}, budget_s=0, fewest=2, clock=clock)
    assert len(log) == 5


def test_a_machine_that_gets_slower_changes_no_ratio_taken_inside_rounds():
    slowing = [1.0, 2.0, 4.0, 8.0]

    found = ratio([2 * pace for pace in slowing], slowing)

    assert (found.value, found.low, found.high, found.n_rounds) == (2.0, 2.0, 2.0, 4)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_the_median_lies_between_the_quartiles_and_those_between_the_extremes(values):
    found = Ratio.of(values)

    assert min(values) - 1e-9 <= found.low <= found.value <= found.high <= max(values) + 1e-9


def test_a_spread_stays_in_order_under_a_function_that_turns_it():
    turned = Ratio(2.0, 1.0, 4.0, 5).map(lambda value: 1 / value)

    assert (turned.low, turned.value, turned.high) == (0.25, 0.5, 1.0)


def test_rates_are_items_over_seconds():
    assert rates([0.5, 2.0], 10) == pytest.approx([20, 5])
