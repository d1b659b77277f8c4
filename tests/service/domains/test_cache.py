import asyncio

import pytest

from service.domains.cache import LoadingCache
from service.errors import OverloadedError

pytestmark = pytest.mark.anyio


class Loads:
    """Loads values, and keeps a list of them; held until the gate opens."""

    def __init__(self, *, is_held=False):
        self.values = []
        self.gate = asyncio.Event()
        if not is_held:
            self.gate.set()

    def __call__(self, value):
        async def load():
            self.values.append(value)
            await self.gate.wait()
            if isinstance(value, Exception):
                raise value
            return value

        return load


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def cache_of(max_values=4, max_waiting=4):
    return LoadingCache(max_values, max_waiting=max_waiting)


async def test_concurrent_callers_share_one_load():
    cache, loads = cache_of(), Loads(is_held=True)
    calls = [asyncio.ensure_future(cache.get("a", loads(1))) for _ in range(5)]
    await settle()
    loads.gate.set()
    assert await asyncio.gather(*calls) == [1] * 5
    assert loads.values == [1]


async def test_a_caller_that_is_cancelled_does_not_stop_the_others():
    cache, loads = cache_of(), Loads(is_held=True)
    first, second = (asyncio.ensure_future(cache.get("a", loads(1))) for _ in range(2))
    await settle()
    first.cancel()
    loads.gate.set()
    assert await second == 1


async def test_a_load_without_callers_finishes_and_a_retry_finds_its_value():
    cache, loads = cache_of(), Loads(is_held=True)
    call = asyncio.ensure_future(cache.get("a", loads(1)))
    await settle()
    call.cancel()
    loads.gate.set()
    await settle()
    assert await cache.get("a", loads(2)) == 1


async def test_a_load_that_failed_is_not_cached():
    cache, loads = cache_of(), Loads()
    with pytest.raises(ValueError, match="no"):
        await cache.get("a", loads(ValueError("no")))
    assert await cache.get("a", loads(2)) == 2


async def test_the_least_recently_used_value_is_evicted_first():
    cache, loads = cache_of(max_values=2), Loads()
    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, loads(key))
    assert loads.values == ["a", "b", "c", "b"]
    assert cache.keys == ["a", "b"]


async def test_a_value_can_be_put_found_and_removed():
    cache, loads = cache_of(max_values=2), Loads()
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.find("a") == 1
    cache.put("c", 3)
    assert (cache.find("a"), cache.find("b"), cache.find("c")) == (1, None, 3)
    cache.remove("a")
    cache.remove("never there")
    assert await cache.get("a", loads(4)) == 4


async def test_loads_run_one_at_a_time_and_only_a_few_may_wait():
    cache, loads = cache_of(max_waiting=1), Loads(is_held=True)
    calls = [asyncio.ensure_future(cache.get(key, loads(key))) for key in "ab"]
    await settle()
    assert loads.values == ["a"]
    with pytest.raises(OverloadedError) as refused:
        await cache.get("c", loads("c"))
    assert refused.value.retry_after_s > 0
    joined = asyncio.ensure_future(cache.get("b", loads("b")))
    loads.gate.set()
    assert await asyncio.gather(*calls, joined) == ["a", "b", "b"]
    assert await cache.get("c", loads("c")) == "c"


async def test_a_load_that_lost_its_callers_before_it_started_never_runs():
    cache, loads = cache_of(), Loads(is_held=True)
    first, second = (asyncio.ensure_future(cache.get(key, loads(key))) for key in "ab")
    await settle()
    second.cancel()
    await settle()
    loads.gate.set()
    assert await first == "a"
    await settle()
    assert loads.values == ["a"]
    assert await cache.get("b", loads("again")) == "again"
