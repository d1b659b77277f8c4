import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduler.fair_queue import PATIENCE, FairQueue, Priority

LEVELS = tuple(Priority)
arrivals = st.tuples(st.sampled_from("abcd"), st.sampled_from(["one", "two"]), st.sampled_from(LEVELS))
"""Flow, lane and priority of an item."""


@dataclass(frozen=True, eq=False)
class Item:
    flow: str
    lane: str
    priority: Priority
    number: int


class Queue(FairQueue):
    """A fair queue that numbers what is put in and gives out whole batches."""

    def __init__(self, max_items=10_000):
        super().__init__(max_items)
        self._numbers = itertools.count()

    def put(self, flow, lane="one", priority=Priority.NORMAL):
        item = Item(flow, lane, priority, next(self._numbers))
        self.add(item)
        return item

    def batch(self, max_rows, puts_off=lambda item: False):
        item = self.leader(puts_off)
        batch = []
        while item is not None and len(batch) < max_rows:
            self.take(item)
            batch.append(item)
            item = self.next_of(item.lane)
        self.end_batch()
        return batch


def fill(queue, flow, priority=Priority.NORMAL):
    """Put in as many as there is room for, one by one."""
    n_items = 0
    while queue.has_room(flow, priority, 1):
        queue.put(flow, priority=priority)
        n_items += 1
    return n_items


def crowd(queue, n_flows, *more, priority=Priority.NORMAL):
    """Let flows put in one item each, again and again, until none has room."""
    flows = [*range(n_flows), *more]
    while open_to := [flow for flow in flows if queue.has_room(flow, priority, 1)]:
        for flow in open_to:
            if queue.has_room(flow, priority, 1):
                queue.put(flow, priority=priority)


@given(st.lists(st.one_of(arrivals, st.integers(0, 3), st.just("batch")), max_size=120))
def test_everything_leaves_once_in_batches_of_one_lane_and_in_order_within_flow_and_lane(steps):
    queue, waiting, left = Queue(), [], []
    for step in [*steps, *["batch"] * len(steps)]:
        if step == "batch":
            batch = queue.batch(3) if waiting else []
            assert len({item.lane for item in batch}) <= 1
            left += batch
            waiting = [item for item in waiting if item not in batch]
        elif isinstance(step, int):
            if step < len(waiting):
                queue.drop(waiting.pop(step))
        else:
            waiting.append(queue.put(*step))
        assert len(queue) == len(waiting)
        assert queue.n_in_lane == Counter(item.lane for item in waiting)
    assert len(set(left)) == len(left)
    assert not waiting
    of_line = defaultdict(list)
    for item in left:
        of_line[item.flow, item.lane, item.priority].append(item.number)
    assert all(numbers == sorted(numbers) for numbers in of_line.values())
    with pytest.raises(LookupError):
        queue.leader(lambda item: False)


@given(st.lists(st.sampled_from(["a", "b", "c", "take"]), max_size=200))
def test_of_two_flows_that_wait_neither_is_given_more_than_two_items_more_than_the_other(steps):
    queue = Queue()
    waiting, given_since_both_wait = Counter(), Counter()
    for step in steps:
        if step == "take":
            if not waiting.total():
                continue
            (item,) = queue.batch(1)
            waiting[item.flow] -= 1
            for other in "abc":
                if other != item.flow and waiting[other]:
                    given_since_both_wait[item.flow, other] += 1
        else:
            queue.put(step)
            waiting[step] += 1
        for one, other in itertools.permutations("abc", 2):
            if not (waiting[one] and waiting[other]):
                given_since_both_wait[one, other] = given_since_both_wait[other, one] = 0
            assert given_since_both_wait[one, other] - given_since_both_wait[other, one] <= 2


def test_a_flow_that_comes_back_has_no_credit_for_having_been_idle_and_no_debt_for_having_been_alone():
    queue = Queue()
    for _ in range(50):
        queue.put("alone")
    queue.batch(30)
    for _ in range(20):
        queue.put("new")
    batch = queue.batch(20)
    assert Counter(item.flow for item in batch) == {"alone": 10, "new": 10}


def test_a_flow_that_sends_one_at_a_time_does_not_pass_one_that_waits():
    queue = Queue()
    for _ in range(10):
        queue.put("patient")
    queue.put("quick")
    given_to = []
    for _ in range(10):
        (item,) = queue.batch(1)
        given_to.append(item.flow)
        if item.flow == "quick":
            queue.put("quick")
    assert Counter(given_to) == {"patient": 5, "quick": 5}


def test_a_flow_is_not_charged_for_items_that_were_dropped():
    queue = Queue()
    dropped = [queue.put("a") for _ in range(20)]
    queue.put("b")
    for item in dropped:
        queue.drop(item)
    queue.put("a")
    queue.put("b")
    assert [item.flow for item in queue.batch(3)] == ["b", "a", "b"]


def test_turns_are_counted_over_all_lanes_of_a_flow():
    queue = Queue()
    for _ in range(8):
        queue.put("both", "one")
        queue.put("both", "two")
        queue.put("single", "two")
    taken = [queue.batch(4) for _ in range(4)]
    assert [batch[0].lane for batch in taken] == ["one", "two", "two", "two"]
    assert [item.flow for item in taken[1]] == ["single"] * 4, "the other flow had its turns in the first lane"


