"""Both ends of a connection on one event loop: calls that are cancelled, broken or orphaned."""

import asyncio
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from prompt_store.errors import DomainNotFoundError
from service.access.keys import KeyRing
from service.app import build
from service.errors import DeviceLostError, OverloadedError
from service.inference import ImageResult, ScoringOptions
from service.settings import Settings
from service.workers.remote import ScoreReply
from tests.service.fakes import colour_bundle
from tests.service.web_form import joined

pytestmark = pytest.mark.anyio

RED = np.zeros((3, 16, 16), dtype=np.uint8)
RED[0] = 255


@asynccontextmanager
async def running(model, store, **changes):
    context = build(Settings(store_poll_s=0, **changes), model, store, KeyRing())
    await context.start()
    yield context
    await context.stop()


@pytest.fixture
async def context(model, store):
    async with running(model, store) as context:
        yield context


def options(seconds=10):
    return ScoringOptions("cascade", (), 3, time.monotonic() + seconds)


def pin(backend, domain="paint"):
    return backend.pin(domain, None, deadline_s=time.monotonic() + 10, priority=0)


async def eventually(is_true):
    """Wait until `is_true()`; both ends run on this loop."""
    async with asyncio.timeout(10):
        while not is_true():  # noqa: ASYNC110  nothing to wait on
            await asyncio.sleep(0.001)


async def test_the_far_end_gives_the_same_answers_to_the_bit(context):
    async with joined(context.backend) as (web, _):
        answers = []
        for backend in (context.backend, web.backend):
            async with pin(backend) as pinned:
                scored = await pinned.score([RED], options())
                answers.append((scored.version, scored.digest, scored.answers[0].predictions))
    assert answers[0] == answers[1]
    assert answers[0][2][0].label == "red"


async def test_a_pin_keeps_its_version_through_a_swap_and_is_forgotten_afterwards(context, store):
    async with joined(context.backend) as (web, worker):
        async with pin(web.backend) as pinned:
            data = colour_bundle(names=("white", "red"), seed=1)
            await context.publisher.publish("paint", data, activate=True, actor="")
            scored = await pinned.score([RED], options())
            assert scored.version == 1
            assert len(scored.answers[0].predictions) == 3
        async with pin(web.backend) as pinned:
            assert (await pinned.score([], options())).version == 2
        await eventually(lambda: not worker._pins)


async def test_slots_stay_taken_until_the_device_side_is_done_with_them(context, model):
    async with joined(context.backend, n_slots=4) as (web, _):
        model.gate.clear()
        async with pin(web.backend) as pinned:
            scoring = asyncio.ensure_future(pinned.score([RED, RED, RED], options()))
            await eventually(lambda: context.batcher._admission.n_running)
            assert len(web.slots.free) == 1
            scoring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await scoring
        await eventually(lambda: len(web.slots.free) == 4)
        model.gate.set()


async def test_rows_of_a_call_that_is_given_up_leave_the_queue(context, model):
    async with joined(context.backend) as (web, worker):
        model.gate.clear()
        async with pin(web.backend) as pinned:
            running = asyncio.ensure_future(pinned.score([RED], options()))
            await eventually(lambda: context.batcher._admission.n_running)
            waiting = asyncio.ensure_future(pinned.score([RED], options()))
            await eventually(lambda: context.batcher.n_queued)
            waiting.cancel()
            await eventually(lambda: not context.batcher.n_queued)
            model.gate.set()
            assert isinstance((await running).answers[0], ImageResult)
        assert [len(batch) for batch in model.batches[-1:]] == [1]
        await eventually(lambda: not worker.rpc._running)


async def test_a_call_that_is_given_up_at_once_is_answered_too(context):
    async with joined(context.backend, n_slots=1) as (web, _), pin(web.backend) as pinned:
        scoring = asyncio.ensure_future(pinned.score([RED], options()))
        await asyncio.sleep(0)
        scoring.cancel()
        await eventually(lambda: len(web.slots.free) == 1)


async def test_a_web_process_that_dies_leaves_nothing_behind(context, model):
    model.gate.clear()
    async with joined(context.backend) as (web, worker):
        async with pin(web.backend) as pinned:
            first = asyncio.ensure_future(pinned.score([RED], options()))
            await eventually(lambda: context.batcher._admission.n_running)
            second = asyncio.ensure_future(pinned.score([RED], options()))
            await eventually(lambda: context.batcher.n_queued)
            web.rpc.close()
            for call in (first, second):
                with pytest.raises(DeviceLostError):
                    await call
        await eventually(lambda: not (context.batcher.n_queued or worker.rpc._running))
        with pytest.raises(DeviceLostError):
            async with pin(web.backend):
                pass
    model.gate.set()


@pytest.mark.parametrize("bad", [[64], [0, 0], [2**40]])
async def test_slots_that_make_no_sense_are_refused_and_the_next_call_is_served(context, bad):
    async with joined(context.backend) as (web, _):
        await web.rpc.call("pin", 1, "paint", None, time.monotonic() + 10, 0, returns=type(None))
        with pytest.raises(Exception, match="details"):
            await web.rpc.call("score", 1, bad, options(), returns=ScoreReply)
        assert len((await web.rpc.call("score", 1, [0], options(), returns=ScoreReply)).answers) == 1


@pytest.mark.parametrize(
    ("method", "args"), [("score", (1, [-1], None)), ("pin", (1, "paint", None, 0.0, 5)), ("count", ())]
)
async def test_a_web_process_that_breaks_a_rule_is_disconnected(context, method, args):
    async with joined(context.backend) as (web, worker):
        with pytest.raises(DeviceLostError):
            await web.rpc.call(method, *args, returns=type(None))
        await asyncio.wait_for(worker.rpc.lost, 5)


@pytest.mark.parametrize(("domain", "error"), [("paint", OverloadedError), ("nowhere", DomainNotFoundError)])
async def test_admission_is_decided_with_the_pin_and_a_refused_request_holds_nothing(model, store, domain, error):
    async with (
        running(model, store, max_queued_rows=1, max_batch_rows=1, max_images=1) as context,
        joined(context.backend) as (web, worker),
    ):
        model.gate.clear()
        async with pin(web.backend) as pinned:
            kept = [asyncio.ensure_future(pinned.score([RED], options()))]
            await eventually(lambda: context.batcher._admission.n_running)
            kept.append(asyncio.ensure_future(pinned.score([RED], options())))
            await eventually(lambda: context.batcher.n_queued)
            with pytest.raises(error):
                async with pin(web.backend, domain):
                    pass
            await eventually(lambda: len(worker._pins) == 1)
            model.gate.set()
            for one in kept:
                assert isinstance((await one).answers[0], ImageResult)
        await eventually(lambda: not worker._pins)
