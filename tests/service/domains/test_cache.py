import asyncio

import pytest

from service.domains.cache import Cache
from service.errors import OverloadedError

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
    cache, made, gate = Cache(4, max_waiting=4), [], asyncio.Event()
    calls = [asyncio.ensure_future(cache.get("a", maker(made, 1, gate))) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == [1] * 5
    assert made == [1]


async def test_a_caller_that_gives_up_does_not_stop_the_others():
    cache, made, gate = Cache(4, max_waiting=4), [], asyncio.Event()
    first, second = (asyncio.ensure_future(cache.get("a", maker(made, 1, gate))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await second == 1


async def test_what_could_not_be_made_is_tried_again():
    cache, made = Cache(4, max_waiting=4), []
    with pytest.raises(ValueError, match="no"):
        await cache.get("a", maker(made, ValueError("no")))
    assert await cache.get("a", maker(made, 2)) == 2


async def test_the_least_recently_used_value_is_forgotten_first():
    cache, made = Cache(2, max_waiting=4), []
    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, maker(made, key))
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2
    cache.forget(lambda key: key == "a")
    assert len(cache) == 1


async def test_a_value_that_is_there_is_kept_found_and_forgotten_like_one_that_was_made():
    cache, made = Cache(2, max_waiting=4), []
    cache.keep("a", 1)
    assert cache.find("a") == 1
    assert await cache.get("a", maker(made, 2)) == 1
    await cache.get("b", maker(made, 3))
    assert cache.find("a") == 1
    cache.keep("c", 4)
    assert (cache.find("a"), cache.find("b"), cache.find("c")) == (1, None, 4)
    assert cache.keys == ["a", "c"]
    assert made == [3]


async def test_what_is_on_its_way_or_failed_is_not_found():
    cache, gate = Cache(2, max_waiting=4), asyncio.Event()
    calls = [
        asyncio.ensure_future(cache.get(key, maker([], value, gate)))
        for key, value in (("a", 1), ("bad", ValueError("no")))
    ]
    await settle()
    assert cache.find("a") is None
    gate.set()
    await asyncio.wait(calls)
    assert (cache.find("a"), cache.find("bad")) == (1, None)
    assert isinstance(calls[1].exception(), ValueError)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_is_made_at_a_time_and_only_so_many_wait():
    cache, made, gate = Cache(4, max_waiting=2), [], asyncio.Event()
    calls = []
    for key in "abc":
        calls.append(asyncio.ensure_future(cache.get(key, maker(made, key, gate))))
        await settle()
    assert (made, cache.n_waiting) == (["a"], 2)
    with pytest.raises(OverloadedError, match="2 label sets or versions") as refused:
        await cache.get("d", maker(made, "d", gate))
    assert refused.value.retry_after_s >= 0
    joined = asyncio.ensure_future(cache.get("c", maker(made, "c again", gate)))
    gate.set()
    assert await asyncio.gather(*calls, joined) == ["a", "b", "c", "c"]
    assert await cache.get("d", maker(made, "d")) == "d"
    assert made == ["a", "b", "c", "d"]


async def test_what_nobody_waits_for_any_more_gets_no_turn_and_makes_room():
    cache, made, gate = Cache(4, max_waiting=1), [], asyncio.Event()
    running, waiting = (asyncio.ensure_future(cache.get(key, maker(made, key, gate))) for key in "ab")
    await settle()
    waiting.cancel()
    await settle()
    assert (cache.n_waiting, len(cache)) == (0, 1)
    other = asyncio.ensure_future(cache.get("b", maker(made, "b again", gate)))
    gate.set()
    assert await asyncio.gather(running, other) == ["a", "b again"]
    assert made == ["a", "b again"]


async def test_what_has_begun_is_finished_and_kept_though_its_caller_gave_up():
    cache, made, gate = Cache(4, max_waiting=1), [], asyncio.Event()
    impatient = asyncio.ensure_future(cache.get("a", maker(made, 1, gate)))
    await settle()
    impatient.cancel()
    await settle()
    gate.set()
    await settle()
    assert await cache.get("a", maker(made, 2)) == 1
    assert made == [1]


async def test_a_crowd_of_keys_pushes_nothing_out_that_somebody_waits_for():
    cache, made, gate = Cache(1, max_waiting=3), [], asyncio.Event()
    calls = []
    for key in "aba":
        calls.append(asyncio.ensure_future(cache.get(key, maker(made, key, gate))))
        await settle()
    gate.set()
    assert await asyncio.gather(*calls) == ["a", "b", "a"]
    assert made == ["a", "b"]
    assert len(cache) == 1
