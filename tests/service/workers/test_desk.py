"""Both ends of a channel on one event loop: what happens to calls that are given up, broken or orphaned."""

import asyncio
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from prompt_store.errors import DomainNotFoundError
from service.answering import Answered, Wanted
from service.errors import DeviceLostError, OverloadedError
from service.http.auth import KeyRing
from service.runtime import build
from service.settings import Settings
from service.workers.remote_answerer import RemoteAnswerer
from service.workers.wire import Named, Pin, Score, Scored, Unpin
from tests.service.fakes import colour_bundle
from tests.service.web_form import joined

pytestmark = pytest.mark.anyio

RED = np.zeros((3, 16, 16), dtype=np.uint8)
RED[0] = 255


@asynccontextmanager
async def running(model, store, **changes):
    runtime = build(Settings(store_poll_s=0, calibrate_s=0, **changes), model, store, KeyRing())
    await runtime.start()
    yield runtime
    await runtime.stop()


@pytest.fixture
async def runtime(model, store):
    async with running(model, store) as runtime:
        yield runtime


def nobody(_):
    raise AssertionError("nothing is handed on here")


def wanted(seconds=10):
    return Wanted(3, time.monotonic() + seconds)


async def eventually(is_true):
    """Wait until `is_true()`; both ends run on this loop."""
    async with asyncio.timeout(10):
        while not is_true():  # noqa: ASYNC110  nothing to wait on
            await asyncio.sleep(0.001)


async def test_the_far_end_gives_the_same_answers_to_the_bit(runtime):
    async with joined(runtime.answerer, nobody) as (link, _, slots):
        answers = []
        for answerer in (runtime.answerer, RemoteAnswerer(link, slots)):
            async with answerer.pin("paint", None) as pin:
                served = await pin.settle("cascade", ())
                (scored,) = await pin.score([RED], wanted())
                found = [(one.class_id, one.label, one.probability) for one in scored.found]
                answers.append((served, isinstance(scored, Answered), found))
    assert answers[0] == answers[1]
    assert answers[0][2][0][1] == "red"


async def test_a_pin_keeps_its_version_through_a_swap_and_is_forgotten_afterwards(runtime, store):
    async with joined(runtime.answerer, nobody) as (link, desk, slots):
        async with RemoteAnswerer(link, slots).pin("paint", None) as pin:
            data = colour_bundle(names=("white", "red"), seed=1)
            await runtime.domains.publish("paint", data, activate=True, actor="")
            assert (await pin.settle("cascade", ())).version == 1
            (scored,) = await pin.score([RED], wanted())
            assert len(scored.found) == 3
        async with RemoteAnswerer(link, slots).pin("paint", None) as pin:
            assert (await pin.settle("cascade", ())).version == 2
        await eventually(lambda: not desk._pins)


async def test_slots_stay_taken_until_the_device_side_is_done_with_them(runtime, model):
    async with joined(runtime.answerer, nobody, n_slots=4) as (link, _, slots):
        model.gate.clear()
        async with RemoteAnswerer(link, slots).pin("paint", None) as pin:
            await pin.settle("cascade", ())
            scoring = asyncio.ensure_future(pin.score([RED, RED, RED], wanted()))
            await eventually(lambda: runtime.batcher.n_running)
            assert slots.n_free == 1
            scoring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await scoring
        await eventually(lambda: slots.n_free == 4)
        model.gate.set()


async def test_rows_of_a_call_that_is_given_up_leave_the_queue(runtime, model):
    async with joined(runtime.answerer, nobody) as (link, desk, slots):
        model.gate.clear()
        async with RemoteAnswerer(link, slots).pin("paint", None) as pin:
            await pin.settle("cascade", ())
            running = asyncio.ensure_future(pin.score([RED], wanted()))
            await eventually(lambda: runtime.batcher.n_running)
            waiting = asyncio.ensure_future(pin.score([RED], wanted()))
            await eventually(lambda: runtime.batcher.n_waiting)
            waiting.cancel()
            await eventually(lambda: not runtime.batcher.n_waiting)
            model.gate.set()
            assert isinstance((await running)[0], Answered)
        assert [len(batch) for batch in model.batches[-1:]] == [1]
        assert not desk._calls


