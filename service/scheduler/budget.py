"""A budget, such as bytes or pixels in memory, shared fairly between tenants.

A tenant may hold twice as much as would remain free (dynamic thresholds, Choudhury and Hahne 1998): two thirds of the
limit alone, two fifths of it beside another busy tenant, and so on. Something always remains for a new tenant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

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
        """Whether a tenant may hold `amount` more: up to the limit, or a lower one, if no tenant holds anything."""
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
