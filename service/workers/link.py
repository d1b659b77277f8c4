"""A web process's end of its channel: calls and their answers, and what the device process says unasked."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from service.errors import DeviceLostError
from service.workers.channel import Channel
from service.workers.wire import (
    Abandon,
    CountNow,
    Drain,
    Failed,
    Forward,
    Forwarded,
    FromDevice,
    Hello,
    Named,
    Pin,
    Score,
    Scored,
    Settle,
    Stop,
)
from service.workers.wire_errors import from_wire

MAX_MESSAGE_BYTES: Final = 2**31
"""The device process is trusted; this only catches a stream that is out of step."""

Answer = TypeVar("Answer", Named, Scored, Forwarded)


@dataclass(frozen=True)
class Orders:
    """What the device process may say at any time.

    Args:
        drain: tell clients not to keep their connections.
        stop: end in good order.
        count: send the counts.
        lost: the device process is gone.
    """

    drain: Callable[[], None]
    stop: Callable[[], None]
    count: Callable[[], None]
    lost: Callable[[], None]


@dataclass(frozen=True)
class _Call:
    future: asyncio.Future[Named | Scored | Forwarded]
    settled: Callable[[], None]


class Link:
    """Asks the device process; lives on one event loop."""

    def __init__(self) -> None:
        self.hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._orders: Orders | None = None
        self._early: list[FromDevice] = []
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._channel: Channel[FromDevice] = Channel(
            FromDevice, max_bytes=MAX_MESSAGE_BYTES, on_message=self._take, on_lost=self._lost
        )

    async def open(self, end: socket.socket) -> None:
        """Begin to talk."""
        await self._channel.open(end)

    def obey(self, orders: Orders) -> None:
        """Say what is to be done with what comes unasked, and with what has come already."""
        self._orders = orders
        for message in self._early:
            self._take(message)
        if self.hello.done() and not self._channel.is_open:
            orders.lost()

    def close(self) -> None:
        """Send what waits and end."""
        self._channel.close()

    def next_call(self) -> int:
        """A number that no call had before."""
        return next(self._numbers)

    def tell(self, message: msgspec.Struct) -> None:
        """Send something that has no answer."""
        self._channel.send(message)

    async def ask(
        self,
        message: Pin | Settle | Score | Forward,
        kind: type[Answer],
        *,
        settled: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Send a call and wait for its answer; when cancelled, the device process is told that nobody waits.

        Args:
            message: the call.
            kind: the class of its answer.
            settled: called when the device process is done with the call, even if nobody waits any more.

        Raises:
            DeviceLostError: the device process is gone.
            Exception: whatever the device process answers, see `wire_errors`.
        """
        if not self._channel.is_open:
            settled()
            raise _device_lost()
        future: asyncio.Future[Named | Scored | Forwarded] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(message)
        except Exception:  # it cannot be put into words: nobody will answer it
            settled()
            raise
        self._calls[message.call] = _Call(future, settled)
        try:
            answer = await future
        except asyncio.CancelledError:
            self._channel.send(Abandon(message.call))
            raise
        if not isinstance(answer, kind):
            raise TypeError(f"{type(message).__name__} was answered with {type(answer).__name__}")
        return answer

    def _take(self, message: FromDevice) -> None:
        if isinstance(message, Named | Scored | Forwarded | Failed):
            self._settle(message)
        elif isinstance(message, Hello):
            self.hello.set_result(message)
        elif self._orders is None:
            self._early.append(message)
        else:
            {Drain: self._orders.drain, Stop: self._orders.stop, CountNow: self._orders.count}[type(message)]()

    def _settle(self, message: Named | Scored | Forwarded | Failed) -> None:
        call = self._calls.pop(message.call)
        call.settled()
        if call.future.done():
            return
        if isinstance(message, Failed):
            call.future.set_exception(from_wire(message.error))
        else:
            call.future.set_result(message)

    def _lost(self) -> None:
        if not self.hello.done():
            self.hello.set_exception(_device_lost())
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(_device_lost())
        self._calls.clear()
        if self._orders is not None:
            self._orders.lost()


def _device_lost() -> DeviceLostError:
    return DeviceLostError("The process with the device is gone; this one is about to be replaced. Ask again.")
