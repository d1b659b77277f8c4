"""Forms batches from rows that wait in lanes, and hands them to one runner.

Knows rows (anything), lanes (anything hashable), deadlines and futures. Does not know HTTP, images, tensors or
bundles: its tests use integers. A *lane* is the set of rows that may share one batch.

The rules, in the order they matter:

1. A batch leaves as soon as the runner is free; an idle runner never waits for company.
2. While one batch runs, a second one is prepared only when it is full, so late rows can still join a small one.
3. Among lanes, the one whose oldest row has waited longest goes first; within a lane, first in first out.
4. An abandoned row leaves its lane at once; a late one at the moment it would enter a batch, before the device sees it.
5. The number of waiting rows is bounded, and nobody waits whose answer would come past the deadline; rows of one call
   enter together or not at all. An idle runner refuses nobody, so a wrong estimate mends itself. A batch takes no
   further row that would make it late for one that it has.
6. A runner that raises fails the rows of that batch and nothing else.
7. Rows may have a *cost*, in any unit, on top of what every row takes. The costs in one batch are bounded, and a row
   that costs more by itself runs alone. A batch with a cost is never prepared ahead, and of two in a row the second one
   lets a batch without cost go first, if any waits: a crowd of costly rows cannot shut the others out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from service.errors import DeadlineExceededError, DrainingError, InferenceFailedError, OverloadedError, ServiceError

Row = TypeVar("Row")
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

SMOOTHING: Final = 0.2
"""Weight of the newest batch in the running mean of seconds per row."""


class BatcherObserver(Protocol):
    """What a batcher reports while it works; every method must be quick and must not raise."""

    def batch_formed(self, n_rows: int, waited_s: float) -> None:
        """A batch of `n_rows` left; its oldest row had waited for `waited_s` seconds."""

    def row_dropped(self, reason: str) -> None:
        """A row left without being run: `expired`, `cancelled`, `queue_full` or `wait_too_long`."""

    def queue_changed(self, n_waiting: int) -> None:
        """The number of waiting rows is now `n_waiting`."""


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


@dataclass(eq=False)
class Ticket(Generic[Row, Answer]):
    """A waiting row: its deadline (seconds of the batcher's clock) and the future of its outcome."""

    row: Row
    deadline_s: float
    entered_s: float
    future: asyncio.Future[Outcome[Answer]]
    is_waiting: bool = True


class _Silent:
    """The observer of a batcher that nobody watches."""

    def batch_formed(self, n_rows: int, waited_s: float) -> None:
        """Ignore."""

    def row_dropped(self, reason: str) -> None:
        """Ignore."""

    def queue_changed(self, n_waiting: int) -> None:
        """Ignore."""


class Batcher(Generic[Row, Answer]):
    """A bounded queue in front of one runner; lives on one event loop.

    Args:
        run: runs one batch of rows of one lane, answers in the same order. An answer may itself be an exception:
            then only that row fails.
        max_rows: most rows in a batch.
        max_waiting: most rows that may wait.
        cost: of one row; never negative.
        max_cost: of one batch, unless a single row costs more.
        observer: told what happens, for metrics.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Awaitable[Sequence[Answer | Exception]]],
        *,
        max_rows: int,
        max_waiting: int,
        cost: Callable[[Row], int] = lambda _: 0,
        max_cost: int = 0,
        observer: BatcherObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._cost = cost
        self._max_cost = max_cost
        self._had_cost = False
        self._observer: BatcherObserver = observer or _Silent()
        self._clock = clock
        self._lanes: dict[Hashable, deque[Ticket[Row, Answer]]] = {}
        self._n_waiting = 0
        self._running: dict[asyncio.Task[None], int] = {}  # in the order they were handed over, with their rows
        self._turn_began_s = 0.0
        self._is_closed = False
        self._s_per_row = 0.0

    @property
    def n_waiting(self) -> int:
        """Rows that wait and are still wanted."""
        return self._n_waiting

    @property
    def n_running(self) -> int:
        """Batches handed to the runner and not yet back."""
        return len(self._running)

    def estimated_wait_s(self) -> float:
        """Seconds a row that enters now would wait, from the running mean of seconds per row."""
        return self._rest_s(self._clock()) + self._n_waiting * self._s_per_row

    def _rest_s(self, now_s: float) -> float:
        """Seconds until the batches that the runner has are back, by the same mean."""
        if not self._running:
            return 0.0
        n_first, *n_prepared = self._running.values()
        rest_s = max(0.0, n_first * self._s_per_row - (now_s - self._turn_began_s))
        return rest_s + sum(n_prepared) * self._s_per_row

    def submit(
        self, rows: Sequence[Row], *, lane: Hashable, deadline_s: float
    ) -> list[asyncio.Future[Outcome[Answer]]]:
        """Queue rows of one lane together; cancel a returned future to abandon its row.

        Args:
            rows: what the runner will see.
            lane: rows with equal lanes may share a batch.
            deadline_s: reading of the batcher's clock after which nobody wants the answers.

        Returns:
            One future per row. It may raise `DeadlineExceededError`, `InferenceFailedError` or whatever the runner
            answered for that row.

        Raises:
            OverloadedError: the rows do not fit in the queue, or would be late; none of them entered.
            DrainingError: the batcher is closed.
        """
        if self._is_closed:
            raise DrainingError("This process is stopping; send the request again, another one will take it.")
        if not rows:
            return []
        now_s = self._clock()
        self._refuse_in_vain(rows, max(0.0, deadline_s - now_s))
        loop = asyncio.get_running_loop()
        tickets = [Ticket[Row, Answer](row, deadline_s, now_s, loop.create_future()) for row in rows]
        queue = self._lanes.setdefault(lane, deque())
        for ticket in tickets:
            ticket.future.add_done_callback(partial(self._forget, lane, ticket))
            queue.append(ticket)
        self._n_waiting += len(tickets)
        self._observer.queue_changed(self._n_waiting)
        self._dispatch()
        return [ticket.future for ticket in tickets]

    async def close(self) -> None:
        """Take nothing more, run what waits, and return when the last batch is back."""
        self._is_closed = True
        self._dispatch()
        while self._running:
            await asyncio.wait(self._running)

    def _refuse_in_vain(self, rows: Sequence[Row], remaining_s: float) -> None:
        """Refuse rows for which there is no room, or no time: an answer now helps more than silence till the deadline.

        Raises:
            OverloadedError: says when to come back.
        """
        wait_s = self.estimated_wait_s()
        if self._n_waiting + len(rows) > self._max_waiting:
            reason = "queue_full"
            message = f"{self._n_waiting} images already wait and at most {self._max_waiting} may; try again later."
        elif self._running and (needed_s := wait_s + len(rows) * self._s_per_row) > remaining_s:
            reason = "wait_too_long"
            message = (
                f"Others wait: the answer would take about {needed_s:.1f} s, and {remaining_s:.1f} s are left. "
                "Try again later, or allow more time."
            )
        else:
            return
        for _ in rows:
            self._observer.row_dropped(reason)
        raise OverloadedError(message, retry_after_s=wait_s)

    def _forget(self, lane: Hashable, ticket: Ticket[Row, Answer], _: asyncio.Future[Outcome[Answer]]) -> None:
        """Let go of a ticket whose future was settled from outside while it still waited, and of its row."""
        if not ticket.is_waiting:
            return
        ticket.is_waiting = False
        queue = self._lanes[lane]
        queue.remove(ticket)  # a look through at most max_waiting tickets
        if not queue:
            del self._lanes[lane]
        self._n_waiting -= 1
        self._observer.row_dropped("cancelled")
        self._observer.queue_changed(self._n_waiting)

    def _dispatch(self) -> None:
        """Start as many batches as rules 1 and 2 allow."""
        while not self._running or (len(self._running) == 1 and self._may_prepare()):
            batch = self._form()
            if not batch:
                return
            if not self._running:
                self._turn_began_s = self._clock()
            task = asyncio.get_running_loop().create_task(self._run_batch(batch))
            self._running[task] = len(batch)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._dispatch()

    def _may_prepare(self) -> bool:
        """Whether the next batch may be put together while another one runs."""
        is_one_full = any(
            len(queue) >= self._max_rows and not self._is_costly(lane) for lane, queue in self._lanes.items()
        )
        return is_one_full and not self._is_costly(self._next_lane())

    def _is_costly(self, lane: Hashable) -> bool:
        return self._cost(self._lanes[lane][0].row) > 0

    def _next_lane(self) -> Hashable:
        """The lane that goes next, by rules 3 and 7."""
        return min(
            self._lanes, key=lambda lane: (self._had_cost and self._is_costly(lane), self._lanes[lane][0].entered_s)
        )

    def _form(self) -> list[Ticket[Row, Answer]]:
        """Take the next batch out of the queue; empty when nothing that still matters waits."""
        now_s = self._clock()
        begins_s = now_s + self._rest_s(now_s)
        batch: list[Ticket[Row, Answer]] = []
        cost = 0
        due_s = math.inf
        while self._lanes and not batch:
            lane = self._next_lane()
            queue = self._lanes[lane]
            while queue and len(batch) < self._max_rows:
                ticket = queue[0]
                row_cost = self._cost(ticket.row)
                # Its callback may still be on its way when a future was cancelled this very moment.
                is_abandoned = ticket.future.done()
                is_late_with_it = begins_s + (len(batch) + 1) * self._s_per_row > due_s
                if batch and not is_abandoned and (cost + row_cost > self._max_cost or is_late_with_it):
                    break
                queue.popleft()
                ticket.is_waiting = False
                self._n_waiting -= 1
                if is_abandoned:
                    self._observer.row_dropped("cancelled")
                    continue
                if now_s >= ticket.deadline_s:
                    self._observer.row_dropped("expired")
                    ticket.future.set_exception(DeadlineExceededError("The deadline passed while the image waited."))
                    continue
                batch.append(ticket)
                cost += row_cost
                due_s = min(due_s, ticket.deadline_s)
            if not queue:
                del self._lanes[lane]
        self._observer.queue_changed(self._n_waiting)
        if batch:
            self._had_cost = cost > 0
            self._observer.batch_formed(len(batch), now_s - batch[0].entered_s)
        return batch

    async def _run_batch(self, batch: list[Ticket[Row, Answer]]) -> None:
        """Run one batch and settle its futures; never raises."""
        started_s = self._clock()
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._run([ticket.row for ticket in batch])
            if len(answers) != len(batch):
                raise InferenceFailedError(f"The runner answered {len(answers)} of {len(batch)} rows.")  # noqa: TRY301
        except ServiceError as error:
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            answers = [DrainingError("This process is stopping; send the request again.")] * len(batch)
        except Exception as error:
            logger.exception("batch.failed", extra={"n_rows": len(batch)})
            failure = InferenceFailedError("The model failed on this batch.")
            failure.__cause__ = error
            answers = [failure] * len(batch)
        now_s = self._clock()
        ran_s = now_s - started_s
        # A batch that was prepared ahead had its turn only when the one before it was back.
        per_row_s = (now_s - max(started_s, self._turn_began_s)) / len(batch)
        self._turn_began_s = now_s
        self._s_per_row += (SMOOTHING if self._s_per_row else 1.0) * (per_row_s - self._s_per_row)
        for ticket, answer in zip(batch, answers, strict=True):
            if ticket.future.done():
                continue
            if isinstance(answer, Exception):
                ticket.future.set_exception(answer)
            else:
                ticket.future.set_result(Outcome(answer, started_s - ticket.entered_s, ran_s, len(batch)))
