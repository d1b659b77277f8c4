import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduler.wait_prediction import MAX_MARGIN, WaitPrediction


def waits_of(s_per_row=1.0, *, max_rows=4, max_cost=10):
    waits = WaitPrediction(max_rows, max_cost, lambda n: n)
    waits.batch_times.set_measured({n: s_per_row * n for n in waits.batch_times.sizes})
    return waits


def test_a_row_waits_for_what_runs_and_for_the_batches_that_go_before():
    found = waits_of().predict(2, 0, n_before=6, cost_waiting=0, rests_s=[0.5])
    assert (found.wait_s, found.answer_s) == (4.5, 8.5)


def test_a_batch_is_expected_to_be_as_full_as_the_fullest_of_the_last_few():
    waits = waits_of()
    waits.batch_left(4)
    assert waits.predict(1, 0, n_before=0, cost_waiting=0, rests_s=[0.0]).answer_s == 4
    for _ in range(8):
        waits.batch_left(1)
    assert waits.predict(1, 0, n_before=0, cost_waiting=0, rests_s=[0.0]).answer_s == 1


def test_a_costly_row_waits_for_every_other_and_a_free_one_for_one_costly_batch_per_batch():
    waits = waits_of()
    waits.batch_times.observe(1, 10, 11.0)
    costly = waits.predict(1, 5, n_before=3, cost_waiting=100, rests_s=[0.0])
    free = waits.predict(1, 0, n_before=3, cost_waiting=100, rests_s=[0.0])
    assert costly.answer_s == pytest.approx(4 + 100 + 5)
    assert free.answer_s == pytest.approx(4 + 10)


def ask(waits, allowed_s):
    return waits.predict(1, 0, n_before=7, cost_waiting=0, rests_s=[0.0], allowed_s=allowed_s)


@given(st.floats(0.5, 1.7))
def test_the_margin_grows_until_nearly_all_admitted_calls_are_in_time(real_ratio):
    waits = waits_of()
    for _ in range(500):
        waits.turned_out(ask(waits, 9.0), real_ratio * 8)
    assert max(1.0, real_ratio) - 0.01 <= waits.margin <= max(1.0, real_ratio) + 0.06
    assert waits.is_in_time(ask(waits, 8 * max(1.0, real_ratio) + 0.5))
    assert not waits.is_in_time(ask(waits, 8 * max(1.0, real_ratio) - 0.1))


def test_no_call_moves_the_margin_far_and_no_number_of_them_beyond_its_bound():
    waits = waits_of()
    waits.turned_out(ask(waits, 9.0), 1e6)
    assert waits.margin < 1.05
    for _ in range(1000):
        waits.turned_out(ask(waits, 9.0), 1e6)
    assert waits.margin == MAX_MARGIN


def test_a_call_with_plenty_of_time_teaches_nothing():
    waits = waits_of()
    for allowed_s in (1000.0, math.inf):
        waits.turned_out(ask(waits, allowed_s), 999.0)
    assert waits.margin == 1


@pytest.mark.parametrize(
    ("n_before", "wait_s", "answer_s"),
    [
        (0, 0.5, 1.5),  # the one that is free first takes it
        (5, 2.0, 5.0),  # three each
        (7, 2.0, 6.0),
        (8, 4.5, 5.5),  # the first one's next batch has this row alone
        (15, 6.0, 10.0),
    ],
)
def test_runners_side_by_side_take_batches_in_turn_each_when_it_is_free(n_before, wait_s, answer_s):
    found = waits_of().predict(1, 0, n_before=n_before, cost_waiting=0, rests_s=[0.5, 2.0])
    assert (found.wait_s, found.answer_s) == (wait_s, answer_s)


@given(st.lists(st.floats(0, 4), min_size=1, max_size=5).map(sorted), st.integers(0, 60))
def test_a_full_batch_is_predicted_as_runners_that_take_one_after_the_other_do_it(rests_s, n_batches):
    free_s = list(rests_s)
    for _ in range(n_batches):
        runner = free_s.index(min(free_s))
        free_s[runner] += 4
    waits = waits_of()
    waits.batch_left(4)
    found = waits.predict(4, 0, n_before=4 * n_batches, cost_waiting=0, rests_s=rests_s)
    assert (found.wait_s, found.answer_s) == (pytest.approx(min(free_s)), pytest.approx(min(free_s) + 4))


def test_the_cost_of_one_row_is_not_shared():
    waits = waits_of()
    waits.batch_times.observe(1, 10, 11.0)
    assert waits.predict(1, 8, n_before=0, cost_waiting=0, rests_s=[0.0] * 4).answer_s == pytest.approx(1 + 8)
    assert waits.predict(4, 32, n_before=0, cost_waiting=0, rests_s=[0.0] * 4).answer_s == pytest.approx(1 + 8)
