"""Alternatives take turns, and ratios are taken within rounds."""

from benchmarks.ratios import Spread, in_turn, ratio


def test_alternatives_run_in_turn_at_least_three_times():
    log = []

    taken_s = in_turn({"a": lambda: log.append("a"), "b": lambda: log.append("b")}, budget_s=0)

    assert log == ["a", "b"] * 3
    assert [len(one) for one in taken_s.values()] == [3, 3]


def test_a_machine_that_slows_down_does_not_change_a_ratio():
    slowing = [1.0, 2.0, 4.0, 8.0]

    assert ratio([2 * pace for pace in slowing], slowing) == Spread(2.0, 2.0, 2.0, 4)


def test_a_single_value_is_its_own_spread():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0, 1)
