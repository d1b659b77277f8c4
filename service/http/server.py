"""The listening socket and the uvicorn server, shared by all processes that serve HTTP."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp

from service.errors import SettingsError
from service.http.connections.strict import small_chunks
from service.http.connections.timeouts import TimeoutHttpProtocol
from service.http.context import HttpContext
from service.http.middleware.early_refusal import EarlyRefusal
from service.settings import Settings

KEEP_ALIVE_S: Final = 5
BACKLOG: Final = 2048
ACCEPTS_PER_EVENT: Final = 16
"""A burst of new connections must not delay the requests that are being answered."""
SO_ATTACH_FILTER: Final = 26
"""Of Linux; `socket` lacks it."""
DROP_PACKETS: Final = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A BPF program: one instruction, which returns 0 bytes of each packet."""


class DrainingServer(uvicorn.Server):
    """Accepts the connections in the backlog before it closes the listening socket, so that none is reset."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept pending connections, then stop as uvicorn does."""
        for listener in sockets or []:
            drop_new_connections(listener)
        pending = [connection for listener in sockets or [] for connection in pending_connections(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in pending:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(0)  # a connection that the event loop has just accepted becomes one of uvicorn's
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def drop_new_connections(listener: socket.socket) -> None:
    """Drop packets for a listener, so that closing it resets no connection made after the last accept."""
    program = ctypes.create_string_buffer(DROP_PACKETS)
    with suppress(OSError):  # the listener is closed
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def pending_connections(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections in the backlog; none if the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        yield connection


class Listener(socket.socket):
    """A listening socket whose backlog stays long.

    asyncio passes the number of connections that it accepts per event as the backlog.
    """

    def listen(self, backlog: int = BACKLOG, /) -> None:
        """Listen with a long backlog."""
        super().listen(max(backlog, BACKLOG))


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        SettingsError: the address is not this machine's, or the port is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        is_used = error.errno == errno.EADDRINUSE
        reason = "it is in use. Choose another with --port" if is_used else error.strerror
        raise SettingsError(f"Cannot listen on {host} port {port}: {reason}.", code="cannot_listen") from error
    # Python leaves `proto` 0 in this socket and in accepted ones, and asyncio sets TCP_NODELAY only for IPPROTO_TCP:
    # the second packet of a response would wait 40 ms. A socket reopened from its descriptor has the right `proto`.
    return Listener(fileno=listener.detach())


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def http_config(
    app: ASGIApp, settings: Settings, *, context: HttpContext | None = None, n_accepts: int = ACCEPTS_PER_EVENT
) -> uvicorn.Config:
    """The uvicorn configuration of an application; it accepts up to `n_accepts` connections per event.

    With the application's `context`, classify requests are rejected early under overload.
    """
    protocol = partial(
        TimeoutHttpProtocol,
        max_body_s=settings.max_body_s,
        min_body_rate=settings.min_body_rate,
        chunks=small_chunks(),
        refusal=EarlyRefusal(context) if context else None,
    )
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=n_accepts,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
