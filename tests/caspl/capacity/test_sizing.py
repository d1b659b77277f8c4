"""Servers for a load: the fewest that meet the objective, spare ones, cost, and what no number of servers can do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspl.capacity.queueing import poisson_arrivals, simulate
from caspl.capacity.sizing import (
    N_REQUESTS,
    Objective,
    cost_per_million,
    max_rate,
    plan_for_rate,
    plan_for_servers,
    predict,
)
from caspl.errors import ImpossibleError
from tests.caspl.capacity.times import server

TIMES = server({1: 0.05, 8: 0.2}, decode_s=0.002, request_s=0.001)
CAPACITY = 40.0


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(rate=st.floats(5, 2000), p99=st.floats(150, 600))
def test_the_plan_has_the_fewest_servers_that_meet_the_objective_without_the_spare(rate, p99):
    objective = Objective(p99_ms=p99, spare=2)

    plan = plan_for_rate(TIMES, rate, objective)

    needed = plan.servers - 2
    assert plan.p99_without_spare_ms <= p99
    assert plan.p99_ms <= plan.p99_without_spare_ms
    if needed > 1 and rate / (needed - 1) < 0.95 * CAPACITY:
        assert predict(TIMES, rate, needed - 1, objective).ms(99) > 0.98 * p99  # the bisection ends at 0.1 %


def test_a_plan_for_servers_carries_the_rate_that_a_plan_for_the_rate_needs_them_for():
    objective = Objective(p99_ms=300, spare=1)

    whole = plan_for_servers(TIMES, 20, objective)
    again = plan_for_rate(TIMES, whole.rate_per_s, objective)

    assert again.servers == 20
    assert whole.headroom == pytest.approx(20 / 19 - 1)
    assert whole.utilisation == pytest.approx(whole.rate_per_s / (20 * CAPACITY))


def test_the_prediction_is_the_simulation_of_one_of_the_servers():
    found = predict(TIMES, 60, 3, Objective(p99_ms=300))

    alone = simulate(TIMES, poisson_arrivals(20, N_REQUESTS))

    assert found.ms(99) == alone.ms(99)


@pytest.mark.slow
def test_two_choices_need_fewer_servers():
    random, chosen = (
        plan_for_rate(TIMES, 400, Objective(p99_ms=200, balancing=one)).servers for one in ("random", "two-choices")
    )

    assert chosen < random


@pytest.mark.slow
def test_a_few_servers_with_two_choices_meet_the_objective_as_well():
    plan = plan_for_rate(TIMES, 35, Objective(p99_ms=200, balancing="two-choices", spare=0))

    assert plan.p99_ms <= 200


def test_a_loose_objective_still_leaves_five_percent_of_each_server():
    assert max_rate(TIMES, 1, Objective(p99_ms=60_000)) == pytest.approx(0.95 * CAPACITY)


@pytest.mark.parametrize("p99", [30, 52])
def test_a_latency_below_that_of_one_image_is_impossible_and_the_error_has_both_numbers(p99):
    with pytest.raises(ImpossibleError, match=rf"p99 of {p99} ms is out of reach.* takes 53\.0 ms on an idle"):
        plan_for_rate(TIMES, 10, Objective(p99_ms=p99))


def test_servers_that_may_all_fail_leave_none_for_the_load():
    with pytest.raises(ImpossibleError, match="2 servers with 2 spare ones leave none"):
        plan_for_servers(TIMES, 2, Objective(p99_ms=300, spare=2))


@pytest.mark.parametrize(
    ("changes", "part", "per_s"),
    [
        ({}, "device", 40.0),
        ({"request_s": 0.1}, "http", 10.0),
        ({"decode_s": 0.1}, "decoding", 20.0),
        ({"shares_cores": True, "decode_s": 0.05, "request_s": 0.0}, "device", 1 / (1 / 40 + 0.05 / 2)),
    ],
)
def test_the_slowest_part_limits_a_server(changes, part, per_s):
    times = TIMES.model_copy(update=changes)

    plan = plan_for_servers(times, 2, Objective(p99_ms=2000))

    assert plan.limited_by == part
    assert plan.capacity_per_server == pytest.approx(per_s)


def test_the_cost_of_a_million_images_is_the_servers_time():
    plan = plan_for_servers(TIMES, 10, Objective(p99_ms=300))

    hours = 1e6 / (plan.rate_per_s * 4) / 3600
    assert cost_per_million(plan, 4, 0.5) == pytest.approx(10 * 0.5 * hours)
