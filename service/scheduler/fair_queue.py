"""The order of what waits, and who may still join: fair between flows, apart from all dispatching.

Knows lanes, flows, priorities and arrival numbers. Does not know time, futures, costs or what an item is.

The rules, in the order they matter:

1. A higher priority goes first. But a priority that `PATIENCE` batches in a row went past goes first in the next one:
   none starves, and one that is always passed over still has one batch in nine.
2. Within a priority, flows take turns item by item (start-time fair queueing with equal weights): every flow has a
   virtual start time, which grows by one with each item that it is given; the smallest goes first, then the earlier
   item. A flow that comes back begins where the one that is furthest behind stands: to have been idle earns nothing.
   What leaves without being given a place in a batch is not charged.
3. Within a flow and a lane, first in first out.
4. A flow may hold twice the places that would be left, eight times with the highest priority and half with the lowest
   (dynamic thresholds, Choudhury and Hahne 1998): one flow alone fills `max_items` exactly; where several crowd, each
   holds less, and some places stay free for those who come next. Nothing that was let in is thrown out again for
   another's sake: a refusal at once lets the caller go elsewhere, one after a wait has only cost time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from typing import Final, Generic, Protocol, TypeVar

PATIENCE: Final = 8
"""Batches that may go past a waiting priority before it goes first."""
MEMORY: Final = 0.5
"""How much is kept of what earlier turns taught about how many items leave in one, after one more."""
MAX_REMEMBERED: Final = 4096
"""Flows without items whose virtual time is kept; one that is forgotten comes a turn early, no more."""


class Priority(IntEnum):
    """How urgent a row is; any of the three is served in the end."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


SHARES: Final = {Priority.HIGH: 4.0, Priority.NORMAL: 1.0, Priority.LOW: 0.25}
"""Items that a flow may hold for each half of a place that would be left."""


class Queued(Protocol):
    """What the queue must know of an item; `number` is that of its arrival, unique and growing."""

    @property
    def lane(self) -> Hashable:
        """Items with equal lanes may share a batch."""

    @property
    def flow(self) -> Hashable:
        """What turns are taken between."""

    @property
    def priority(self) -> Priority:
        """Its level."""

    @property
    def number(self) -> int:
        """Orders what is otherwise equal."""


Item = TypeVar("Item", bound=Queued)


@dataclass(eq=False, slots=True)
class _Flow(Generic[Item]):
    """A flow that has items in one level.

    Attributes:
        start: virtual time of its next turn, the same in all lanes.
        n_items: in all lanes.
        lines: items by lane, each in the order of arrival; none is empty.
    """

    start: int
    n_items: int = 0
    lines: dict[Hashable, deque[Item]] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Level(Generic[Item]):
    """Everything of one priority.

    Attributes:
        flows: those that have items.
        remembered: where flows stood that have none left.
        heaps: by lane, one entry per line: (start of the flow, number of the first item, flow, line). Both numbers only
            grow while a line lives, so an entry may be too small, never too large: it is corrected when it comes up.
        n_items: in all flows.
        n_deep: how many flows have more than i items, by i.
        n_passed: batches in a row that left without an item of this level while it had some.
        n_left: items of this level in the batch that is being put together.
        turn: virtual time, as far as it has been learned from.
        n_in_turn: items that have left since then.
        recent_items: that left in the turns before, the latest ones counting most.
        recent_turns: how many these were, counted likewise.
    """

    flows: dict[Hashable, _Flow[Item]] = field(default_factory=dict)
    remembered: dict[Hashable, int] = field(default_factory=dict)
    heaps: dict[Hashable, list[tuple[int, int, _Flow[Item], deque[Item]]]] = field(default_factory=dict)
    n_items: int = 0
    n_deep: list[int] = field(default_factory=list)
    n_passed: int = 0
    n_left: int = 0
    turn: int = 0
    n_in_turn: int = 0
    recent_items: float = 0.0
    recent_turns: float = 0.0

    def add(self, item: Item) -> None:
        flow = self.flows.get(item.flow)
        if flow is None:
            start = max(self.remembered.pop(item.flow, 0), self.now())
            flow = self.flows[item.flow] = _Flow(start)
        line = flow.lines.get(item.lane)
        if line is None:
            line = flow.lines[item.lane] = deque()
            heapq.heappush(self.heaps.setdefault(item.lane, []), (flow.start, item.number, flow, line))
        line.append(item)
        if flow.n_items == len(self.n_deep):
            self.n_deep.append(0)
        self.n_deep[flow.n_items] += 1
        flow.n_items += 1
        self.n_items += 1

    def now(self) -> int:
        """Virtual time: where the flow stands that is furthest behind."""
        return min((self.first(lane)[0] for lane in self.heaps), default=0)

    def first(self, lane: Hashable) -> tuple[int, int, Item]:
        """What goes next of a lane that has items here: start of its flow, its number, itself."""
        self._correct(lane)
        start, number, _, line = self.heaps[lane][0]
        return start, number, line[0]

    def n_before(self, flow: Hashable, n_new: int) -> int:
        """Items that leave before the last of `n_new` that a flow adds: those here, or as many as lately left."""
        known = self.flows.get(flow)
        n_own = n_new + (known.n_items if known else 0)
        n_here = self.n_items if n_own >= len(self.n_deep) else sum(self.n_deep[:n_own])
        if not self.recent_turns:
            return n_here
        now = self.now()
        start = known.start if known else max(self.remembered.get(flow, 0), now)
        n_turns = start - now + n_own - 1
        return max(n_here, int(n_turns * self.recent_items / self.recent_turns))

    def end_batch(self) -> None:
        """Learn from a batch how many items leave in the time in which every flow has one turn."""
        self.n_passed = self.n_passed + 1 if self.flows and not self.n_left else 0
        self.n_in_turn += self.n_left
        self.n_left = 0
        n_turns = self.now() - self.turn if self.flows else 0
        if n_turns:
            kept = MEMORY**n_turns
            self.recent_items = kept * self.recent_items + self.n_in_turn
            self.recent_turns = kept * self.recent_turns + n_turns
            self.turn += n_turns
            self.n_in_turn = 0

    def remove(self, item: Item, *, is_charged: bool) -> None:
        flow = self.flows[item.flow]
        line = flow.lines[item.lane]
        line.remove(item)  # the first one, but for those that are abandoned
        flow.start += is_charged
        flow.n_items -= 1
        self.n_items -= 1
        self.n_deep[flow.n_items] -= 1
        if not line:
            del flow.lines[item.lane]
            self._correct(item.lane)
        if not flow.n_items:
            self._part_with(item.flow, flow)

    def _correct(self, lane: Hashable) -> None:
        """Make a heap's first entry true; a heap without items goes."""
        heap = self.heaps[lane]
        while heap:
            start, number, flow, line = heap[0]
            if not line:
                heapq.heappop(heap)
            elif (start, number) != (flow.start, line[0].number):
                heapq.heapreplace(heap, (flow.start, line[0].number, flow, line))
            else:
                return
        del self.heaps[lane]

    def _part_with(self, name: Hashable, flow: _Flow[Item]) -> None:
        """Let go of a flow without items; one that was given more than the others remains marked for it."""
        del self.flows[name]
        if not self.flows:  # virtual time begins anew
            self.turn, self.n_in_turn, self.recent_items, self.recent_turns = 0, 0, 0.0, 0.0
        if not self.flows or len(self.remembered) == MAX_REMEMBERED:
            self.remembered.clear()
        if self.flows and flow.start > self.now():
            self.remembered[name] = flow.start


