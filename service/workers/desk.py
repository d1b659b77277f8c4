"""The device process's end of one channel: does for a web process what it asks, with the parts that one process has.

A web process decodes what strangers send, so nothing it says is trusted to be sensible: types are checked by the wire,
numbers here, and whoever breaks a rule is cut off and replaced.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, assert_never

import msgspec

from service.answering import Answered, Wanted
from service.errors import ServiceError
from service.local_answerer import LocalAnswerer, LocalPin
from service.observability.logs import request_id
from service.workers.channel import Channel
from service.workers.pixel_slots import Pixels
from service.workers.wire import (
    Abandon,
    Counts,
    Failed,
    Forward,
    Forwarded,
    FoundClass,
    FromWeb,
    Listening,
    Named,
    Pin,
    RowAnswer,
    RowError,
    Sample,
    Score,
    Scored,
    Settle,
    Unpin,
)
from service.workers.wire_errors import to_wire

logger = logging.getLogger(__name__)


class Desk:
    """Serves one web process.

    Args:
        answerer: pins and scores.
        forwarded: answers whole HTTP requests.
        pixels: the web process's slots, [n, 3, H, W] uint8.
        max_bytes: largest message that is read.
        on_lost: called when the web process is gone.
    """

    def __init__(
        self,
        answerer: LocalAnswerer,
        forwarded: Callable[[Forward], Awaitable[Forwarded]],
        pixels: Pixels,
        *,
        max_bytes: int,
        on_lost: Callable[[], None],
    ) -> None:
        self.samples: list[Sample] = []
        self.counted = asyncio.Event()
        self.listening = asyncio.Event()
        self.last_sign_s = asyncio.get_running_loop().time()
        self._answerer = answerer
        self._forwarded = forwarded
        self._pixels = pixels
        self._on_lost = on_lost
        self._pins: dict[int, LocalPin] = {}
        self._calls: dict[int, asyncio.Task[msgspec.Struct]] = {}
        self._channel: Channel[FromWeb] = Channel(
            FromWeb, max_bytes=max_bytes, on_message=self._take, on_lost=self._lost
        )

    async def open(self, end: socket.socket) -> None:
        """Begin to talk."""
        await self._channel.open(end)

    def tell(self, message: msgspec.Struct) -> None:
        """Send something unasked."""
        self._channel.send(message)

    def close(self) -> None:
        """Cut the web process off."""
        self._channel.close()

    def _take(self, message: FromWeb) -> None:
        match message:
            case Pin():
                self._hold(message)
            case Score():
                self._begin(message.call, self._score(message))
            case Settle():
                self._begin(message.call, self._settle(message))
            case Forward():
                self._begin(message.call, self._forward(message))
            case Abandon():
                if task := self._calls.get(message.call):
                    task.cancel()
            case Unpin():
                self._pins.pop(message.pin, None)
            case Counts():
                self.samples = message.samples
                self.last_sign_s = asyncio.get_running_loop().time()
                self.counted.set()
            case Listening():
                self.listening.set()
            case _:
                assert_never(message)

    def _lost(self) -> None:
        for task in list(self._calls.values()):
            task.cancel()
        self._pins.clear()
        self._on_lost()

    def _hold(self, ask: Pin) -> None:
        try:
            pin = self._answerer.hold(ask.domain, ask.version)
            if ask.deadline_s is not None:
                pin.check(1, Wanted(1, ask.deadline_s, ask.priority))
        except Exception as error:  # noqa: BLE001  every failure is an answer
            self._channel.send(Failed(ask.call, to_wire(error)))
        else:
            self._pins[ask.call] = pin
            served = pin.served
            version, digest = (served.version, served.digest) if served else (None, None)
            self._channel.send(Named(ask.call, version, digest))

    def _begin(self, call: int, work: Coroutine[Any, Any, msgspec.Struct]) -> None:
        task = self._calls[call] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: self._answer(call, task))

    def _answer(self, call: int, task: asyncio.Task[msgspec.Struct]) -> None:
        """Send what the work returned or raised; an abandoned call is answered too, as its slots are free now."""
        del self._calls[call]
        if task.cancelled():
            self._channel.send(Failed(call, to_wire(ServiceError("Nobody waited for this any more."))))
        elif error := task.exception():
            self._channel.send(Failed(call, to_wire(error)))
        else:
            self._channel.send(task.result())

    async def _settle(self, ask: Settle) -> Named:
        request_id.set(ask.request_id)
        served = await self._pins[ask.pin].settle(ask.kind, ask.labels)
        return Named(ask.call, served.version, served.digest)

    async def _score(self, ask: Score) -> Scored:
        if len(set(ask.slots)) != len(ask.slots) or max(ask.slots, default=0) >= len(self._pixels):
            raise ValueError("slots that are not there, or one for two images")
        pixels = [self._pixels[slot] for slot in ask.slots]
        answers = await self._pins[ask.pin].score(pixels, Wanted(ask.top_k, ask.deadline_s, ask.priority))
        return Scored(ask.call, [_row(answer) for answer in answers])

    async def _forward(self, ask: Forward) -> Forwarded:
        request_id.set(ask.request_id)
        return await self._forwarded(ask)


def _row(answer: Answered | ServiceError) -> RowAnswer | RowError:
    if isinstance(answer, ServiceError):
        return RowError(to_wire(answer))
    found = [FoundClass(one.class_id, one.label, one.probability) for one in answer.found]
    return RowAnswer(found, answer.queued_s, answer.ran_s)
