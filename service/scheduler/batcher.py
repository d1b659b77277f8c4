"""Forms batches from rows that wait, and hands them to one runner, or to several that work side by side.

Knows rows (anything), lanes and flows (anything hashable), deadlines and futures. Does not know HTTP, images, tensors
or bundles: its tests use integers. A *lane* is the set of rows that may share one batch, a *flow* the set of rows that
share one turn.

The rules, in the order they matter:

1. A batch leaves as soon as a runner is free, with all that came in the same turn of the event loop, unless rows are
   about to come with which all would be done sooner: `expected_rows.py` says for how long a free runner had
   better wait. It waits once per batch and in one lane, not where a row has a cost or a high priority, and not where
   that could make a row late. All runners that are free share what there is and wait for nobody; one that is free
   alone leaves the others their part (guided self-scheduling, Polychronopoulos and Kuck 1987), and waits only so as not
   to leave with a single row. Where rows have been refused since the last batch left, more come than all runners can
   do: then it takes whatever fits.
2. While all runners are busy, one more batch is prepared only when it is full, so late rows can still join a small one.
3. What goes first, and who may join when many wait, is the order of `fair_queue.py`: priorities, then turns
   between flows, then first in first out. The row that is next by that order chooses the lane, which fills the batch.
4. An abandoned row leaves its lane at once; a late one at the moment it would enter a batch, before the device sees it:
   one whose deadline has passed, or would have before its answer is there, unless it is the last.
5. The number of waiting rows is bounded, and nobody waits whose answer would come past the deadline, by
   `wait_prediction.py`; rows of one call enter together or not at all, and may leave in several batches. An
   idle runner refuses nobody and drops nobody, so a wrong estimate mends itself. A batch takes no further row that
   would make it late for one that it has.
6. A runner that raises fails the rows of that batch and nothing else.
7. Rows may have a *cost*, in any unit, on top of what every row takes. The costs in one batch are bounded, and a row
   that costs more by itself runs alone. A batch with a cost is never prepared ahead, and of two in a row the second one
   lets a batch without cost go first, if any waits: a crowd of costly rows cannot shut the others out.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from service.errors import DrainingError, InferenceFailedError, OverloadedError, ServiceError
from service.scheduler.batch_times import BatchTimes
from service.scheduler.expected_rows import LEAST_SAVED, LEAST_SAVED_BY_A_CORE, ExpectedRows
from service.scheduler.fair_queue import Priority
from service.scheduler.running_batches import RunningBatches
from service.scheduler.tickets import Batch, BatcherObserver, Outcome, Release, Silent, Ticket
from service.scheduler.wait_prediction import Prediction, WaitPrediction
from service.scheduler.waiting_rows import WaitingRows

Row = TypeVar("Row")
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

LEAST_SHARE: Final = 2
"""Rows that one of several runners may take while the others are busy: for a single one, too, it reads all weights."""
CROWD: Final = 1.5
"""Rows per runner from which on one of several runners waits for a second row; fewer are answered sooner one by one."""


class Batcher(Generic[Row, Answer]):
    """A bounded queue in front of runners; lives on one event loop.

    Args:
        run: runs one batch of rows of one lane, answers in the same order. An answer may itself be an exception:
            then only that row fails.
        max_rows: most rows in a batch.
        max_waiting: most rows of one flow that may wait; of all flows together half as many again.
        n_runners: batches that `run` runs side by side; what is handed over beyond that waits there for its turn.
        n_padded: how many rows a runner really runs for so many.
        cost: of one row; never negative.
        max_cost: of one batch, unless a single row costs more.
        observer: told what happens, for metrics.
        clock: monotonic seconds.
        call_later: the event loop's; whoever has another clock has another one.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Awaitable[Sequence[Answer | Exception]]],
        *,
        max_rows: int,
        max_waiting: int,
        n_runners: int = 1,
        n_padded: Callable[[int], int] = lambda n_rows: n_rows,
        cost: Callable[[Row], int] = lambda _: 0,
        max_cost: int = 0,
        observer: BatcherObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._waits = WaitPrediction(max_rows, max_cost, n_padded)
        self._run = run
        self._n_padded = n_padded
        self._cost = cost
        self._observer: BatcherObserver = observer or Silent()
        self._clock = clock
        self._call_later = call_later
        self._max_rows = max_rows
        self._n_runners = n_runners
        self._enough = max_rows if n_runners == 1 else min(LEAST_SHARE, max_rows)  # who has so many waits for no more
        least_saved = LEAST_SAVED if n_runners == 1 else LEAST_SAVED_BY_A_CORE
        self._expected = ExpectedRows(self._waits.batch_times, self._enough, least_saved)
        self._has_refused = False  # whether it has refused rows since the last batch left
        self._is_due = False  # whether a look at what has just come is due
        self._waits_until_s: float | None = None  # a free runner, for rows that are expected
        self._waiting: WaitingRows[Row, Answer] = WaitingRows(
            max_rows=max_rows, max_waiting=max_waiting, max_cost=max_cost, waits=self._waits, observer=self._observer
        )
        self._numbers = itertools.count()
        self._running = RunningBatches(n_runners)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def batch_times(self) -> BatchTimes:
        """What batches take; to be calibrated before the first row comes."""
        return self._waits.batch_times

    @property
    def n_waiting(self) -> int:
        """Rows that wait and are still wanted."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Batches handed over and not yet back."""
        return len(self._running)

    def estimated_wait_s(self, *, flow: Hashable = None, priority: int = 0) -> float:
        """Seconds that a row which enters now would wait for its turn."""
        return self._predict(1, 0, flow, Priority(priority)).wait_s

    def check(self, n_rows: int, *, deadline_s: float, flow: Hashable = None, priority: int = 0) -> None:
        """See whether rows without a cost would be let in now, before any work goes into them.

        Raises:
            OverloadedError: they would be refused.
        """
        level = Priority(priority)
        prediction = self._predict(n_rows, 0, flow, level, max(0.0, deadline_s - self._clock()))
        self._refuse_in_vain(n_rows, flow, level, prediction)

    def submit(
        self, rows: Sequence[Row], *, lane: Hashable, deadline_s: float, flow: Hashable = None, priority: int = 0
    ) -> list[asyncio.Future[Outcome[Answer]]]:
        """Queue rows of one lane together; cancel a returned future to abandon its row.

        Args:
            rows: what the runner will see.
            lane: rows with equal lanes may share a batch.
            deadline_s: reading of the batcher's clock after which nobody wants the answers.
            flow: what turns are shared out between; whoever sends much waits behind its own rows.
            priority: -1 (low), 0 (normal) or 1 (high).

        Returns:
            One future per row. It may raise `DeadlineExceededError`, `InferenceFailedError` or whatever the runner
            answered for that row.

        Raises:
            OverloadedError: the rows do not fit in the queue, or would be late; none of them entered.
            DrainingError: the batcher is closed.
        """
        if self._is_closed:
            for _ in rows:
                self._observer.row_dropped("draining")
            raise DrainingError("This process is stopping; send the request again, another one will take it.")
        if not rows:
            return []
        now_s, level = self._clock(), Priority(priority)
        if self._is_due and not self._waiting.order.has_room(flow, level, len(rows)):
            self._dispatch("idle")  # what is about to leave makes room
        costs = [self._cost(row) for row in rows]
        prediction = self._predict(len(rows), sum(costs), flow, level, max(0.0, deadline_s - now_s))
        self._refuse_in_vain(len(rows), flow, level, prediction)
        new_future = asyncio.get_running_loop().create_future
        tickets: list[Ticket[Row, Answer]] = [
            Ticket(row, lane, flow, level, next(self._numbers), cost, now_s, deadline_s, new_future())
            for row, cost in zip(rows, costs, strict=True)
        ]
        tickets[-1].prediction = prediction
        self._observer.rows_entered(len(rows), level)
        self._waiting.enter(tickets)
        if not tickets[0].cost:
            self._expected.came(lane, len(rows), now_s)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._on_entry)
        return [ticket.future for ticket in tickets]

    async def close(self) -> None:
        """Take nothing more, run what waits, and return when the last batch is back."""
        self._is_closed = True
        self._dispatch("drain")
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _predict(
        self, n_rows: int, cost: int, flow: Hashable, level: Priority, allowed_s: float = math.inf
    ) -> Prediction:
        return self._waits.predict(
            n_rows,
            cost,
            n_before=self._waiting.order.n_before(flow, level, n_rows),
            cost_waiting=self._waiting.cost,
            rests_s=self._running.rests_s(self._clock()),
            allowed_s=allowed_s,
        )

    def _refuse_in_vain(self, n_rows: int, flow: Hashable, level: Priority, prediction: Prediction) -> None:
        """Refuse rows for which there is no room, or no time: an answer now helps more than silence till the deadline.

        Raises:
            OverloadedError: says when to come back.
        """
        if not self._waiting.order.has_room(flow, level, n_rows):
            reason = "queue_full"
            message = f"{len(self._waiting)} images already wait, there is no place for {n_rows} more; try again later."
        elif (not self._running.n_free or self._waiting) and not self._waits.is_in_time(prediction):
            reason = "wait_too_long"
            message = (
                f"Others wait: the answer would take about {prediction.answer_s:.1f} s, "
                f"and {prediction.allowed_s:.1f} s are left. Try again later, or allow more time."
            )
        else:
            return
        self._has_refused = True
        for _ in range(n_rows):
            self._observer.row_dropped(reason)
        raise OverloadedError(message, retry_after_s=prediction.wait_s)

    def _on_entry(self) -> None:
        self._is_due = False
        self._dispatch("idle")

    def _dispatch(self, release: Release) -> None:
        """Start as many batches as rules 1 and 2 allow."""
        is_alone = self._running.n_free == 1
        while self._waiting and (self._running.n_free or self._has_one_to_prepare()):
            now_s = self._clock()
            if self._is_closed:
                release = "drain"
            elif not self._running.n_free:
                release = "full"
            elif self._had_better_wait(now_s):
                return
            elif self._waits_until_s is not None:
                release = "gathered"
            self._waits_until_s = None
            batch = self._waiting.form(
                now_s,
                now_s + self._running.rests_s(now_s)[0],
                most=self._share(is_alone=is_alone),
                spares_late=release in {"idle", "gathered"},
            )
            if not batch.tickets:
                return
            self._has_refused = False
            n_rows = len(batch.tickets)
            waited_s = now_s - min(ticket.entered_s for ticket in batch.tickets)
            self._observer.batch_formed(n_rows, self._n_padded(n_rows), waited_s, release)
            self._running.hand_over(batch, n_rows, self.batch_times.seconds(n_rows, batch.cost), now_s)
            task = asyncio.get_running_loop().create_task(self._run_batch(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _share(self, *, is_alone: bool) -> int:
        """Rows that the next runner may take of those that wait, by rule 1."""
        if self._has_refused:
            return self._max_rows
        if is_alone:
            return max(LEAST_SHARE, -(-len(self._waiting) // self._n_runners))
        return -(-len(self._waiting) // max(1, self._running.n_free))

    def _has_one_to_prepare(self) -> bool:
        """Whether a full batch waits and no other waits for a runner already."""
        is_full = len(self._waiting) >= self._n_runners * self._max_rows
        return is_full and not self._running.has_one_ahead and self._waiting.has_full_batch()

    def _had_better_wait(self, now_s: float) -> bool:
        """Whether a free runner waits for rows that are expected; it is told when that is over."""
        waiting = self._waiting
        lane, *others = waiting.order.n_in_lane
        if others or waiting.cost or len(waiting) >= self._enough or waiting.order.has_urgent:
            return False
        if self._n_runners > 1 and not self._has_crowd():
            return False
        wait_s = self._expected.worth_waiting_s(lane, len(waiting), now_s)
        until_s = now_s + wait_s if self._waits_until_s is None else self._waits_until_s
        makes_late = until_s + self.batch_times.seconds(self._max_rows) > waiting.first_deadline_s()
        if not wait_s or now_s >= until_s or makes_late:
            return False
        if self._waits_until_s is not None:  # who comes may end the wait, not prolong it
            return True
        self._waits_until_s = until_s
        call_later = self._call_later or asyncio.get_running_loop().call_later
        call_later(wait_s, lambda: self._waited_until(until_s))
        return True

    def _has_crowd(self) -> bool:
        """Whether there are so many rows that several runners had better share them out by twos."""
        n_rows = len(self._waiting) + self._running.n_rows + 1  # the one that would be waited for
        return self._running.n_free == 1 and n_rows >= CROWD * self._n_runners

    def _waited_until(self, until_s: float) -> None:
        """Leave with what has come, if it is still that wait which is over."""
        if self._waits_until_s == until_s:
            self._waits_until_s = -math.inf  # timers may be early by a little
            self._dispatch("idle")
            self._waits_until_s = None

    async def _run_batch(self, batch: Batch[Row, Answer]) -> None:
        """Run one batch, settle its futures and start what follows; never raises."""
        started_s = self._clock()
        answers = await self._answers([ticket.row for ticket in batch.tickets])
        now_s = self._clock()
        turn = self._running.come_back(batch, now_s)
        is_like_others = turn.ran_s > 0 and (turn.has_company or self._n_runners == 1)  # one alone may have all cores
        if is_like_others and not all(isinstance(answer, Exception) for answer in answers):  # failing differs too
            self.batch_times.observe(len(batch.tickets), batch.cost, turn.ran_s)
        call = next((ticket for ticket in batch.tickets if ticket.prediction is not None), None)
        if call is not None and call.prediction is not None:
            self._waits.turned_out(call.prediction, now_s - call.entered_s)
            self._observer.call_answered(call.prediction.answer_s, now_s - call.entered_s)
        n_answered = sum(not ticket.future.done() for ticket in batch.tickets)
        self._expected.answered(batch.tickets[0].lane, 0 if batch.cost else n_answered, now_s)
        for ticket, answer in zip(batch.tickets, answers, strict=True):
            if ticket.future.done():
                continue
            if isinstance(answer, Exception):
                ticket.future.set_exception(answer)
            else:
                ran_s = now_s - started_s
                ticket.future.set_result(Outcome(answer, started_s - ticket.entered_s, ran_s, len(batch.tickets)))
        self._dispatch("free")

    async def _answers(self, rows: Sequence[Row]) -> Sequence[Answer | Exception]:
        """What the runner makes of one batch: an answer or an error per row; never raises."""
        try:
            answers = await self._run(rows)
            if len(answers) == len(rows):
                return answers
            return [InferenceFailedError(f"The runner answered {len(answers)} of {len(rows)} rows.")] * len(rows)
        except ServiceError as error:
            return [error] * len(rows)
        except asyncio.CancelledError:
            return [DrainingError("This process is stopping; send the request again.")] * len(rows)
        except Exception as error:
            logger.exception("batch.failed", extra={"n_rows": len(rows)})
            failure = InferenceFailedError("The model failed on this batch.")
            failure.__cause__ = error
            return [failure] * len(rows)
