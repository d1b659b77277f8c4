"""The rows that wait for the device, and how the next batch is made of them.

Knows tickets: their order by way of `fair_queue.py`, their costs, deadlines and futures. Does not know the
runner, nor when a batch should leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Generic, TypeVar

from service.errors import DeadlineExceededError
from service.scheduler.fair_queue import FairQueue
from service.scheduler.tickets import Batch, BatcherObserver, Future, Ticket
from service.scheduler.wait_prediction import WaitPrediction

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class WaitingRows(Generic[Row, Answer]):
    """Tickets that wait, in order, and what they cost.

    Args:
        max_rows: most rows in a batch.
        max_waiting: see `FairQueue`.
        max_cost: of one batch, unless a single row costs more.
        waits: says what a batch takes; told how full batches are, and of calls that waited in vain.
        observer: told who leaves without being run, and how many wait.
    """

    def __init__(
        self, *, max_rows: int, max_waiting: int, max_cost: int, waits: WaitPrediction, observer: BatcherObserver
    ) -> None:
        self.order: FairQueue[Ticket[Row, Answer]] = FairQueue(max_waiting)
        self.cost = 0
        self._max_rows = max_rows
        self._max_cost = max_cost
        self._had_cost = False
        self._waits = waits
        self._observer = observer

    def __len__(self) -> int:
        return len(self.order)

    def enter(self, tickets: Sequence[Ticket[Row, Answer]]) -> None:
        """Let tickets wait; one whose future is settled from outside leaves at once, and its row with it."""
        for ticket in tickets:
            ticket.future.add_done_callback(partial(self._forget, ticket))
            self.order.add(ticket)
            self.cost += ticket.cost
        self._observer.queue_changed(len(self))

    def first_deadline_s(self) -> float:
        """The earliest one of those who wait."""
        return min((ticket.deadline_s for ticket in self.order), default=math.inf)

    def has_full_batch(self) -> bool:
        """Whether a whole batch without a cost waits, and the next batch would be one without a cost."""
        full = [lane for lane, n_rows in self.order.n_in_lane.items() if n_rows >= self._max_rows]
        is_one_free = any(ticket is not None and not ticket.cost for ticket in map(self.order.next_of, full))
        return is_one_free and not self._leader().cost

    def form(self, now_s: float, begins_s: float, *, most: int, spares_late: bool) -> Batch[Row, Answer]:
        """Take the next batch out; it is empty when nothing that still matters waits.

        Args:
            now_s: reading of the clock.
            begins_s: the one at which a runner will begin with this batch.
            most: rows that it may take, no more than a batch holds.
            spares_late: keep those whose answer is expected after their deadline.
        """
        tickets: list[Ticket[Row, Answer]] = []
        cost = 0
        due_s = math.inf
        most = min(most, self._max_rows)
        while self.order and not tickets:
            ticket: Ticket[Row, Answer] | None = self._leader()
            while ticket is not None and len(tickets) < most:
                done_s = begins_s + self._waits.batch_times.seconds(len(tickets) + 1, cost + ticket.cost)
                is_late = done_s > ticket.deadline_s
                is_last = not tickets and len(self.order) == 1
                # Its callback may still be on its way when a future was cancelled this very moment.
                if ticket.future.done():
                    self._drop(ticket, "cancelled")
                elif tickets and (cost + ticket.cost > self._max_cost or done_s > due_s):
                    break
                elif now_s >= ticket.deadline_s or (is_late and not spares_late and not is_last):
                    self._expire(ticket, done_s)
                else:
                    self._leave(ticket)
                    self.order.take(ticket)
                    tickets.append(ticket)
                    cost += ticket.cost
                    due_s = due_s if is_late else min(due_s, ticket.deadline_s)
                ticket = self.order.next_of(ticket.lane)
        self._observer.queue_changed(len(self))
        if tickets:
            self.order.end_batch()
            self._had_cost = cost > 0
            self._waits.batch_left(len(tickets))
        return Batch(tickets, cost)

    def _leader(self) -> Ticket[Row, Answer]:
        """What the next batch begins with: of two batches with a cost in a row, the second one gives way."""
        return self.order.leader(lambda ticket: self._had_cost and ticket.cost > 0)

    def _forget(self, ticket: Ticket[Row, Answer], _: Future[Answer]) -> None:
        if ticket.is_waiting:
            self._drop(ticket, "cancelled")
            self._observer.queue_changed(len(self))

    def _expire(self, ticket: Ticket[Row, Answer], done_s: float) -> None:
        self._drop(ticket, "expired")
        if ticket.prediction is not None:
            self._waits.turned_out(ticket.prediction, done_s - ticket.entered_s)
        ticket.future.set_exception(DeadlineExceededError("The image waited until it was too late for an answer."))

    def _drop(self, ticket: Ticket[Row, Answer], reason: str) -> None:
        self._leave(ticket)
        self.order.drop(ticket)
        self._observer.row_dropped(reason)

    def _leave(self, ticket: Ticket[Row, Answer]) -> None:
        ticket.is_waiting = False
        self.cost -= ticket.cost
