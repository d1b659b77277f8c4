"""Calls in progress on the device's threads: busy time for the metrics, and detection of calls that hang."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final


class Activity:
    """Tracks the calls of several threads; a `Loop` of the watchdog, which ticks it.

    Args:
        stuck_after_s: longest time without progress before a call counts as stuck.
        clock: monotonic seconds.
    """

    name: Final = "device"

    def __init__(self, stuck_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        self._lock = threading.Lock()
        self._silent_s: dict[int, float] = {}  # by thread, while it is inside a call
        self._busy_s = 0.0
        self._busy_since_s = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        """The calling thread is inside a call until the block ends."""
        thread = threading.get_ident()
        with self._lock:
            if not self._silent_s:
                self._busy_since_s = self._clock()
            self._silent_s[thread] = 0.0
        try:
            yield
        finally:
            with self._lock:
                del self._silent_s[thread]
                if not self._silent_s:
                    self._busy_s += self._clock() - self._busy_since_s

    def report_progress(self) -> None:
        """Restart the calling thread's stuck timer; no effect outside a call."""
        if (thread := threading.get_ident()) in self._silent_s:
            self._silent_s[thread] = 0.0

    def tick(self, seconds: float) -> None:
        """Count seconds without progress for every call."""
        with self._lock:
            for thread in self._silent_s:
                self._silent_s[thread] += seconds

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one thread was inside a call, until now."""
        with self._lock:
            return self._busy_s + (self._clock() - self._busy_since_s if self._silent_s else 0.0)

    @property
    def is_busy(self) -> bool:
        """Whether a thread is inside a call."""
        return bool(self._silent_s)

    @property
    def is_stuck(self) -> bool:
        """Whether a call has made no progress for longer than `stuck_after_s`."""
        return max(self._silent_s.copy().values(), default=0.0) > self._stuck_after_s
