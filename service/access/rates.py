"""Rate limits: requests and bytes per second of each key, failed keys per minute of each client address.

A token bucket refills at its rate and holds one second's worth (failed keys: one minute's). Each process counts for
itself: with web workers the limits apply to each worker. The libraries `limits` and `throttled-py` would reject every
body larger than one second's bytes; here it waits for a full bucket and leaves a debt.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache
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

        def bucket(_: str, __: str, rate: float, capacity: float) -> TokenBucket:
            return TokenBucket(rate, capacity, clock)

        # Buckets by kind and name; a changed rate makes a new one.
        self._key_bucket, self._address_bucket = lru_cache(MAX_BUCKETS)(bucket), lru_cache(MAX_BUCKETS)(bucket)

    def admit(self, key: Key, n_bytes: int) -> Callable[[int], None] | None:
        """Count a request whose body has `n_bytes`, 0 if unknown.

        Returns:
            Counts bytes of the body as they arrive; None without a limit for bytes.

        Raises:
            RateLimitedError: the key's requests or bytes per second are used up.
        """
        request_rate = key.requests_per_s or self._settings.key_requests_per_s
        byte_rate = key.bytes_per_s or self._settings.key_bytes_per_s
        requests = self._key_bucket("requests", key.id, request_rate, max(1, request_rate)) if request_rate else None
        volume = self._key_bucket("bytes", key.id, byte_rate, byte_rate) if byte_rate else None
        wait_s = max(requests.wait_s(1) if requests else 0.0, volume.wait_s(n_bytes) if volume else 0.0)
        if wait_s > 0:
            rates = ((request_rate, "requests"), (byte_rate, "bytes"))
            limits = " and ".join(f"{rate:g} {unit}" for rate, unit in rates if rate)
            message = f"API key {key.id} is limited to {limits} per second. Retry later."
            raise RateLimitedError(message, retry_after_s=wait_s)
        if requests:
            requests.spend(1)
        return volume.spend if volume else None

    def count_failure(self, address: str) -> None:
        """Count a wrong key. Valid keys from the same address, such as that of a proxy, are not limited by it.

        Raises:
            RateLimitedError: the address has sent too many wrong keys in the last minute.
        """
        per_minute = self._settings.max_failed_keys_per_minute
        bucket = self._address_bucket("failures", _network(address), per_minute / 60, per_minute)
        if (wait_s := bucket.wait_s(1)) > 0:
            message = (
                f"More than {per_minute} wrong API keys in a minute from this address. Correct the key, then retry."
            )
            raise RateLimitedError(message, retry_after_s=wait_s)
        bucket.spend(1)


def _network(address: str) -> str:
    """An IPv6 address's /64 network, which usually belongs to one client; any other address itself."""
    try:
        return str(ipaddress.IPv6Network(f"{address}/64", strict=False))
    except ValueError:
        return address
