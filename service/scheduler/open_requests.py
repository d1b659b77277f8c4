"""Bounds the requests that are being worked on by what can be answered in time, and shares them between domains.

With a small model HTTP is the bottleneck, and requests accumulate before the queue, whose prediction does not see them.
At three times the capacity every answer would be late.
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

    The limit falls to what is answered within half of a request's timeout, but not below `min_open`, which a batch
    needs. The rate is measured while at least that many are open.
    """

    def __init__(self, max_open: int, min_open: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_open, self._min_open, self._clock = max_open, min(min_open, max_open), clock
        self._budget = Budget(_total(max_open), "requests")
        self._since_s = self._interval_s = 0.0  # since the last answer, or since enough were open; 0: not measured

    def limit(self, timeout_s: float) -> int:
        """Most open requests of one domain alone, if the next one has this timeout."""
        if not self._interval_s:
            return self._max_open
        return max(self._min_open, min(self._max_open, int(WAIT_SHARE * timeout_s / self._interval_s)))

    def has_room(self, domain: str, timeout_s: float) -> bool:
        """Whether a request with this timeout may be opened."""
        return self._budget.has_room(domain, 1, limit=_total(self.limit(timeout_s)))

    def check(self, domain: str, timeout_s: float) -> None:
        """Check that a request may be opened.

        Raises:
            OverloadedError: too many are open.
        """
        if not self.has_room(domain, timeout_s):
            raise OverloadedError(
                f"Server overloaded: {self._budget.n_held} requests are open. Retry later.", retry_after_s=1.0
            )

    def open(self, domain: str, timeout_s: float) -> None:
        """Count a request as open.

        Raises:
            OverloadedError: too many are open.
        """
        self.check(domain, timeout_s)
        self._budget.reserve(domain, 1)
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


def _total(n_alone: int) -> int:
    """The budget of which one tenant alone gets `n_alone`."""
    return (3 * n_alone + 1) // 2
