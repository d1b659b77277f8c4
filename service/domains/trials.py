"""Which contents have answered in this process: one that is new has to answer one row before it goes on.

At start, where a thousand may have to, there is an end to it: what the store says is live is believed after a while and
tried out later. Knows nothing of domains, versions, the store or the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prompted_clip.stack import PromptStack

MAX_PASSED: Final = 4096
"""Digests that are remembered; one that is forgotten is tried out once more."""


class Trials:
    """Tries out contents, each once.

    Args:
        try_out: runs one row through a stack, raising if it cannot answer.
    """

    def __init__(self, try_out: Callable[[PromptStack], Awaitable[None]]) -> None:
        self._try_out = try_out
        self._passed: set[str] = set()
        self._over_s = math.inf

    def has_passed(self, digest: str) -> bool:
        """Whether a content has answered: the same content does so again."""
        return digest in self._passed

    async def hold(self, digest: str, stack: PromptStack) -> None:
        """Try a content out, unless it has passed or the time for it is over.

        Raises:
            Exception: whatever `try_out` raises; such a content is tried out again when it comes back.
        """
        if self.has_passed(digest) or time.monotonic() >= self._over_s:
            return
        await self._try_out(stack)
        if len(self._passed) == MAX_PASSED:
            self._passed.clear()
        self._passed.add(digest)

    @contextmanager
    def for_at_most(self, seconds: float) -> Iterator[None]:
        """Inside the block, believe contents without a trial once so many seconds are over."""
        self._over_s = time.monotonic() + seconds
        try:
            yield
        finally:
            self._over_s = math.inf
