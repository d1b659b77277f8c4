"""How long at least one of several threads has been inside something."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType


class BusyTime(AbstractContextManager["BusyTime"]):
    """Entered by any number of threads at once; time in which several are inside counts once.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._n_inside = 0
        self._since_s = 0.0
        self._before_s = 0.0

    @property
    def seconds(self) -> float:
        """In all, up to now."""
        with self._lock:
            return self._before_s + (self._clock() - self._since_s if self._n_inside else 0.0)

    def __enter__(self) -> "BusyTime":
        """One more is inside."""
        with self._lock:
            if not self._n_inside:
                self._since_s = self._clock()
            self._n_inside += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """One fewer."""
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside:
                self._before_s += self._clock() - self._since_s
