from service.scheduler.running_batches import RunningBatches


def test_a_single_runner_is_free_when_what_it_has_and_what_waits_for_it_is_done():
    running = RunningBatches(1)
    assert (running.n_free, running.rests_s(0.0)) == (1, [0.0])
    running.hand_over("first", 1, 2.0, now_s=10.0)
    assert (running.n_free, running.has_one_ahead, running.rests_s(10.5)) == (0, False, [1.5])
    running.hand_over("second", 1, 3.0, now_s=11.0)
    assert (len(running), running.has_one_ahead, running.rests_s(11.0)) == (2, True, [4.0])


def test_a_batch_that_was_handed_over_early_runs_from_when_the_one_before_is_back():
    running = RunningBatches(1)
    running.hand_over("first", 1, 2.0, now_s=0.0)
    running.hand_over("second", 1, 3.0, now_s=0.5)
    assert running.come_back("first", now_s=2.5).ran_s == 2.5
    assert running.rests_s(3.5) == [2.0]
    assert running.come_back("second", now_s=5.0).ran_s == 2.5
    assert len(running) == 0


def test_rows_count_from_when_they_are_handed_over_until_they_are_back():
    running = RunningBatches(1)
    running.hand_over("first", 2, 1.0, now_s=0.0)
    running.hand_over("ahead", 3, 1.0, now_s=0.0)
    assert running.n_rows == 5
    running.come_back("first", now_s=1.0)
    assert running.n_rows == 3


def test_one_that_is_overdue_counts_as_free():
    running = RunningBatches(1)
    running.hand_over("first", 1, 2.0, now_s=0.0)
    assert running.rests_s(9.0) == [0.0]


def test_of_several_runners_the_first_that_is_done_takes_what_waits():
    running = RunningBatches(2)
    running.hand_over("long", 1, 10.0, now_s=0.0)
    assert (running.n_free, running.rests_s(0.0)) == (1, [0.0, 10.0])
    running.hand_over("short", 1, 2.0, now_s=1.0)
    assert (running.n_free, running.rests_s(1.0)) == (0, [2.0, 9.0])
    running.hand_over("ahead", 1, 4.0, now_s=1.0)
    assert running.rests_s(1.0) == [6.0, 9.0]
    assert running.come_back("short", now_s=3.0).ran_s == 2.0
    assert running.come_back("long", now_s=8.0).ran_s == 8.0
    assert running.rests_s(8.0) == [0.0, 0.0]
    assert running.come_back("ahead", now_s=8.5).ran_s == 5.5


def test_a_batch_knows_whether_it_ever_had_company():
    running = RunningBatches(2)
    running.hand_over("first", 1, 1.0, now_s=0.0)
    running.hand_over("second", 1, 1.0, now_s=0.5)
    assert running.come_back("first", now_s=1.0).has_company
    assert running.come_back("second", now_s=2.0).has_company
    running.hand_over("third", 1, 1.0, now_s=3.0)
    assert not running.come_back("third", now_s=4.0).has_company
