"""A budget, such as bytes or pixels in memory, shared fairly between tenants.

A tenant may hold twice as much as would remain free (dynamic thresholds, Choudhury and Hahne 1998): two thirds of the
limit alone, two fifths of it beside another busy tenant, and so on. Something always remains for a new tenant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from service.errors import CapacityError, OverloadedError


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
        """Whether a tenant may hold `amount` more, of a lower limit if one is given."""
        n_free = (self._limit if limit is None else limit) - self.n_held - amount
        return n_free >= 0 and (not self.n_held or self._held[tenant] + amount <= 2 * n_free)

    def check(self, tenant: Hashable, amount: int, *, limit: int | None = None) -> None:
        """Check that a tenant `has_room`; while nobody holds anything, up to the limit.

        Raises:
            OverloadedError: it may not; a CapacityError unless the budget has another `error`.
        """
        if not self.has_room(tenant, amount, limit=limit):
            used = f"{self.n_held} of {self._limit} {self._unit} are in use, {self._held[tenant]} by this client"
            raise self._error(f"Server overloaded: {used} or domain. Retry later.", retry_after_s=1.0)

    def reserve(self, tenant: Hashable, amount: int, *, limit: int | None = None) -> None:
        """Add `amount` to what a tenant holds.

        Raises:
            OverloadedError: see `check`; nothing is added.
        """
        self.check(tenant, amount, limit=limit)
        self.n_held += amount
        self._held[tenant] += amount

    def release(self, tenant: Hashable, amount: int) -> None:
        """Give back `amount` that a tenant has reserved."""
        self.n_held -= amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]

    @contextmanager
    def holding(self, tenant: Hashable, amount: int) -> Iterator[None]:
        """Reserve `amount` for the duration of a block.

        Raises:
            OverloadedError: see `check`; the block does not run.
        """
        self.reserve(tenant, amount)
        try:
            yield
        finally:
            self.release(tenant, amount)
