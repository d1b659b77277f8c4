"""Answers classify requests with the device of another process; see `service.answering`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.answering import Answered, Served, StackKind, Wanted
from service.errors import ServiceError
from service.observability.logs import request_id
from service.workers.link import Link
from service.workers.pixel_slots import Slots
from service.workers.wire import Named, Pin, RowAnswer, RowError, Score, Scored, Settle, Unpin
from service.workers.wire_errors import from_wire


class RemoteAnswerer:
    """Pins versions and has images scored at the other end of a link.

    Args:
        link: to the device process.
        slots: where the device process finds pixels.
    """

    def __init__(self, link: Link, slots: Slots) -> None:
        self.link = link
        self.slots = slots

    @asynccontextmanager
    async def pin(self, domain: str, version: int | None, wanted: Wanted | None = None) -> AsyncIterator[RemotePin]:
        """See `Answerer.pin`."""
        call = self.link.next_call()
        try:
            asking = Pin(call, domain, version)
            if wanted is not None:
                asking = Pin(call, domain, version, wanted.deadline_s, wanted.priority)
            named = await self.link.ask(asking, Named)
            yield RemotePin(self, call, domain, named)
        finally:
            self.link.tell(Unpin(call))

    def check(self, domain: str, wanted: Wanted) -> None:
        """See `Answerer.check`: the queue is at the other end, which `pin` asks."""


class RemotePin:
    """One request's hold on one version.

    Args:
        answerer: the link and the slots.
        pin: the hold's number at the other end.
        domain: who is asked.
        named: what was pinned.
    """

    def __init__(self, answerer: RemoteAnswerer, pin: int, domain: str, named: Named) -> None:
        self._link = answerer.link
        self._slots = answerer.slots
        self._pin = pin
        self._domain = domain
        self._named = named

    async def settle(self, kind: StackKind, labels: tuple[str, ...]) -> Served:
        """See `Pin.settle`; what is live and asked for its own classes needs no question."""
        named = self._named
        if kind != "cascade" or labels or named.version is None:
            call = self._link.next_call()
            named = await self._link.ask(Settle(call, self._pin, kind, labels, request_id.get()), Named)
        if named.version is None or named.digest is None:
            raise TypeError("a settled version has a number and a digest")
        return Served(self._domain, named.version, named.digest)

    def check(self, n_images: int, wanted: Wanted) -> None:
        """See `Pin.check`: the queue is at the other end, and nothing is known of it here."""

    async def score(self, pixels: Sequence[NDArray[np.uint8]], wanted: Wanted) -> list[Answered | ServiceError]:
        """See `Pin.score`."""
        slots = self._slots.fill(pixels)
        message = Score(self._link.next_call(), self._pin, slots, wanted.top_k, wanted.deadline_s, wanted.priority)
        scored = await self._link.ask(message, Scored, settled=partial(self._slots.free, slots))
        return [_row(row) for row in scored.rows]


def _row(row: RowAnswer | RowError) -> Answered | ServiceError:
    if isinstance(row, RowAnswer):
        return Answered(row.found, row.queued_s, row.ran_s)
    error = from_wire(row.error)
    return error if isinstance(error, ServiceError) else ServiceError(str(error))
