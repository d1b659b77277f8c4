from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import CapacityError, OverloadedError
from service.scheduler.budget import Budget, OpenRequests

LIMIT = 300


def held_by(budget, *tenants):
    """Units of each tenant when all reserve one at a time, in turns, until each is refused."""
    got, asking = Counter(), list(tenants)
    while asking:
        for tenant in list(asking):
            try:
                budget.reserve(tenant, 1)
                got[tenant] += 1
            except CapacityError:
                asking.remove(tenant)
    return [got[tenant] for tenant in tenants]


@pytest.mark.parametrize(("n_tenants", "share"), [(1, 2 / 3), (2, 2 / 5), (7, 2 / 15)])
def test_busy_tenants_get_equal_shares_and_leave_half_a_share_free(n_tenants, share):
    budget = Budget(LIMIT, "units")
    got = held_by(budget, *range(n_tenants))
    assert got == pytest.approx([LIMIT * share] * n_tenants, abs=2)
    assert LIMIT - budget.n_held == pytest.approx(LIMIT * share / 2, abs=2 * n_tenants)


def test_a_new_tenant_is_admitted_beside_one_that_holds_all_it_may():
    budget = Budget(LIMIT, "units")
    held_by(budget, "greedy")
    budget.reserve("new", 10)
    with pytest.raises(CapacityError, match=r"210 of 300 units are in use, 200 by this client or domain. Retry later."):
        budget.reserve("greedy", 1)


def test_an_idle_budget_admits_anything_up_to_its_limit():
    budget = Budget(LIMIT, "units")
    with pytest.raises(CapacityError):
        budget.reserve("a", LIMIT + 1)
    budget.reserve("a", LIMIT)


def test_checking_reserves_nothing():
    budget = Budget(LIMIT, "units")
    budget.check("a", LIMIT)
    assert budget.n_held == 0


def test_a_block_holds_its_share_and_gives_it_back_when_it_fails():
    budget = Budget(LIMIT, "units")

    def fail():
        assert budget.n_held == 50
        raise RuntimeError

    with pytest.raises(RuntimeError), budget.holding("a" * 20 + "b" * 30):
        fail()
    assert budget.n_held == 0


def test_a_block_with_a_refused_tenant_does_not_run_and_holds_nothing():
    budget, ran = Budget(LIMIT, "units"), False
    with pytest.raises(CapacityError), budget.holding("a" + "b" * LIMIT):
        ran = True
    assert (ran, budget.n_held) == (False, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, LIMIT))))
def test_the_limit_holds_and_everything_comes_back(asked):
    budget, held = Budget(LIMIT, "units"), []
    for tenant, amount in asked:
        try:
            budget.reserve(tenant, amount)
            held.append((tenant, amount))
        except CapacityError:
            budget.release(*held.pop()) if held else None
        assert budget.n_held == sum(amount for _, amount in held) <= LIMIT
    for one in held:
        budget.release(*one)
    budget.reserve("d", LIMIT)


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def fill(requests, domain="a", timeout_s=1.0):
    """Open requests until one is refused; returns their number."""
    n_opened = 0
    while requests.has_room(domain, timeout_s):
        requests.open(domain, timeout_s)
        n_opened += 1
    return n_opened


def answer(requests, clock, *, n_open, interval_s, n=300):
    """Answer requests at a constant rate while `n_open` are open."""
    for _ in range(n_open):
        requests.open("a", 1e6)
    for _ in range(n):
        clock.now_s += interval_s
        requests.close("a", is_answered=True)
        requests.open("a", 1e6)
    for _ in range(n_open):
        requests.close("a", is_answered=False)


@pytest.mark.parametrize("max_open", [1, 2, 3, 10, 256])
def test_one_domain_alone_gets_the_limit_and_another_still_finds_room(max_open):
    requests = OpenRequests(max_open, 1, lambda: 0.0)
    assert fill(requests) == max_open
    assert requests.has_room("b", 1.0) == (max_open > 2)
    with pytest.raises(OverloadedError, match="places for requests are in use"):
        requests.open("a", 1.0)
    requests.close("a", is_answered=True)
    requests.open("a", 1.0)


def test_as_many_are_open_as_are_answered_within_half_of_the_timeout(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=0.01)
    assert fill(requests, timeout_s=1.0) == pytest.approx(50, abs=1)
    assert fill(requests, timeout_s=4.0) == pytest.approx(150, abs=1), "in addition"
    assert requests.has_room("b", 4.0)


def test_a_batch_may_always_be_open(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=5.0)
    assert fill(requests) == 4


def test_few_open_requests_show_no_rate(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=3, interval_s=5.0)
    assert fill(requests) == 1000


def test_bursts_answered_in_batches_show_the_rate_of_the_batches(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=5.0)  # the limit is at its minimum, a batch
    for _ in range(100):
        n_open = fill(requests)
        while n_open:
            clock.now_s += 0.08
            n_answered = min(4, n_open)
            for _ in range(n_answered):
                requests.close("a", is_answered=True)
            n_open -= n_answered
        clock.now_s += 1.0
    assert 20 < fill(requests) <= 50, "a batch of 4 takes 0.08 s: 25 are answered within half a second"


def test_an_idle_time_is_no_slow_answer(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=0.01)
    clock.now_s += 1000
    answer(requests, clock, n_open=20, interval_s=0.01, n=1)
    assert fill(requests) == pytest.approx(50, abs=1)


def test_requests_without_an_answer_do_not_raise_the_rate(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=0.01)
    for _ in range(100):
        requests.open("a", 1.0)
        requests.close("a", is_answered=False)
    assert fill(requests) == pytest.approx(50, abs=1)
