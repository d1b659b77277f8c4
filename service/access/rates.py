"""Rate limits: requests and bytes per second of each key, failed keys per minute of each client address.

A token bucket refills at its rate and holds one second's worth (failed keys: one minute's). Each process counts for
itself: with web workers the limits apply to each worker.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from service.access.key_file import Key
from service.errors import RateLimitedError
from service.settings import Settings

MAX_BUCKETS: Final = 4096
"""The least recently used bucket is dropped beyond this, which bounds memory however many addresses there are."""


class TokenBucket:
    """Allows `rate` units per second, and bursts of up to `capacity` units."""

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._capacity = capacity
        self._clock = clock
        self._level = capacity
        self._filled_s = clock()

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` is available, 0 if it is; an amount above the capacity needs a full bucket."""
        now_s = self._clock()
        self._level = min(self._capacity, self._level + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def spend(self, amount: float) -> None:
        """Remove `amount`; the bucket may go into debt, which later requests wait for."""
        self._level -= amount


class RateLimits:
    """The rate limits of one process."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str, float], TokenBucket] = OrderedDict()

    def admit(self, key: Key, n_bytes: int) -> Callable[[int], None] | None:
        """Count a request whose body has `n_bytes`, 0 if unknown.

        Returns:
            Counts bytes of the body as they arrive; None without a limit for bytes.

        Raises:
            RateLimitedError: the key's requests or bytes per second are used up.
        """
        requests = self._bucket("requests", key.id, key.requests_per_s or self._settings.key_requests_per_s)
        volume = self._bucket("bytes", key.id, key.bytes_per_s or self._settings.key_bytes_per_s)
        wait_s = max(requests.wait_s(1) if requests else 0.0, volume.wait_s(n_bytes) if volume else 0.0)
        if wait_s > 0:
            raise RateLimitedError(f"The rate limit of key {key.id} is reached.", retry_after_s=wait_s)
        if requests:
            requests.spend(1)
        return volume.spend if volume else None

    def count_failure(self, address: str) -> None:
        """Count a wrong key. Valid keys from the same address, such as that of a proxy, are not limited by it.

        Raises:
            RateLimitedError: the address has sent too many wrong keys in the last minute.
        """
        per_minute = self._settings.max_failed_keys_per_minute
        bucket = self._bucket("failures", _network(address), per_minute / 60, capacity=per_minute)
        if bucket and (wait_s := bucket.wait_s(1)) > 0:
            raise RateLimitedError("Too many wrong API keys from this address.", retry_after_s=wait_s)
        if bucket:
            bucket.spend(1)

    def _bucket(self, kind: str, name: str, rate: float | None, capacity: float | None = None) -> TokenBucket | None:
        """The bucket of a key or address, a new one if its rate has changed; None without a rate."""
        if not rate:
            return None
        bucket = self._buckets.get((kind, name, rate))
        if bucket is None:
            bucket = self._buckets[kind, name, rate] = TokenBucket(rate, capacity or max(1.0, rate), self._clock)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end((kind, name, rate))
        return bucket


def _network(address: str) -> str:
    """An IPv6 address's /64 network, which usually belongs to one client; any other address itself."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
