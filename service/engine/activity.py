"""Calls in progress on the device's threads: busy time for the metrics, and a watchdog for calls that hang."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Activity:
    """Tracks the calls of several threads.

    Args:
        stuck_after_s: longest time without progress before a call counts as stuck.
        clock: monotonic seconds.
    """

    def __init__(self, stuck_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        self._lock = threading.Lock()
        self._progress_s: dict[int, float] = {}  # by thread, while it is inside a call
        self._busy_s = 0.0
        self._busy_since_s = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        """The calling thread is inside a call until the block ends."""
        thread = threading.get_ident()
        with self._lock:
            now_s = self._clock()
            if not self._progress_s:
                self._busy_since_s = now_s
            self._progress_s[thread] = now_s
        try:
            yield
        finally:
            with self._lock:
                del self._progress_s[thread]
                if not self._progress_s:
                    self._busy_s += self._clock() - self._busy_since_s

    def report_progress(self) -> None:
        """Restart the calling thread's stuck timer; no effect outside a call."""
        if (thread := threading.get_ident()) in self._progress_s:
            self._progress_s[thread] = self._clock()

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one thread was inside a call, until now."""
        with self._lock:
            return self._busy_s + (self._clock() - self._busy_since_s if self._progress_s else 0.0)

    @property
    def is_busy(self) -> bool:
        """Whether a thread is inside a call."""
        return bool(self._progress_s)

    @property
    def is_stuck(self) -> bool:
        """Whether a call has made no progress for longer than `stuck_after_s`."""
        return self._clock() - min(self._progress_s.copy().values(), default=math.inf) > self._stuck_after_s
