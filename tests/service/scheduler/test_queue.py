from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from service.scheduler.queue import MAX_PASSED, Priority, QueuedRow, TenantQueue

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def request(row, tenant="t", *, key="a", priority=NORMAL, cost=0):
    return QueuedRow(row, key, tenant, priority, cost, 0.0, 1e9, None)


def queue_of(*requests, max_rows=1000):
    queue = TenantQueue(max_rows)
    for one in requests:
        queue.push(one)
    return queue


def drain(queue, key=None):
    rows = []
    while (one := queue.peek(key)) is not None:
        queue.pop(one)
        rows.append(one.row)
    return rows


def test_one_tenant_is_served_first_in_first_out():
    assert drain(queue_of(*(request(row) for row in range(5)))) == [0, 1, 2, 3, 4]


def test_tenants_take_turns_request_by_request():
    queue = queue_of(*(request(f"a{n}", "a") for n in range(4)), request("b0", "b"), request("c0", "c"))
    queue.push(request("b1", "b"))
    assert drain(queue) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_tenant_that_comes_back_waits_for_one_turn_of_the_others():
    queue = queue_of(*(request(f"{tenant}{n}", tenant) for n in range(3) for tenant in "ab"))
    queue.pop(queue.peek())
    queue.push(request("c", "c"))
    assert drain(queue) == ["b0", "a1", "c", "b1", "a2", "b2"]


def test_a_higher_priority_goes_first_whoever_sends_it():
    queue = queue_of(request("low", priority=LOW), request("normal"), request("high", priority=HIGH))
    assert drain(queue) == ["high", "normal", "low"]


def test_a_priority_that_eight_batches_went_past_goes_first_once():
    queue = queue_of(*(request(n, priority=HIGH) for n in range(40)), request("low", priority=LOW))
    led_by = []
    for _ in range(MAX_PASSED + 2):
        leader = queue.peek()
        queue.pop(leader)
        queue.batch_formed({leader.priority})
        led_by.append(leader.priority)
    assert led_by == [HIGH] * MAX_PASSED + [LOW] + [HIGH]


def test_only_requests_of_one_key_follow_the_first_of_a_batch():
    queue = queue_of(*(request(row, tenant=row, key=row % 2) for row in range(6)))
    assert drain(queue, key=1) == [1, 3, 5]
    assert queue.n_rows == 3


def test_requests_with_a_cost_can_be_passed_over():
    queue = queue_of(request("costly", "c", cost=3), request("free", "f"))
    assert queue.peek().row == "costly"
    assert queue.peek(is_free=True).row == "free"


def test_an_empty_queue_has_no_next_request():
    assert queue_of().peek() is None


def test_a_request_can_leave_from_anywhere_but_only_once():
    first, middle, last = (request(row) for row in range(3))
    queue = queue_of(first, middle, last)
    assert queue.discard(middle)
    assert not queue.discard(middle)
    assert drain(queue) == [0, 2]


def test_one_tenant_alone_can_fill_the_queue():
    queue = queue_of(max_rows=8)
    assert queue.has_room("a", NORMAL, 8)
    assert not queue.has_room("a", NORMAL, 9)
    for row in range(8):
        assert queue.has_room("a", NORMAL, 1)
        queue.push(request(row, "a"))
    assert not queue.has_room("a", NORMAL, 1)


def test_a_full_tenant_leaves_room_for_another_one_and_for_its_own_urgent_requests():
    queue = queue_of(*(request(row, "a") for row in range(8)), max_rows=8)
    assert queue.has_room("b", NORMAL, 2)
    assert queue.has_room("a", HIGH, 2)
    assert not queue.has_room("b", NORMAL, 3), "not for many: some places stay free for the next"


@given(st.lists(st.sampled_from("abcdefgh"), max_size=200))
def test_all_tenants_together_never_hold_more_than_half_as_many_again(tenants):
    queue = queue_of(max_rows=10)
    for tenant in tenants:
        if queue.has_room(tenant, NORMAL, 1):
            queue.push(request(0, tenant))
    assert queue.n_rows <= 15


def test_the_requests_ahead_are_higher_priorities_ones_own_and_the_turns_of_others():
    queue = queue_of(
        *(request(row, "hot") for row in range(10)),
        *(request(row, "own") for row in range(2)),
        request("urgent", "x", priority=HIGH),
        request("low", "x", priority=LOW),
    )
    assert queue.n_ahead("own", NORMAL) == 1 + 2 + 3
    assert queue.n_ahead("new", NORMAL) == 1 + 1 + 1
    assert queue.n_ahead("new", HIGH) == 1
    assert queue.n_ahead("new", LOW) == 13 + 1


places = st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from([LOW, NORMAL, HIGH]))


@given(st.lists(places, max_size=60), st.randoms())
def test_whatever_comes_every_request_leaves_once_and_every_line_in_order(sent, chance):
    requests = [request(row, tenant, key=key, priority=level) for row, (tenant, key, level) in enumerate(sent)]
    queue = queue_of(*requests)
    left = [one for one in requests if chance.random() < 0.2 and queue.discard(one)]
    served = []
    while queue.n_rows:
        leader = queue.peek()
        batch = []
        while len(batch) < 3 and (one := queue.peek(leader.key)) is not None:
            queue.pop(one)
            batch.append(one)
        queue.batch_formed({one.priority for one in batch})
        served += batch
    assert Counter(map(id, [*left, *served])) == Counter(map(id, requests))
    lines = defaultdict(list)
    for one in served:
        lines[one.tenant, one.key, one.priority].append(one.row)
    assert all(rows == sorted(rows) for rows in lines.values())
    assert queue.peek() is None
