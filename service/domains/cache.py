"""An LRU cache of values that are slow to load, with single-flight loading and a bounded number of loads."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from service.errors import OverloadedError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LoadingCache(Generic[Key, Value]):
    """Keeps the most recently used values; a load that failed is not cached.

    Loads run one at a time. A load whose callers were cancelled still finishes, so that a retry finds its value.

    Args:
        max_values: size of the cache. A value in use elsewhere stays alive there after its eviction.
        max_loads: most loads in progress or waiting.
    """

    def __init__(self, max_values: int, *, max_loads: int) -> None:
        self._max_values = max_values
        self._max_loads = max_loads
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._loads: dict[Key, asyncio.Task[Value]] = {}
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
        task = self._loads.get(key)
        if task is None:
            if len(self._loads) >= self._max_loads:
                message = f"Server overloaded: {len(self._loads)} versions or label sets are waiting to be loaded."
                raise OverloadedError(f"{message} Retry later.", retry_after_s=1.0)
            task = self._loads[key] = asyncio.create_task(self._load(key, load))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may have no caller left
        return await asyncio.shield(task)

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

    async def _load(self, key: Key, load: Callable[[], Awaitable[Value]]) -> Value:
        try:
            async with self._one_at_a_time:
                value = await load()
            self.put(key, value)
            return value
        finally:
            del self._loads[key]