class FairQueue(Generic[Item]):
    """What waits, in the order above.

    Args:
        max_items: most items of one flow alone; of several together half as many again.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._levels: dict[Priority, _Level[Item]] = {priority: _Level() for priority in sorted(Priority, reverse=True)}
        self._in_order = list(self._levels.values())  # by rule 1
        self._n_items = 0
        self._n_in_lane: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return self._n_items

    def __iter__(self) -> Iterator[Item]:
        """All items, in no order that matters."""
        flows = chain.from_iterable(level.flows.values() for level in self._in_order)
        return chain.from_iterable(line for flow in flows for line in flow.lines.values())

    @property
    def n_in_lane(self) -> Mapping[Hashable, int]:
        """How many items wait in every lane that has any."""
        return self._n_in_lane

    @property
    def has_urgent(self) -> bool:
        """Whether anything of the highest priority waits."""
        return self._levels[Priority.HIGH].n_items > 0

    def has_room(self, flow: Hashable, priority: Priority, n_new: int) -> bool:
        """Whether a flow may add so many items, by rule 4; an empty queue takes whatever it can hold."""
        if not self._n_items:
            return n_new <= self._max_items
        twice_left = 3 * self._max_items - 2 * (self._n_items + n_new)
        return self._n_of(flow, priority) + n_new <= SHARES[priority] * twice_left

    def n_before(self, flow: Hashable, priority: Priority, n_new: int) -> int:
        """Items that would leave before the last of `n_new` that a flow adds now.

        Those of a higher priority, the flow's own, and of every other flow of the priority as many as it has turns. In
        a crowd these are not all: until the turn comes of a flow that has much, others bring more. So they are no fewer
        than have lately left in as many turns.
        """
        above = sum(level.n_items for name, level in self._levels.items() if name > priority)
        return above + self._levels[priority].n_before(flow, n_new)

    def add(self, item: Item) -> None:
        """Let an item wait."""
        self._levels[item.priority].add(item)
        self._n_items += 1
        self._n_in_lane[item.lane] = self._n_in_lane.get(item.lane, 0) + 1

    def leader(self, puts_off: Callable[[Item], bool]) -> Item:
        """What the next batch begins with.

        Args:
            puts_off: whether an item gives way to every other lane whose first is not put off. Asked of the first item
                of every lane.

        Raises:
            LookupError: nothing waits.
        """
        firsts = ((place, *level.first(lane)) for place, level in enumerate(self._in_order) for lane in level.heaps)
        try:
            return min((puts_off(first[-1]), *first) for first in firsts)[-1]
        except ValueError as error:
            raise LookupError("nothing waits") from error

    def next_of(self, lane: Hashable) -> Item | None:
        """What follows in a batch of this lane."""
        for level in self._in_order:
            if lane in level.heaps:
                return level.first(lane)[-1]
        return None

    def take(self, item: Item) -> None:
        """Give an item its place in the batch."""
        self._levels[item.priority].n_left += 1
        self._remove(item, is_charged=True)

    def drop(self, item: Item) -> None:
        """Let an item go that is not wanted any more."""
        self._remove(item, is_charged=False)

    def end_batch(self) -> None:
        """Note which priorities the batch went past, and how many turns it was."""
        for level in self._levels.values():
            level.end_batch()
        levels = self._levels.values()
        self._in_order = sorted(levels, key=lambda level: level.n_passed < PATIENCE)

    def _n_of(self, flow: Hashable, priority: Priority) -> int:
        known = self._levels[priority].flows.get(flow)
        return known.n_items if known else 0

    def _remove(self, item: Item, *, is_charged: bool) -> None:
        self._levels[item.priority].remove(item, is_charged=is_charged)
        self._n_items -= 1
        self._n_in_lane[item.lane] -= 1
        if not self._n_in_lane[item.lane]:
            del self._n_in_lane[item.lane]
