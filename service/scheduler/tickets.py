"""What goes through a batcher: a ticket per row going in, an outcome coming out, and what observers are told."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

from service.scheduler.fair_queue import Priority
from service.scheduler.wait_prediction import Prediction

Row = TypeVar("Row")
Answer = TypeVar("Answer")

Release = Literal["idle", "free", "gathered", "full", "drain"]
"""Why a batch left when it did: a runner had nothing to do; it had just become free; it was free and had waited a
moment for more; the batch was full and got ready behind those that run; the batcher is closing."""


@dataclass(frozen=True)
class Outcome(Generic[Answer]):
    """One row's answer with the time it took.

    Args:
        answer: what the runner returned for the row.
        queued_s: seconds between entering the queue and leaving in a batch.
        ran_s: seconds the row's batch took.
        n_batch: rows in that batch.
    """

    answer: Answer
    queued_s: float
    ran_s: float
    n_batch: int


Future: TypeAlias = asyncio.Future[Outcome[Answer]]
"""What a caller waits on."""


@dataclass(eq=False, slots=True)
class Ticket(Generic[Row, Answer]):
    """A waiting row.

    Args:
        row: what the runner will see.
        lane, flow, priority, number: its place in the order of the queue.
        cost: of the row, on top of what every row takes.
        entered_s: reading of the batcher's clock when it came.
        deadline_s: the one after which nobody wants the answer.
        future: of its outcome.
        prediction: made for its call when it entered; None for all rows of the call but the last.
        is_waiting: whether it is in the queue.
    """

    row: Row
    lane: Hashable
    flow: Hashable
    priority: Priority
    number: int
    cost: int
    entered_s: float
    deadline_s: float
    future: Future[Answer]
    prediction: Prediction | None = None
    is_waiting: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Batch(Generic[Row, Answer]):
    """Rows that leave together, and the sum of their costs."""

    tickets: Sequence[Ticket[Row, Answer]]
    cost: int


class BatcherObserver(Protocol):
    """What a batcher reports while it works; every method must be quick and must not raise."""

    def rows_entered(self, n_rows: int, priority: Priority) -> None:
        """So many rows were let in."""

    def batch_formed(self, n_rows: int, n_padded: int, waited_s: float, release: Release) -> None:
        """A batch of `n_rows` left, which run as `n_padded`; its oldest row had waited for `waited_s` seconds."""

    def row_dropped(self, reason: str) -> None:
        """A row left without being run: `expired`, `cancelled`, `queue_full` or `wait_too_long`."""

    def queue_changed(self, n_waiting: int) -> None:
        """The number of waiting rows is now `n_waiting`."""

    def call_answered(self, predicted_s: float, took_s: float) -> None:
        """A call was predicted to take `predicted_s` seconds and took `took_s`; told of one call per batch."""


class Silent:
    """The observer of a batcher that nobody watches."""

    def rows_entered(self, n_rows: int, priority: Priority) -> None:
        """Ignore."""

    def batch_formed(self, n_rows: int, n_padded: int, waited_s: float, release: Release) -> None:
        """Ignore."""

    def row_dropped(self, reason: str) -> None:
        """Ignore."""

    def queue_changed(self, n_waiting: int) -> None:
        """Ignore."""

    def call_answered(self, predicted_s: float, took_s: float) -> None:
        """Ignore."""
