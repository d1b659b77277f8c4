"""Budgets shared fairly between tenants: bytes in memory, places for images, open requests.

A tenant may hold twice as much as would remain free (dynamic thresholds, Choudhury and Hahne 1998): two thirds of the
limit alone, two fifths of it beside another busy tenant, and so on. Something always remains for a new tenant.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from service.errors import CapacityError, OverloadedError

SMOOTHING: Final = 0.05  # weight of the newest interval in the moving average
WAIT_SHARE: Final = 0.5  # of a request's timeout; the rest is for answers that take longer than the average


class Budget:
    """At most `limit` units, held by tenants from `reserve` to `release`.

    Attributes:
        n_held: units that all tenants hold together.
    """

    def __init__(self, limit: int, unit: str, error: type[OverloadedError] = CapacityError) -> None:
        self._limit, self._unit, self._error = limit, unit, error
        self._held: Counter[Hashable] = Counter()
        self.n_held = 0

    def has_room(self, tenant: Hashable, amount: int, *, limit: int | None = None) -> bool:
        """Whether a tenant may hold `amount` more, within a lower `limit` if given; all of it while nothing is held."""
        n_free = (self._limit if limit is None else limit) - self.n_held - amount
        return n_free >= 0 and (not self.n_held or self._held[tenant] + amount <= 2 * n_free)

    def check(self, tenant: Hashable, amount: int, *, limit: int | None = None) -> None:
        """Check that a tenant `has_room`.

        Raises:
            OverloadedError: it has none; a CapacityError unless the budget has another `error`.
        """
        if not self.has_room(tenant, amount, limit=limit):
            raise self._full(tenant)

    def reserve(self, tenant: Hashable, amount: int, *, limit: int | None = None) -> None:
        """Reserve `amount` for a tenant.

        Raises:
            OverloadedError: see `check`; nothing is reserved.
        """
        if not self.has_room(tenant, amount, limit=limit):
            raise self._full(tenant)
        self.n_held += amount
        self._held[tenant] += amount

    def release(self, tenant: Hashable, amount: int) -> None:
        """Give back `amount` that a tenant has reserved."""
        self.n_held -= amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]

    @contextmanager
    def holding(self, tenants: Iterable[Hashable]) -> Iterator[None]:
        """Reserve a unit of each tenant in the list for the duration of a block, all or none.

        Raises:
            OverloadedError: see `check`; the block does not run.
        """
        with ExitStack() as held:
            for tenant, amount in Counter(tenants).items():
                self.reserve(tenant, amount)
                held.callback(self.release, tenant, amount)
            yield

    def _full(self, tenant: Hashable) -> OverloadedError:
        used = f"{self.n_held} of {self._limit} {self._unit} are in use, {self._held[tenant]} by this client"
        return self._error(f"Server overloaded: {used} or domain. Retry later.", retry_after_s=1.0)


class OpenRequests:
    """Counts open requests per domain: at most `max_open` of one domain alone, 1.5 times as many in total.

    With a small model HTTP is the bottleneck, and requests accumulate before the queue, whose prediction does not see
    them. Without a limit, most of them would miss their deadlines under overload.

    The limit falls to the number answered within half of a request's timeout, but not below `min_open`, which a
    batch needs. The rate is measured from the moment at which that many are open until at most half of them are: with a
    limit of one batch, the first answer of each batch alone would show the time of a batch as that of one answer.
    """

    def __init__(self, max_open: int, min_open: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_open, self._min_open, self._clock = max_open, min(min_open, max_open), clock
        self._budget = Budget((3 * max_open + 1) // 2, "places for requests", OverloadedError)
        self._since_s = self._interval_s = 0.0  # since the last answer, or since enough were open; 0: not measured
        self._is_measured = False

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
        if not self._is_measured and self._budget.n_held >= self._min_open:
            self._is_measured, self._since_s = True, self._clock()

    def close(self, domain: str, *, is_answered: bool) -> None:
        """Count a request as closed; only answered ones show the rate."""
        if is_answered and self._is_measured:
            now_s = self._clock()
            interval_s, self._since_s = now_s - self._since_s, now_s
            known_s = self._interval_s or interval_s
            self._interval_s = known_s + SMOOTHING * (interval_s - known_s)
        self._budget.release(domain, 1)
        self._is_measured = self._is_measured and self._budget.n_held > self._min_open // 2

    def _limit(self, timeout_s: float) -> int:
        """Most requests of all domains; one domain alone gets two thirds."""
        n_alone = self._max_open
        if self._interval_s:
            n_alone = max(self._min_open, min(n_alone, int(WAIT_SHARE * timeout_s / self._interval_s)))
        return (3 * n_alone + 1) // 2
