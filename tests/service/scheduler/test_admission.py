import pytest

from service.scheduler.admission import Admission


def admission(batch_s=2.0, *, max_batch_rows=4, max_running=1):
    """One that has seen a batch of this length."""
    made = Admission(max_batch_rows, max_running)
    made.start("first", max_batch_rows, 0.0)
    made.finish("first", batch_s, is_typical=True)
    return made


def test_before_the_first_batch_no_wait_is_predicted():
    assert Admission(4, 1).predict(100, now_s=0.0) == (0.0, 0.0)


def test_an_idle_device_is_free_at_once():
    assert admission().free_in_s(now_s=5.0) == 0.0


def test_a_busy_device_is_free_when_its_batch_has_taken_the_average_time():
    busy = admission(2.0)
    busy.start("b", 4, 10.0)
    assert busy.free_in_s(now_s=10.5) == 1.5
    assert busy.free_in_s(now_s=13.0) == 0.0, "overdue"


def test_a_batch_behind_a_running_one_starts_when_that_is_back():
    busy = admission(2.0)
    busy.start("b", 4, 10.0)
    busy.start("c", 4, 10.0)
    assert busy.free_in_s(now_s=10.0) == 4.0
    busy.finish("b", 11.0, is_typical=True)
    assert busy.free_in_s(now_s=11.0) == pytest.approx(busy.seconds(4))


def test_every_full_batch_ahead_adds_the_average_time():
    assert [admission(2.0).predict(n_ahead, now_s=0.0)[0] for n_ahead in (0, 3, 4, 7, 8)] == [0, 0, 2, 2, 4]


def test_batches_that_run_side_by_side_share_the_wait():
    assert admission(2.0, max_running=2).predict(8, now_s=0.0)[0] == 2.0


def test_the_average_follows_the_batches_and_not_those_that_failed():
    one = admission(2.0)
    one.start("failed", 4, 10.0)
    one.finish("failed", 10.1, is_typical=False)
    assert one.seconds(4) == 2.0
    for n in range(30):
        one.start(n, 4, 20.0)
        one.finish(n, 24.0, is_typical=True)
    assert one.seconds(4) == pytest.approx(4.0, rel=0.01)


def test_a_row_is_answered_when_the_batch_of_the_rows_ahead_and_itself_is_done():
    one = admission(2.0)
    one.start("small", 1, 2.0)
    one.finish("small", 2.5, is_typical=True)
    assert [one.predict(n_ahead, now_s=2.5)[1] for n_ahead in (0, 1, 3, 4)] == [0.5, 1.0, 2.0, 2.5]
    two = admission(2.0, max_running=2)
    two.start("small", 1, 2.0)
    two.finish("small", 2.5, is_typical=True)
    assert two.predict(3, now_s=2.5)[1] == 1.0, "two threads share the rows ahead"


def test_a_size_without_an_average_is_predicted_in_proportion_to_the_nearest():
    one = admission(2.0, max_batch_rows=4)
    assert [one.seconds(n_rows) for n_rows in (1, 2, 8)] == [0.5, 1.0, 4.0]
    one.start("single", 1, 0.0)
    one.finish("single", 1.5, is_typical=True)
    assert [one.seconds(n_rows) for n_rows in (1, 2, 4, 8)] == [1.5, 1.0, 2.0, 4.0]


def test_a_rows_own_batch_is_taken_to_be_as_large_as_the_last_one():
    made = admission(batch_s=2.0, max_batch_rows=4)
    made.start("full", 4, 10.0)
    _, busy_s = made.predict(0, 10.0)
    made.finish("full", 12.0, is_typical=True)
    made.start("small", 1, 12.0)
    _, calm_s = made.predict(0, 12.0)
    assert busy_s == 2.0 + 2.0, "the running batch, and then as many rows again"
    assert calm_s < busy_s
