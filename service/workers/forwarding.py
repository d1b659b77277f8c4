"""Whole HTTP requests that a web process hands on: everything but classifying.

The web process has checked the key and counted the body; the device process runs the request through the same routes as
a service of one process does. Neither speaks HTTP to the other: what travels is the request as ASGI describes it.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeviceLostError
from service.http import problems
from service.observability.logs import request_id
from service.workers.link import Link
from service.workers.wire import Forward, Forwarded, Headers

PROBES: Final = frozenset({"/livez", "/readyz"})
PROBE_S: Final = 2.0
"""A device process that says nothing for so long will not."""


class Forwarder:
    """The ASGI application of a web process for every path that is not its own.

    Args:
        link: to the device process.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one request on and send its answer.

        Raises:
            DeviceLostError: the device process is gone, or does not answer a probe.
            BodyTooLargeError, SlowBodyError: while the body was read.
        """
        message = Forward(
            self._link.next_call(),
            scope["method"],
            scope["path"],
            scope.get("raw_path", b""),
            scope["query_string"],
            scope["scheme"],
            scope.get("server"),
            [(bytes(name), bytes(value)) for name, value in scope["headers"]],
            await Request(scope, receive).body(),
            scope.get("caspl.actor", ""),
            request_id.get(),
        )
        try:
            async with asyncio.timeout(PROBE_S if scope["path"] in PROBES else None):
                answer = await self._link.ask(message, Forwarded)
        except TimeoutError as error:
            raise DeviceLostError("The process with the device does not answer.") from error
        # Where `middleware.Envelope` looks for what it counts.
        scope["route"] = SimpleNamespace(path=answer.route)
        if answer.code:
            scope["caspl.code"] = answer.code
        await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": answer.body})


class Caught:
    """The outermost middleware of the device process: whatever is raised becomes a problem.

    Everything else that surrounds a request has happened in the web process.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        try:
            await self.app(scope, receive, send)
        except Exception as error:  # noqa: BLE001  it becomes the answer
            await problems.respond(error)(scope, receive, send)


async def call(app: ASGIApp, asked: Forward) -> Forwarded:
    """Run one request through an application, for the key that the web process checked."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": asked.method,
        "path": asked.path,
        "raw_path": asked.raw_path,
        "query_string": asked.query,
        "root_path": "",
        "scheme": asked.scheme,
        "server": asked.server,
        "client": None,
        "headers": asked.headers,
        "caspl.actor": asked.actor,
    }
    status, headers, body = 500, Headers(), bytearray()
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            await asyncio.Future()  # a client that hangs up is the web process's business
        is_read = True
        return {"type": "http.request", "body": asked.body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        else:
            body.extend(message.get("body", b""))

    await app(scope, receive, send)
    route = getattr(scope.get("route"), "path", "unmatched")
    return Forwarded(asked.call, status, headers, bytes(body), route, scope.get("caspl.code", ""))
