"""Calls over a socket pair: any size, any split, and nothing that is not a call of ours."""

import asyncio
import os
import socket

import msgspec
import pytest

from service.errors import DeviceLostError, OverloadedError, ServiceError
from service.workers.rpc import LENGTH_BYTES, Frame, Rpc

pytestmark = pytest.mark.anyio


class Methods:
    """Remembers its calls."""

    def __init__(self):
        self.heard = []
        self.has_begun, self.was_cancelled = asyncio.Event(), asyncio.Event()

    async def echo(self, number: int, data: bytes) -> bytes:
        self.heard.append(number)
        return data

    async def refuse(self) -> None:
        raise OverloadedError("full", retry_after_s=2)

    async def name(self) -> str:
        return "\ud800"

    async def wait(self) -> None:
        self.has_begun.set()
        try:
            await asyncio.Future()
        finally:
            self.was_cancelled.set()


@pytest.fixture
async def ends():
    """A socket, a served end with its methods, and an event for when it has noticed the end."""
    one, other = socket.socketpair()
    methods = Methods()
    served = Rpc((methods.echo, methods.refuse, methods.name, methods.wait), max_bytes=2**22)
    await served.open(one)
    yield other, methods, served.lost
    other.close()
    await asyncio.wait_for(asyncio.shield(served.lost), 10)


@pytest.fixture
async def client(ends):
    rpc = Rpc(())
    await rpc.open(ends[0])
    yield rpc
    rpc.close()


def framed(message):
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def call(method, *args, number=1):
    return framed(Frame("call", number, method, msgspec.Raw(msgspec.msgpack.encode(args))))


async def test_calls_run_in_order_and_arrive_whole_whatever_their_size(ends, client):
    sizes = [3, 3_000_000, 0, 70_000]
    sent = [os.urandom(size) for size in sizes]
    calls = [client.call("echo", number, data, returns=bytes) for number, data in enumerate(sent)]
    assert await asyncio.gather(*calls) == sent
    assert ends[1].heard == [0, 1, 2, 3]


async def test_an_error_is_raised_at_the_caller(client):
    with pytest.raises(OverloadedError, match="full") as raised:
        await client.call("refuse", returns=type(None))
    assert raised.value.retry_after_s == 2


async def test_a_result_that_cannot_be_encoded_is_an_error_at_the_caller(client):
    with pytest.raises(ServiceError, match="Internal error"):
        await asyncio.wait_for(client.call("name", returns=str), 10)


async def test_a_notification_is_run_and_not_answered(ends, client):
    client.notify("echo", 5, b"")
    client.notify("refuse")
    assert await client.call("echo", 6, b"x", returns=bytes) == b"x"
    assert ends[1].heard == [5, 6]


async def test_cancelling_a_call_cancels_it_at_the_other_end_which_then_reports_that_it_is_done(ends, client):
    done = asyncio.Event()
    waiting = asyncio.ensure_future(client.call("wait", returns=type(None), on_done=done.set))
    await asyncio.wait_for(ends[1].has_begun.wait(), 10)
    waiting.cancel()
    await asyncio.wait_for(ends[1].was_cancelled.wait(), 10)
    await asyncio.wait_for(done.wait(), 10)


async def test_arguments_that_cannot_be_encoded_leave_nothing_behind(client):
    done = []
    with pytest.raises(UnicodeEncodeError):
        await client.call("echo", 1, "\ud800", returns=bytes, on_done=lambda: done.append(True))
    assert not client._pending
    await asyncio.sleep(0)
    assert done == [True]
    assert await client.call("echo", 1, b"x", returns=bytes) == b"x"


async def test_a_message_in_pieces_is_a_message(ends):
    other, methods, _ = ends
    for byte in call("echo", 7, b"abc"):
        assert methods.heard == []
        other.send(bytes([byte]))
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while not methods.heard:  # noqa: ASYNC110  nothing to wait on
            await asyncio.sleep(0.001)
    assert methods.heard == [7]


@pytest.mark.parametrize(
    "sent",
    [
        (2**31).to_bytes(LENGTH_BYTES, "little") + b"x",
        (5).to_bytes(LENGTH_BYTES, "little") + b"hello",
        framed(None),
        framed(["order", 1, "echo", [1, b""]]),
        call("echo", "seven", b""),
        call("echo", 7),
        call("open", 7, b""),
        framed(Frame("result", 1)),
    ],
)
async def test_a_message_that_breaks_a_rule_ends_the_connection(ends, sent):
    other, methods, lost = ends
    other.send(sent)
    await asyncio.wait_for(asyncio.shield(lost), 10)
    assert methods.heard == []


async def test_calls_fail_at_once_when_the_other_process_ends(ends, client):
    waiting = asyncio.ensure_future(client.call("wait", returns=type(None)))
    await asyncio.wait_for(ends[1].has_begun.wait(), 10)
    ends[1].has_begun.clear()
    client._transport.abort()
    with pytest.raises(DeviceLostError):
        await waiting
    with pytest.raises(DeviceLostError):
        await client.call("echo", 1, b"", returns=bytes)
    client.notify("echo", 1, b"")  # no effect
    await asyncio.wait_for(ends[1].was_cancelled.wait(), 10)
