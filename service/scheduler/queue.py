"""A bounded fair queue with priorities.

A higher priority goes first; within it, tenants take turns request by request; within a tenant, first in, first out. A
priority that `MAX_PASSED` batches in a row passed over goes first once. Per priority a tenant may hold twice as many
places as would remain free (dynamic thresholds, Choudhury and Hahne 1998). Queued requests are never evicted.
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
Answer = TypeVar("Answer")


class Priority(IntEnum):
    """The priorities; none starves."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Answer]):
    """A request's answer, the seconds it was queued and the seconds its batch ran."""

    answer: Answer
    queued_s: float
    ran_s: float


@dataclass(eq=False, slots=True)
class Request(Generic[Row, Answer]):
    """One row that waits for the device; times are readings of the batcher's clock.

    Requests with equal keys can share a batch. Cancelling the future discards the request.
    """

    row: Row
    key: Hashable
    tenant: Hashable
    priority: Priority
    cost: int
    arrival_s: float
    deadline_s: float
    future: asyncio.Future[Outcome[Answer]]


@dataclass(eq=False, slots=True)
class _Level(Generic[Row, Answer]):
    """The requests of one priority: a line per key and tenant, in the order of their turns."""

    lines: OrderedDict[tuple[Hashable, Hashable], deque[Request[Row, Answer]]] = field(default_factory=OrderedDict)
    n_requests: int = 0
    n_passed: int = 0


class TenantQueue(Generic[Row, Answer]):
    """Holds `n_requests`: at most `max_requests` of one tenant alone, 1.5 times as many in total."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._levels = {priority: _Level[Row, Answer]() for priority in sorted(Priority, reverse=True)}
        self._order = list(self._levels.values())
        self._n_of: Counter[tuple[Hashable, Priority]] = Counter()
        self.n_requests = 0

    def has_room(self, tenant: Hashable, priority: Priority, n_new: int) -> bool:
        """Whether a tenant may add this many requests."""
        if not self.n_requests:
            return n_new <= self._max_requests
        n_left = 3 * self._max_requests - 2 * (self.n_requests + n_new)
        return self._n_of[tenant, priority] + n_new <= n_left

    def n_ahead(self, tenant: Hashable, priority: Priority) -> int:
        """Requests served before a new one: higher priorities, the tenant's own, and the other tenants' turns."""
        n_turns = self._n_of[tenant, priority] + 1
        n_ahead = 0
        for other, level in self._levels.items():
            if other > priority:
                n_ahead += level.n_requests
        for (_, of), line in self._levels[priority].lines.items():
            n_ahead += len(line) if of == tenant else min(len(line), n_turns)
        return n_ahead

    def push(self, request: Request[Row, Answer]) -> None:
        """Append a request to its tenant's line."""
        level = self._levels[request.priority]
        level.lines.setdefault((request.key, request.tenant), deque()).append(request)
        self._count(request, 1)

    def peek(self, key: Hashable = None, *, is_free: bool = False) -> Request[Row, Answer] | None:
        """The next request or None; only of this key unless it is None, only without a cost if `is_free`."""
        for level in self._order:
            for (of, _), line in level.lines.items():
                if (key is None or of == key) and not (is_free and line[0].cost):
                    return line[0]
        return None

    def pop(self, request: Request[Row, Answer]) -> None:
        """Remove a request that `peek` returned; its tenant's next turn comes after the others'."""
        self.discard(request)
        lines, place = self._levels[request.priority].lines, (request.key, request.tenant)
        if place in lines:
            lines.move_to_end(place)

    def discard(self, request: Request[Row, Answer]) -> bool:
        """Remove a request from any position; False if it is not queued."""
        lines, place = self._levels[request.priority].lines, (request.key, request.tenant)
        if place not in lines or request not in lines[place]:
            return False
        lines[place].remove(request)
        if not lines[place]:
            del lines[place]
        self._count(request, -1)
        return True

    def batch_formed(self, priorities: set[Priority]) -> None:
        """Record which priorities a batch contains, and which it passed over."""
        for priority, level in self._levels.items():
            level.n_passed = level.n_passed + 1 if level.n_requests and priority not in priorities else 0
        starving = [level for level in self._levels.values() if level.n_passed >= MAX_PASSED]
        self._order = starving + [level for level in self._levels.values() if level not in starving]

    def _count(self, request: Request[Row, Answer], n_more: int) -> None:
        self.n_requests += n_more
        self._levels[request.priority].n_requests += n_more
        self._n_of[request.tenant, request.priority] += n_more
        if not self._n_of[request.tenant, request.priority]:
            del self._n_of[request.tenant, request.priority]
