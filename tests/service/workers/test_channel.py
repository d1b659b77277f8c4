"""Framed messages: any size, any split, and nothing that is not a message of ours."""

import asyncio
import os
import socket

import msgspec
import pytest

from service.workers.channel import LENGTH, Channel
from service.workers.wire import Forward, FromWeb, Pin, Unpin

pytestmark = pytest.mark.anyio


class Ear:
    """Collects what a channel hears."""

    def __init__(self, max_bytes=2**22):
        self.heard = []
        self.anything = asyncio.Event()
        self.lost = asyncio.Event()
        self.channel = Channel(FromWeb, max_bytes=max_bytes, on_message=self.hear, on_lost=self.lost.set)

    def hear(self, message):
        self.heard.append(message)
        self.anything.set()

    async def hang_up(self):
        self.channel.close()
        await asyncio.wait_for(self.lost.wait(), 10)


def framed(message):
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def forward(body):
    return Forward(1, "POST", "/a", b"/a", b"", "http", ("x", 1), [(b"a", b"b")], body, "key", "req")


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


async def test_messages_arrive_in_order_and_whole_whatever_their_size(ends):
    ear, mouth = Ear(), Ear()
    await ear.channel.open(ends[0])
    await mouth.channel.open(ends[1])
    sent = [Pin(1, "a", None), forward(os.urandom(3_000_000)), Unpin(1), forward(b""), Pin(2, "b", 3)]
    for message in sent:
        mouth.channel.send(message)
    await mouth.hang_up()
    await asyncio.wait_for(ear.lost.wait(), 10)
    assert ear.heard == sent


async def test_a_message_in_pieces_is_a_message(ends):
    ear = Ear()
    await ear.channel.open(ends[0])
    for byte in framed(Pin(7, "paint", 2)):
        assert ear.heard == []
        ends[1].send(bytes([byte]))
        await asyncio.sleep(0)
    await asyncio.wait_for(ear.anything.wait(), 10)
    assert ear.heard == [Pin(7, "paint", 2)]
    await ear.hang_up()


@pytest.mark.parametrize(
    "sent",
    [
        LENGTH.pack(2**31) + b"x",
        LENGTH.pack(5) + b"hello",
        framed(None),
        framed(["Pin", 1, 5, 1]),
        framed(["Hello", b"", [], 1, 1, {}]),
    ],
)
async def test_what_is_no_message_ends_the_channel(ends, sent):
    ear = Ear()
    await ear.channel.open(ends[0])
    ends[1].send(sent)
    await asyncio.wait_for(ear.lost.wait(), 10)
    assert ear.heard == []


async def test_the_other_process_ending_is_noticed_at_once(ends):
    ear = Ear()
    await ear.channel.open(ends[0])
    ends[1].close()
    await asyncio.wait_for(ear.lost.wait(), 10)
    assert not ear.channel.is_open
    ear.channel.send(Unpin(1))  # in vain, and harmless
