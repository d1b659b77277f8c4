"""How long rows that enter the queue now would wait, and when they would be answered.

Knows numbers of rows, costs, seconds and deadlines. Does not know queues: whoever asks says how many rows go before.

Four things go into it: when each runner is free, since one that starts half a batch after another is done half a batch
later; what batches take (`batch_times.py`); that a row's batch is likely to be as full as the fullest of the
last few, whoever joins it later; and a margin. Whoever is admitted with no time to spare is late as soon as anything
goes a little wrong, and under overload that is everybody: the device would work for answers that nobody waits for any
more. So the margin is learned: it grows when a call that was not far from its deadline took longer than it allowed for,
and shrinks a little when one did not, until 19 of 20 are answered within it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from service.scheduler.batch_times import BatchTimes

N_RECENT: Final = 8
"""Batches whose size tells how full the next ones will be."""
STEP: Final = 0.05
"""How far one late call moves the margin."""
MAY_BE_LATE: Final = 0.05
"""Part of the calls that the margin leaves out."""
MAX_MARGIN: Final = 2.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of rows that enter now.

    Args:
        wait_s: seconds until their turn.
        answer_s: seconds until the last of them is answered.
        allowed_s: seconds they have.
    """

    wait_s: float
    answer_s: float
    allowed_s: float


class WaitPrediction:
    """Predicts waiting times and learns from how they turn out.

    Args:
        max_rows: of a batch.
        max_cost: of a batch.
        n_padded: how many rows really run for so many.
    """

    def __init__(self, max_rows: int, max_cost: int, n_padded: Callable[[int], int]) -> None:
        self.batch_times = BatchTimes(max_rows, n_padded)
        self.margin = 1.0
        self._max_rows = max_rows
        self._max_cost = max_cost
        self._sizes = deque([1], maxlen=N_RECENT)

    def predict(
        self,
        n_rows: int,
        cost: int,
        *,
        n_before: int,
        cost_waiting: int,
        rests_s: Sequence[float],
        allowed_s: float = math.inf,
    ) -> Prediction:
        """Look ahead for rows that enter now.

        Args:
            n_rows: how many.
            cost: of all of them.
            n_before: rows that leave before the last of them does.
            cost_waiting: of everything that waits.
            rests_s: seconds until each runner is free of what it has, the soonest first.
            allowed_s: seconds until nobody wants the answers.
        """
        n_runners, n_together = len(rests_s), n_before + n_rows
        size = min(max(*self._sizes, -(-n_together // n_runners)), self._max_rows)
        n_batches = -(-n_together // size)  # of that size, the last one with it: the runners take them in turn
        n_turns, runner = divmod(n_batches - 1, n_runners)
        n_last = max(*self._sizes, n_together - (n_batches - 1) * size)
        # One row's cost is one runner's; of what waits every runner has its part to do, and no more than one batch with
        # a cost goes before each without.
        cost_waiting = -(-cost_waiting // n_runners)
        cost = -(-cost // min(n_runners, n_rows))
        if not cost:
            cost_waiting = min(cost_waiting, (n_turns + 1) * self._max_cost)
        wait_s = rests_s[runner] + n_turns * self.batch_times.seconds(size) + self.batch_times.seconds(0, cost_waiting)
        return Prediction(wait_s, wait_s + self.batch_times.seconds(n_last, cost), allowed_s)

    def is_in_time(self, prediction: Prediction) -> bool:
        """Whether the answer will be ready while it is wanted, with the margin."""
        return prediction.answer_s * self.margin <= prediction.allowed_s

    def batch_left(self, n_rows: int) -> None:
        """Note how full a batch is."""
        self._sizes.append(n_rows)

    def turned_out(self, prediction: Prediction, took_s: float) -> None:
        """Learn from a call; one that had plenty of time teaches nothing about those that have not."""
        if not prediction.answer_s or 2 * MAX_MARGIN * prediction.answer_s < prediction.allowed_s:
            return
        is_late = took_s > prediction.answer_s * self.margin
        self.margin = min(max(self.margin + STEP * (is_late - MAY_BE_LATE), 1.0), MAX_MARGIN)
