import asyncio

import pytest

from service.cache import Cache

pytestmark = pytest.mark.anyio


def maker(made, value, gate=None):
    async def make():
        made.append(value)
        if gate is not None:
            await gate.wait()
        if isinstance(value, Exception):
            raise value
        return value

    return make


async def test_callers_that_ask_at_the_same_time_share_one_making():
    cache, made, gate = Cache(4), [], asyncio.Event()
    calls = [asyncio.ensure_future(cache.get("a", maker(made, 1, gate))) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == [1] * 5
    assert made == [1]


async def test_a_caller_that_gives_up_does_not_stop_the_others():
    cache, made, gate = Cache(4), [], asyncio.Event()
    first, second = (asyncio.ensure_future(cache.get("a", maker(made, 1, gate))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await second == 1


async def test_what_could_not_be_made_is_tried_again():
    cache, made = Cache(4), []
    with pytest.raises(ValueError, match="no"):
        await cache.get("a", maker(made, ValueError("no")))
    assert await cache.get("a", maker(made, 2)) == 2


async def test_the_least_recently_used_value_is_forgotten_first():
    cache, made = Cache(2), []
    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, maker(made, key))
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2
    cache.forget(lambda key: key == "a")
    assert len(cache) == 1