def test_a_higher_priority_goes_first_and_fills_the_batch_before_others():
    queue = Queue()
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        for flow in "ab":
            queue.put(flow, priority=priority)
    assert [item.priority for item in queue.batch(4)] == [Priority.HIGH] * 2 + [Priority.NORMAL] * 2


@given(
    st.lists(st.sampled_from([Priority.NORMAL, Priority.HIGH]), min_size=1, max_size=3),
    st.sampled_from(["one", "two"]),
    st.integers(1, 4),
)
def test_no_priority_is_passed_over_for_ever_in_whatever_lane_it_waits(flood, lane, max_rows):
    queue = Queue()
    for _ in range(20):
        queue.put("meek", lane, Priority.LOW)
    n_low = 0
    n_batches = 10 * (PATIENCE + 1)
    for _ in range(n_batches):
        for priority in flood:
            for _ in range(max_rows):
                queue.put("loud", "one", priority)
        n_low += Priority.LOW in {item.priority for item in queue.batch(max_rows)}
    assert n_low >= min(8, 20 // max_rows), "about one batch in nine has had some"
    assert n_low <= n_batches // PATIENCE, "and no more than that"


def test_what_is_put_off_leads_only_where_nothing_else_waits():
    queue = Queue()
    for lane in ("costly", "costly", "cheap"):
        queue.put("a", lane)

    def puts_off(item):
        return item.lane == "costly"

    assert [item.lane for item in queue.batch(4, puts_off)] == ["cheap"]
    assert [item.lane for item in queue.batch(4, puts_off)] == ["costly", "costly"]


@pytest.mark.parametrize("max_items", [1, 2, 3, 7, 128])
def test_one_flow_alone_fills_the_queue_exactly(max_items):
    assert fill(Queue(max_items), "a") == max_items


@given(st.integers(1, 20), st.sampled_from([64, 128, 1000]))
def test_where_flows_crowd_at_the_same_time_one_that_comes_later_finds_room_and_they_do_not(n_flows, max_items):
    queue = Queue(max_items)
    crowd(queue, n_flows)
    assert queue.has_room("late", Priority.NORMAL, 1)
    assert not queue.has_room(0, Priority.NORMAL, 1)
    assert len(queue) < 1.5 * max_items


@pytest.mark.parametrize("n_flows", [1, 6, 20])
def test_a_flow_that_filled_the_queue_gives_its_places_up_to_those_who_come(n_flows):
    queue = Queue(128)
    fill(queue, "first")
    for _ in range(100):
        queue.batch(32)
        crowd(queue, n_flows, "first")
    held = Counter(item.flow for item in queue.batch(1000))
    assert len(held) == n_flows + 1
    assert held["first"] <= 1.5 * held.total() / len(held)


@pytest.mark.parametrize(("low", "high"), [*itertools.pairwise(LEVELS)])
def test_a_higher_priority_finds_more_room_in_a_crowd(low, high):
    found = []
    for priority in (low, high):
        queue = Queue(128)
        crowd(queue, 4, priority=low)
        found.append(fill(queue, "late", priority))
    assert found[0] < found[1]


@pytest.mark.parametrize("priority", LEVELS)
def test_an_empty_queue_takes_a_full_call_of_any_priority(priority):
    assert Queue(16).has_room("a", priority, 16)
    assert not Queue(16).has_room("a", priority, 17)


@given(st.lists(arrivals, max_size=60), st.sampled_from("abcd"), st.integers(1, 4))
def test_what_goes_before_is_counted_as_it_then_happens(others, flow, n_new):
    """In one lane, where nobody has had a turn before; exactly so when every tie is lost."""
    queue = Queue()
    for other, _, priority in others:
        queue.put(other, priority=priority)
    expected = queue.n_before(flow, Priority.NORMAL, n_new)
    mine = [queue.put(flow) for _ in range(n_new)]
    order = queue.batch(1000)
    n_before = order.index(mine[-1]) - (n_new - 1)
    assert n_before <= expected <= n_before + len({item.flow for item in order})


def bring_one_each(queue, flows):
    """Every flow that has nothing here puts in one item."""
    for flow in flows:
        if flow not in {item.flow for item in queue}:
            queue.put(flow)


@pytest.mark.parametrize("max_rows", [1, 4, 32])
@pytest.mark.parametrize("n_own", [1, 5, 20])
def test_in_a_crowd_what_others_are_yet_to_bring_counts_among_what_goes_before(max_rows, n_own):
    queue, others, left = Queue(), range(6), []
    for _ in range(n_own):
        queue.put("hot")
    for _ in range(60):
        bring_one_each(queue, others)
        left += queue.batch(max_rows)
        while sum(item.flow == "hot" for item in queue) < n_own:
            queue.put("hot")
    bring_one_each(queue, others)
    expected = queue.n_before("hot", Priority.NORMAL, 1)
    mine, left = queue.put("hot"), []
    while mine not in left:
        left += queue.batch(max_rows)
        bring_one_each(queue, others)
    assert left.index(mine) == pytest.approx(expected, rel=0.15, abs=len(others) + 1)


def test_an_empty_queue_expects_nothing_that_is_not_there():
    queue = Queue()
    for _ in range(10):
        bring_one_each(queue, [*range(6), "hot"])
        queue.batch(4)
    while len(queue):
        queue.batch(4)
    for n_before in range(5):
        assert queue.n_before("hot", Priority.NORMAL, 1) == n_before
        queue.put("hot")
