"""A bounded fair queue with priorities.

A higher priority goes first; within it, tenants take turns row by row; within a tenant, first in, first out. A
priority that `MAX_PASSED` batches in a row passed over goes first once. Per priority a tenant may hold twice as many
places as would remain free (dynamic thresholds, Choudhury and Hahne 1998). Queued rows are never evicted.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Generic, TypeVar

MAX_PASSED: Final = 8

Row = TypeVar("Row")
Result = TypeVar("Result")


class Priority(IntEnum):
    """The priorities; none starves."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class TimedResult(Generic[Result]):
    """A row's result, the seconds it was queued and the seconds its batch ran."""

    result: Result
    queued_s: float
    ran_s: float


@dataclass(eq=False, slots=True)
class QueuedRow(Generic[Row, Result]):
    """One row that waits for the device; times are readings of the batcher's clock.

    Rows with equal keys can share a batch. Cancelling the future removes the row from the queue.
    """

    row: Row
    key: Hashable
    tenant: Hashable
    priority: Priority
    cost: int
    arrival_s: float
    deadline_s: float
    future: asyncio.Future[TimedResult[Result]]


@dataclass(eq=False, slots=True)
class _Level(Generic[Row, Result]):
    """The rows of one priority: a line per key and tenant, in the order of their turns."""

    lines: OrderedDict[tuple[Hashable, Hashable], deque[QueuedRow[Row, Result]]] = field(default_factory=OrderedDict)
    n_rows: int = 0
    n_passed: int = 0


class TenantQueue(Generic[Row, Result]):
    """Holds `n_rows`: at most `max_rows` of one tenant alone, 1.5 times as many in total."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._levels = {priority: _Level[Row, Result]() for priority in sorted(Priority, reverse=True)}
        self._order = list(self._levels.values())
        self._n_of: Counter[tuple[Hashable, Priority]] = Counter()
        self.n_rows = 0

    def has_room(self, tenant: Hashable, priority: Priority, n_new: int) -> bool:
        """Whether a tenant may add this many rows."""
        if not self.n_rows:
            return n_new <= self._max_rows
        n_left = 3 * self._max_rows - 2 * (self.n_rows + n_new)
        return self._n_of[tenant, priority] + n_new <= n_left

    def n_ahead(self, tenant: Hashable, priority: Priority) -> int:
        """Rows served before a new one: higher priorities, the tenant's own, and the other tenants' turns."""
        n_turns = self._n_of[tenant, priority] + 1
        n_ahead = sum([level.n_rows for other, level in self._levels.items() if other > priority])
        for (_, of), line in self._levels[priority].lines.items():
            n_ahead += len(line) if of == tenant else min(len(line), n_turns)
        return n_ahead

    def push(self, queued: QueuedRow[Row, Result]) -> None:
        """Append a row to its tenant's line."""
        level = self._levels[queued.priority]
        level.lines.setdefault((queued.key, queued.tenant), deque()).append(queued)
        self._count(queued, 1)

    def peek(self, key: Hashable = None, *, is_free: bool = False) -> QueuedRow[Row, Result] | None:
        """The next row or None; only of this key unless it is None, only without a cost if `is_free`."""
        for level in self._order:
            for (of, _), line in level.lines.items():
                if (key is None or of == key) and not (is_free and line[0].cost):
                    return line[0]
        return None

    def pop(self, queued: QueuedRow[Row, Result]) -> None:
        """Remove a row that `peek` returned; its tenant's next turn comes after the others'."""
        self.discard(queued)
        lines, place = self._levels[queued.priority].lines, (queued.key, queued.tenant)
        if place in lines:
            lines.move_to_end(place)

    def discard(self, queued: QueuedRow[Row, Result]) -> bool:
        """Remove a row from any position; False if it is not queued."""
        lines, place = self._levels[queued.priority].lines, (queued.key, queued.tenant)
        if place not in lines or queued not in lines[place]:
            return False
        lines[place].remove(queued)
        if not lines[place]:
            del lines[place]
        self._count(queued, -1)
        return True

    def batch_formed(self, priorities: set[Priority]) -> None:
        """Record which priorities a batch contains, and which it passed over."""
        starving: list[_Level[Row, Result]] = []
        others: list[_Level[Row, Result]] = []
        for priority, level in self._levels.items():
            level.n_passed = level.n_passed + 1 if level.n_rows and priority not in priorities else 0
            (starving if level.n_passed >= MAX_PASSED else others).append(level)
        self._order = starving + others

    def _count(self, queued: QueuedRow[Row, Result], n_more: int) -> None:
        self.n_rows += n_more
        self._levels[queued.priority].n_rows += n_more
        self._n_of[queued.tenant, queued.priority] += n_more
        if not self._n_of[queued.tenant, queued.priority]:
            del self._n_of[queued.tenant, queued.priority]
