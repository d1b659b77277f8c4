"""An LRU cache of values that are slow to load, with single-flight loading and a bounded number of loads."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from service.errors import OverloadedError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LoadingCache(Generic[Key, Value]):
    """An LRU cache; failed loads are not cached.

    Loads run one at a time. A load without callers is cancelled if it has not started; otherwise it finishes, so that a
    retry finds its value.

    Args:
        max_values: size of the cache.
        max_waiting: maximum number of loads waiting for the running one.
        kind: the values, in error messages.
    """

    def __init__(self, max_values: int, *, max_waiting: int, kind: str = "versions or label sets") -> None:
        self._max_values = max_values
        self._max_waiting = max_waiting
        self._kind = kind
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._loads: dict[Key, asyncio.Task[Value]] = {}
        self._n_callers: Counter[Key] = Counter()
        self._running: Key | None = None
        self._one_at_a_time = asyncio.Lock()

    @property
    def keys(self) -> list[Key]:
        """Keys of the cached values, the least recently used one first."""
        return list(self._values)

    async def get(self, key: Key, load: Callable[[], Awaitable[Value]]) -> Value:
        """The cached value, or what `load` returns; concurrent callers share one load. Raises what `load` raises.

        Raises:
            OverloadedError: the value is not cached and too many loads are waiting.
        """
        if (value := self.find(key)) is not None:
            return value
        task = self._loads.get(key) or self._start(key, load)
        self._n_callers[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._loads.get(key) is task:
                self._n_callers[key] -= 1
                if not self._n_callers[key] and self._running != key:
                    task.cancel()

    def find(self, key: Key) -> Value | None:
        """The cached value, which counts as a use, or None."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: Key, value: Value) -> None:
        """Cache a value, evicting the least recently used one if the cache is full."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._max_values:
            self._values.popitem(last=False)

    def remove(self, key: Key) -> None:
        """Evict a value, if it is cached."""
        self._values.pop(key, None)

    def _start(self, key: Key, load: Callable[[], Awaitable[Value]]) -> asyncio.Task[Value]:
        if len(self._loads) > self._max_waiting:
            message = f"Server overloaded: {len(self._loads)} {self._kind} are waiting to be loaded."
            raise OverloadedError(f"{message} Retry later.", retry_after_s=1.0)
        task = self._loads[key] = asyncio.create_task(self._load(key, load))
        task.add_done_callback(lambda done: self._finish(key, done))
        return task

    async def _load(self, key: Key, load: Callable[[], Awaitable[Value]]) -> Value:
        async with self._one_at_a_time:
            self._running = key
            try:
                value = await load()
            finally:
                self._running = None
        self.put(key, value)
        return value

    def _finish(self, key: Key, task: asyncio.Task[Value]) -> None:
        del self._loads[key], self._n_callers[key]
        if not task.cancelled():
            task.exception()  # mark as retrieved, since all callers may have been cancelled
