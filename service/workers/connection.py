"""The methods of the device process that web processes call. Web processes decode untrusted files and are not trusted.

msgspec checks the types of arguments; values are checked here. A web process that sends an invalid message is
disconnected and restarted.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta
from starlette.types import ASGIApp, Message

from service.domains.backend import LocalBackend, LocalPin
from service.inference import Scored, ScoringOptions
from service.observability.logs import request_id
from service.observability.process_metrics import Sample
from service.workers.pixel_slots import Pixels
from service.workers.rpc import Rpc

Slot = Annotated[int, Meta(ge=0)]
PriorityNumber = Annotated[int, Meta(ge=-1, le=1)]


class WorkerConnection:
    """Serves one web process, whose `pixels` are [n, 3, H, W] uint8, over `rpc`; `samples` are its counts."""

    def __init__(self, backend: LocalBackend, routes: ASGIApp, pixels: Pixels, *, max_bytes: int) -> None:
        self.samples: list[Sample] = []
        self._backend = backend
        self._routes = routes
        self._pixels = pixels
        self._pins: dict[int, LocalPin] = {}
        self.rpc = Rpc((self.pin, self.unpin, self.score, self.spellings, self.http), max_bytes=max_bytes)

    async def refresh_counts(self) -> None:
        """Fetch the web process's counts; the last ones stay if that raises DeviceLostError or MsgspecError."""
        self.samples = await self.rpc.call("count", returns=list[Sample])

    async def pin(
        self, number: int, domain: str, version: int | None, deadline_s: float, priority: PriorityNumber
    ) -> None:
        """Admit a request and pin a version until `unpin`."""
        self._pins[number] = self._backend.hold(domain, version, deadline_s=deadline_s, priority=priority)

    async def unpin(self, number: int) -> None:
        """Drop a pin, if there is one."""
        self._pins.pop(number, None)

    async def score(self, pin: int, slots: list[Slot], options: ScoringOptions) -> Scored:
        """Score the images in these slots, which must not change until the reply."""
        request_id.set(options.request_id)
        if len(set(slots)) != len(slots) or max(slots, default=0) >= len(self._pixels):
            raise ValueError("invalid or duplicate slots")
        return await self._pins[pin].score([self._pixels[slot] for slot in slots], options)

    async def spellings(self, pin: int, labels: list[str]) -> dict[str, str]:
        """See `Pin.spellings`."""
        return await self._pins[pin].spellings(labels)

    async def http(self, scope: dict[str, Any], body: bytes, request: str) -> tuple[list[Message], str | None]:
        """The ASGI messages that answer an HTTP request, and its error code; the web process checked key and limits."""
        request_id.set(request)
        scope = {"asgi": {"version": "3.0"}, "root_path": "", **scope}
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            # After the body only a disconnect can follow, and then the web process cancels this call.
            return unread.pop() if unread else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        await self._routes(scope, receive, send)
        return sent, scope.get("caspl.code")
