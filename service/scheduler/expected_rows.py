"""The rows that are about to come, and how long a free runner had better wait for them.

Knows numbers of rows, lanes and seconds. Does not know queues, deadlines or what a row is.

Callers that send one request after the other come back as soon as they are answered: a few milliseconds after a batch
is back, its callers have sent their next rows. A runner that leaves with the first of them alone has the others wait
for a nearly empty batch; then they are together and that one is alone again, for ever. Four callers take turns as one
and three where two and two, or four at once, would be answered in three quarters of the time.

So for the first, second, ... row after a batch is back it is learned how long that takes (mean plus a multiple of the
mean deviation, the estimator of RFC 6298). Rows that come at random deviate as much as they delay, and are seldom worth
waiting for; whoever is overdue never is. Of what is expected before the waiting rows alone would be done, so many are
waited for that everything, the waiting and the expected, is done soonest; none, unless that saves a good part of the
time. Only rows of the lane that was answered are expected: others could not join.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from service.scheduler.batch_times import BatchTimes

MEAN_GAIN: Final = 1 / 4
DEVIATION_GAIN: Final = 1 / 4
N_DEVIATIONS: Final = 3
"""A row is expected within its mean delay and so many deviations."""
OUTLIER: Final = 2.0
"""A delay counts as at most this many times the mean."""
LEAST_S: Final = 1e-6
"""A mean of 0 would never grow."""
LEAST_SAVED: Final = 0.1
"""Part of the time until everything is done that waiting must save."""
LEAST_SAVED_BY_A_CORE: Final = 0.02
"""The same where the runner is one of several cores: while it waits, requests are read and decoded there."""


@dataclass(slots=True)
class Delay:
    """How long after a batch is back a row comes, in seconds."""

    mean_s: float = math.inf
    deviation_s: float = math.inf

    @property
    def bound_s(self) -> float:
        """When it is all but certain to have come."""
        return self.mean_s + N_DEVIATIONS * self.deviation_s

    def observe(self, seconds: float) -> None:
        """Learn from a row that came."""
        if self.mean_s == math.inf:
            self.mean_s, self.deviation_s = max(seconds, LEAST_S), seconds / 2
        else:
            difference_s = min(seconds, OUTLIER * self.mean_s) - self.mean_s
            self.deviation_s += DEVIATION_GAIN * (abs(difference_s) - self.deviation_s)
            self.mean_s += MEAN_GAIN * difference_s


class ExpectedRows:
    """Learns when rows come after answers, and says what is worth waiting for.

    Args:
        batch_times: what batches take.
        max_rows: that are worth gathering in one batch.
        least_saved: part of the time until everything is done.
    """

    def __init__(self, batch_times: BatchTimes, max_rows: int, least_saved: float = LEAST_SAVED) -> None:
        self._batch_times = batch_times
        self._max_rows = max_rows
        self._least_saved = least_saved
        self._delays = [Delay() for _ in range(max_rows)]
        self._lane: Hashable = None
        self._answered_s = 0.0
        self._n_answered = 0
        self._n_come = 0

    def answered(self, lane: Hashable, n_rows: int, now_s: float) -> None:
        """Note that a batch of a lane is back, and with it answers to so many rows."""
        since_s = now_s - self._answered_s
        for delay in self._delays[self._n_come : self._n_answered]:
            if since_s > delay.mean_s:  # who is late counts as very late; who is not yet due teaches nothing
                delay.observe(math.inf)
        self._lane, self._answered_s, self._n_answered, self._n_come = lane, now_s, n_rows, 0

    def came(self, lane: Hashable, n_rows: int, now_s: float) -> None:
        """Note that rows of a lane entered the queue."""
        if lane != self._lane:
            return
        for delay in self._delays[self._n_come : min(self._n_come + n_rows, self._n_answered)]:
            delay.observe(now_s - self._answered_s)
        self._n_come += n_rows

    def worth_waiting_s(self, lane: Hashable, n_waiting: int, now_s: float) -> float:
        """Seconds for which a free runner had better wait; 0 to leave at once with what waits, all of one lane."""
        if lane != self._lane:
            return 0.0
        seconds = self._batch_times.seconds
        alone_s = seconds(n_waiting)
        expected_s = self._expected_s(now_s, alone_s)
        n_expected = len(expected_s)
        best_s, best_wait_s = (alone_s + seconds(n_expected)) * (1 - self._least_saved), 0.0
        for n_more, wait_s in enumerate(expected_s[: self._max_rows - n_waiting], start=1):
            done_s = wait_s + seconds(n_waiting + n_more) + seconds(n_expected - n_more)
            if done_s < best_s:
                best_s, best_wait_s = done_s, wait_s
        return best_wait_s

    def _expected_s(self, now_s: float, within_s: float) -> list[float]:
        """In how many seconds each row is expected that comes within some; whoever is overdue is not expected."""
        since_s = now_s - self._answered_s
        expected_s: list[float] = []
        for delay in self._delays[self._n_come : self._n_answered]:
            wait_s = max(delay.bound_s - since_s, expected_s[-1] if expected_s else 0.0)
            if not 0 < wait_s <= within_s:
                break
            expected_s.append(wait_s)
        return expected_s
