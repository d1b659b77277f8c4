"""A bounded memory of things that are slow to make: made once per key, however many ask at the same time.

One is made at a time, and few may wait for their turn. A making that nobody waits for any more never gets its turn; one
that has begun is finished and kept, so that whoever gave up too early finds it when asking again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import OverloadedError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(eq=False)
class Entry(Generic[Value]):
    """A value that is there or on its way, and how many wait for it."""

    task: asyncio.Future[Value] = field(init=False)
    n_callers: int = 0
    has_begun: bool = False


class Cache(Generic[Key, Value]):
    """Keeps the most recently used values; a value that could not be made is not remembered.

    Args:
        max_entries: most values kept. A value in use elsewhere stays alive there after it is forgotten here.
        max_waiting: most makings that may wait for their turn.
    """

    def __init__(self, max_entries: int, *, max_waiting: int) -> None:
        self._max_entries = max_entries
        self._max_waiting = max_waiting
        self._entries: OrderedDict[Key, Entry[Value]] = OrderedDict()
        self._turn = asyncio.Lock()
        self._s_per_making = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> list[Key]:
        """Of every value that is there or on its way, the least recently used one first."""
        return list(self._entries)

    @property
    def n_waiting(self) -> int:
        """Makings that wait for their turn."""
        return sum(not entry.has_begun for entry in self._entries.values())

    async def get(self, key: Key, make: Callable[[], Awaitable[Value]]) -> Value:
        """The value of `key`, from memory or from `make`.

        A caller that gives up leaves the making to the others who wait for it. Raises what `make` raises.

        Raises:
            OverloadedError: it is not there, and too many others wait to be made.
        """
        entry = self._entries.get(key) or self._begin(key, make)
        self._entries.move_to_end(key)
        entry.n_callers += 1
        try:
            return await asyncio.shield(entry.task)
        finally:
            entry.n_callers -= 1
            if not entry.n_callers and not entry.has_begun:
                self._remove(key, entry)
                entry.task.cancel()

    def keep(self, key: Key, value: Value) -> None:
        """Remember a value that is there already."""
        entry = self._entries[key] = Entry[Value](has_begun=True)
        entry.task = asyncio.get_running_loop().create_future()
        entry.task.set_result(value)
        self._entries.move_to_end(key)
        self._drop_oldest()

    def find(self, key: Key) -> Value | None:
        """The value of `key` if it is there; it counts as used."""
        entry = self._entries.get(key)
        if entry is None or not entry.task.done() or entry.task.cancelled() or entry.task.exception() is not None:
            return None
        self._entries.move_to_end(key)
        return entry.task.result()

    def forget(self, is_stale: Callable[[Key], bool]) -> None:
        """Drop every key that `is_stale` says so of."""
        for key in [key for key in self._entries if is_stale(key)]:
            del self._entries[key]

    def _begin(self, key: Key, make: Callable[[], Awaitable[Value]]) -> Entry[Value]:
        if self.n_waiting >= self._max_waiting:
            raise OverloadedError(
                f"{self.n_waiting} label sets or versions already wait to be made ready; try again later.",
                retry_after_s=self.n_waiting * self._s_per_making,
            )
        entry = self._entries[key] = Entry[Value]()
        entry.task = asyncio.ensure_future(self._make_in_turn(entry, make))
        entry.task.add_done_callback(lambda done: self._settle(key, entry, done))
        return entry

    async def _make_in_turn(self, entry: Entry[Value], make: Callable[[], Awaitable[Value]]) -> Value:
        async with self._turn:
            entry.has_begun = True
            started_s = time.monotonic()
            try:
                return await make()
            finally:
                self._s_per_making = time.monotonic() - started_s

    def _settle(self, key: Key, entry: Entry[Value], done: asyncio.Future[Value]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._remove(key, entry)
        self._drop_oldest()

    def _remove(self, key: Key, entry: Entry[Value]) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]

    def _drop_oldest(self) -> None:
        """Forget what was not used for longest; what is on its way stays, as somebody waits for it."""
        settled = [key for key, entry in self._entries.items() if entry.task.done()]
        for key in settled[: max(0, len(settled) - self._max_entries)]:
            del self._entries[key]
