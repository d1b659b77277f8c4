"""Detects loops that make no progress: the event loop, the device's threads, background tasks.

A separate thread counts seconds, one per iteration. None are counted while the process is stopped or the machine is
suspended, so that a process that resumes is not mistaken for one that hangs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

logger = logging.getLogger(__name__)

TURN_S: Final = 1.0
GRACE_S: Final = 1.0
"""Time in which open requests fail with 503 before the process exits."""
RESTART_S: Final = 1.0
STATUS: Final = 70
"""Exit status of a process that hangs or whose device is lost."""


class Loop(Protocol):
    """Something that makes progress, or is stuck."""

    @property
    def name(self) -> str:
        """For log lines and `/readyz`."""

    def tick(self, seconds: float) -> None:
        """Count seconds without progress."""

    @property
    def is_stuck(self) -> bool:
        """Whether there was no progress for too long."""


class Heartbeat:
    """The progress of one loop, which calls `beat` in every iteration; stuck `stuck_after_s` after the last call."""

    def __init__(self, name: str, stuck_after_s: float) -> None:
        self.name = name
        self.silent_s = 0.0
        self._stuck_after_s = stuck_after_s

    def beat(self) -> None:
        """Report progress."""
        self.silent_s = 0.0

    def tick(self, seconds: float) -> None:
        """See `Loop.tick`."""
        self.silent_s += seconds

    @property
    def is_stuck(self) -> bool:
        """See `Loop.is_stuck`."""
        return self.silent_s > self._stuck_after_s


class Watchdog:
    """Watches loops; logs when one is stuck, with the stack of every thread, and when it resumes."""

    def __init__(self) -> None:
        self._loops: list[Loop] = []
        self._stuck: set[str] = set()

    @property
    def stuck(self) -> list[str]:
        """Names of the loops that are stuck now."""
        return sorted(loop.name for loop in self._loops if loop.is_stuck)

    @contextmanager
    def watching(self, *loops: Loop) -> Iterator[None]:
        """Watch loops until the block ends."""
        self._loops = [*self._loops, *loops]
        try:
            yield
        finally:
            self._loops = [loop for loop in self._loops if loop not in loops]

    def tick(self, seconds: float) -> None:
        """Count seconds for all loops."""
        for loop in self._loops:
            loop.tick(seconds)
        stuck = set(self.stuck)
        for name in stuck - self._stuck:
            logger.error("loop.stuck", extra={"loop": name, "stacks": stacks()})
        for name in self._stuck - stuck:
            logger.info("loop.resumed", extra={"loop": name})
        self._stuck = stuck

    def start(self, fatal: Callable[[], str | None], end: Callable[[int], object] = os._exit) -> None:
        """Watch on a thread until the process ends; end it with status 70 a second after `fatal` returns a reason."""

        def watch() -> None:
            while not (reason := fatal()):
                time.sleep(TURN_S)
                self.tick(TURN_S)
            logger.critical("server.failed", extra={"reason": reason, "status": STATUS})
            time.sleep(GRACE_S)
            end(STATUS)  # an orderly shutdown can hang in the driver; a supervisor restarts the process

        threading.Thread(target=watch, name="watchdog", daemon=True).start()


async def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run background work to its end; restart it when it fails."""
    while True:
        try:
            return await work()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.warning("task.restarted", extra={"task": name, "reason": "cancelled"})
        except Exception:
            logger.exception("task.restarted", extra={"task": name})
        await asyncio.sleep(RESTART_S)


def stacks() -> dict[str, str]:
    """The innermost frames of every thread, by its name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): "".join(traceback.format_stack(frame, limit=8))
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    }
