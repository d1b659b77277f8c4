"""The device's health: calls in progress and calls that hang, faults, a smaller batch limit when memory runs out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final

from prompted_clip.device_errors import is_out_of_memory

N_ERRORS: Final = 3
WITHIN_S: Final = 60.0
REDUCED_FOR_S: Final = 300.0


class Fault(Enum):
    """The kinds of device fault."""

    LOST = auto()
    OUT_OF_MEMORY = auto()
    NONE = auto()


def fault_of(error: Exception, synchronize: Callable[[], object]) -> Fault:
    """Classify an exception of a forward.

    After some CUDA errors every later call fails until the process restarts. Their list grows with CUDA, so any runtime
    error is followed by a call that shows whether the device still works.

    Args:
        error: the exception.
        synchronize: waits for the device; raises RuntimeError if it is lost.
    """
    if isinstance(error, RuntimeError):
        try:
            synchronize()
        except RuntimeError:
            return Fault.LOST
    return Fault.OUT_OF_MEMORY if is_out_of_memory(error) else Fault.NONE


class BatchLimit:
    """Three batches out of memory within 60 s halve the batch size for five minutes; three more halve it again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._errors_s: list[float] = []
        self._max_rows = 0
        self._until_s = 0.0

    @property
    def max_rows(self) -> int:
        """The reduced batch size; 0 without a reduction."""
        return self._max_rows if self._clock() < self._until_s else 0

    def out_of_memory(self, n_rows: int) -> None:
        """Record that a batch of `n_rows` ran out of memory."""
        now_s = self._clock()
        self._errors_s = [*(error_s for error_s in self._errors_s if now_s - error_s < WITHIN_S), now_s]
        if len(self._errors_s) >= N_ERRORS:
            self._max_rows, self._until_s, self._errors_s = max(1, n_rows // 2), now_s + REDUCED_FOR_S, []


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
