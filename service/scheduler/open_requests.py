"""Limits open requests to the number that can be answered in time, and shares them between domains.

With a small model HTTP is the bottleneck, and requests accumulate before the queue, whose prediction does not see them.
Without a limit, most of them would miss their deadlines under overload.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from service.errors import OverloadedError
from service.scheduler.budget import Budget

SMOOTHING: Final = 0.05  # weight of the newest interval in the moving average
WAIT_SHARE: Final = 0.5  # of a request's timeout; the rest is for answers that take longer than the average


class OpenRequests:
    """Counts open requests per domain: at most `max_open` of one domain alone, 1.5 times as many in total.

    The limit falls to the number answered within half of a request's timeout, but not below `min_open`, which a
    batch needs. The rate is measured while at least that many are open.
    """

    def __init__(self, max_open: int, min_open: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_open, self._min_open, self._clock = max_open, min(min_open, max_open), clock
        self._budget = Budget((3 * max_open + 1) // 2, "places for requests", OverloadedError)
        self._since_s = self._interval_s = 0.0  # since the last answer, or since enough were open; 0: not measured

    def has_room(self, domain: str, timeout_s: float, n_more: int = 0) -> bool:
        """Whether a request with this timeout, and `n_more` before it, may be opened."""
        return self._budget.has_room(domain, 1 + n_more, limit=self._limit(timeout_s))

    def check(self, domain: str, timeout_s: float) -> None:
        """Check that a request may be opened.

        Raises:
            OverloadedError: too many are open.
        """
        self._budget.check(domain, 1, limit=self._limit(timeout_s))

    def open(self, domain: str, timeout_s: float) -> None:
        """Count a request as open.

        Raises:
            OverloadedError: too many are open.
        """
        self._budget.reserve(domain, 1, limit=self._limit(timeout_s))
        if self._budget.n_held == self._min_open:
            self._since_s = self._clock()

    def close(self, domain: str, *, is_answered: bool) -> None:
        """Count a request as closed; only answered ones show the rate."""
        if is_answered and self._budget.n_held >= self._min_open:
            now_s = self._clock()
            interval_s, self._since_s = now_s - self._since_s, now_s
            known_s = self._interval_s or interval_s
            self._interval_s = known_s + SMOOTHING * (interval_s - known_s)
        self._budget.release(domain, 1)

    def _limit(self, timeout_s: float) -> int:
        """Most requests of all domains; one domain alone gets two thirds."""
        n_alone = self._max_open
        if self._interval_s:
            n_alone = max(self._min_open, min(n_alone, int(WAIT_SHARE * timeout_s / self._interval_s)))
        return (3 * n_alone + 1) // 2
