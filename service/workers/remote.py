"""A web process's client for the device process: an inference backend, and an ASGI application for all other paths."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.key_file import Key
from service.errors import DeviceLostError
from service.http.body import read_body
from service.inference import ImageResult, Scored, ScoringOptions
from service.observability.logs import request_id
from service.settings import Settings
from service.workers.pixel_slots import Pixels, PixelSlots
from service.workers.rpc import Rpc, WireError, from_wire

SCOPE: Final = (
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "server", "caspl.actor",
)  # fmt: skip
PROBES: Final = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
PROBE_TIMEOUT_S: Final = 2.0


class WorkerConfig(BaseModel, frozen=True):
    """The configuration that a web process reads from standard input, as JSON."""

    settings: Settings
    keys: tuple[Key, ...]
    n_slots: int
    image_size: int
    preprocess: dict[str, Any]


class ScoreReply(NamedTuple):
    """`Scored` with errors as data."""

    version: int
    digest: str
    answers: list[ImageResult | WireError]
    abstain_below: float | None
    feature_key: str
    is_candidate: bool


class RemoteBackend:
    """The inference backend of a web process: calls the device process over `rpc`, passes pixels in `slots`."""

    def __init__(self, rpc: Rpc, slots: PixelSlots) -> None:
        self.rpc = rpc
        self.slots = slots
        self._numbers = itertools.count()

    @asynccontextmanager
    async def pin(
        self, domain: str, version: int | None, *, deadline_s: float, priority: int
    ) -> AsyncIterator[RemotePin]:
        """See `InferenceBackend.pin`."""
        number = next(self._numbers)
        try:
            await self.rpc.call("pin", number, domain, version, deadline_s, priority, returns=type(None))
            yield RemotePin(self, number)
        finally:
            self.rpc.notify("unpin", number)


class RemotePin:
    """A pinned version; `number` identifies the pin in the device process."""

    def __init__(self, backend: RemoteBackend, number: int) -> None:
        self._backend = backend
        self._number = number

    async def score(self, pixels: Sequence[Pixels], options: ScoringOptions) -> Scored:
        """See `Pin.score`."""
        rpc, slots = self._backend.rpc, self._backend.slots
        filled = slots.fill(pixels)
        reply = await rpc.call(
            "score", self._number, filled, options, returns=ScoreReply, on_done=lambda: slots.free.extend(filled)
        )
        answers = [from_wire(one) if isinstance(one, WireError) else one for one in reply.answers]
        return Scored(reply.version, reply.digest, answers, reply.abstain_below, reply.feature_key, reply.is_candidate)

    async def spellings(self, labels: Sequence[str]) -> dict[str, str]:
        """See `Pin.spellings`."""
        return await self._backend.rpc.call("spellings", self._number, list(labels), returns=dict[str, str])


def forwarder(rpc: Rpc) -> ASGIApp:
    """An ASGI application that forwards requests to the device process."""

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(Request(scope, receive))
        forwarded = {name: scope[name] for name in SCOPE if name in scope}
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S if scope["path"] in PROBES else None):
                messages, code = await rpc.call(
                    "http", forwarded, body, request_id.get(), returns=tuple[list[Message], str | None]
                )
        except TimeoutError as error:
            raise DeviceLostError("The device process does not respond. Retry later.") from error
        scope["caspl.code"] = code  # for the middleware's metrics
        for message in messages:
            await send(message)

    return forward