async def test_a_call_that_is_given_up_at_once_is_answered_too(runtime):
    async with (
        joined(runtime.answerer, nobody, n_slots=1) as (link, _, slots),
        RemoteAnswerer(link, slots).pin("paint", None) as pin,
    ):
        await pin.settle("cascade", ())
        scoring = asyncio.ensure_future(pin.score([RED], wanted()))
        await asyncio.sleep(0)
        scoring.cancel()
        await eventually(lambda: slots.n_free == 1)


async def test_a_web_process_that_dies_leaves_nothing_behind(runtime, model):
    model.gate.clear()
    async with joined(runtime.answerer, nobody) as (link, desk, slots):
        async with RemoteAnswerer(link, slots).pin("paint", None) as pin:
            await pin.settle("cascade", ())
            first = asyncio.ensure_future(pin.score([RED], wanted()))
            await eventually(lambda: runtime.batcher.n_running)
            second = asyncio.ensure_future(pin.score([RED], wanted()))
            await eventually(lambda: runtime.batcher.n_waiting)
            link.close()
            for call in (first, second):
                with pytest.raises(DeviceLostError):
                    await call
        await eventually(lambda: not (runtime.batcher.n_waiting or desk._pins or desk._calls))
        with pytest.raises(DeviceLostError):
            async with RemoteAnswerer(link, slots).pin("paint", None):
                pass
    model.gate.set()


@pytest.mark.parametrize("bad", [[64], [0, 0], [2**40]])
async def test_slots_that_make_no_sense_are_refused_and_the_next_call_is_served(runtime, bad):
    async with joined(runtime.answerer, nobody) as (link, _, _):
        pin = link.next_call()
        await link.ask(Pin(pin, "paint", None), Named)
        for slots, is_fine in ((bad, False), ([0], True)):
            message = Score(link.next_call(), pin, slots, 1, time.monotonic() + 10, 0)
            if is_fine:
                assert len((await link.ask(message, Scored)).rows) == 1
            else:
                with pytest.raises(Exception, match="details"):
                    await link.ask(message, Scored)
        link.tell(Unpin(pin))


@pytest.mark.parametrize(("domain", "error"), [("paint", OverloadedError), ("nowhere", DomainNotFoundError)])
async def test_who_would_be_refused_now_is_refused_with_the_pin_and_holds_nothing(model, store, domain, error):
    async with (
        running(model, store, max_waiting_rows=1, max_batch_rows=1, max_images=1) as runtime,
        joined(runtime.answerer, nobody) as (link, desk, slots),
    ):
        model.gate.clear()
        async with RemoteAnswerer(link, slots).pin("paint", None, wanted()) as pin:
            await pin.settle("cascade", ())
            scoring = asyncio.ensure_future(pin.score([RED], wanted()))
            await eventually(lambda: runtime.batcher.n_running)
            ready = asyncio.ensure_future(pin.score([RED], wanted()))
            await eventually(lambda: runtime.batcher.n_running == 2)
            waiting = asyncio.ensure_future(pin.score([RED], wanted()))
            await eventually(lambda: runtime.batcher.n_waiting)
            with pytest.raises(error):
                async with RemoteAnswerer(link, slots).pin(domain, None, wanted()):
                    pass
            assert len(desk._pins) == 1
            async with RemoteAnswerer(link, slots).pin("paint", None):
                pass  # who does not say how soon is not asked
            model.gate.set()
            for one in (scoring, ready, waiting):
                assert isinstance((await one)[0], Answered)
        await eventually(lambda: not desk._pins)


async def test_an_unknown_domain_is_known_to_be_so_before_any_pixel_travels(runtime):
    async with joined(runtime.answerer, nobody) as (link, _, slots):
        with pytest.raises(DomainNotFoundError):
            async with RemoteAnswerer(link, slots).pin("nowhere", None):
                pass


async def test_a_call_that_cannot_be_put_into_words_leaves_nothing_behind(runtime):
    async with joined(runtime.answerer, nobody) as (link, _, _slots):
        freed = []
        with pytest.raises(UnicodeEncodeError):
            await link.ask(Pin(link.next_call(), "\ud800", None), Named, settled=lambda: freed.append(True))
        assert freed == [True]
        assert not link._calls
        assert await link.ask(Pin(link.next_call(), "paint", None), Named)
