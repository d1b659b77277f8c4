from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import CapacityError
from service.scheduler.budget import Budget

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
