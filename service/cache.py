"""A bounded memory of things that are slow to make: made once per key, however many ask at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Keeps the most recently used values; a value that could not be made is not remembered.

    Args:
        max_entries: most values kept. A value in use elsewhere stays alive there after it is forgotten here.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[Key, asyncio.Future[Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: Key, make: Callable[[], Awaitable[Value]]) -> Value:
        """The value of `key`, from memory or from `make`.

        A caller that gives up leaves the making to the others who wait for it. Raises what `make` raises.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = asyncio.ensure_future(make())
            self._entries[key] = entry
            entry.add_done_callback(lambda done: self._settle(key, done))
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        return await asyncio.shield(entry)

    def forget(self, is_stale: Callable[[Key], bool]) -> None:
        """Drop every key that `is_stale` says so of."""
        for key in [key for key in self._entries if is_stale(key)]:
            del self._entries[key]

    def _settle(self, key: Key, done: asyncio.Future[Value]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._entries.get(key) is done:
            del self._entries[key]
