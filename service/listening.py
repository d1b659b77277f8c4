"""The socket that clients connect to, and how HTTP is spoken on it; the same for every process that does.

Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from service.errors import SettingsError
from service.settings import Settings

MAX_HEADER_BYTES: Final = 16 * 1024
KEEP_ALIVE_S: Final = 5
HEAD_WITHIN_S: Final = 10.0
LAST_HEAD_WITHIN_S: Final = 1.0
"""How long a process that stops waits for the request of a client that has just connected."""
BACKLOG: Final = 2048


class PatientProtocol(H11Protocol):
    """Uvicorn's protocol with a deadline for the head of every request.

    Uvicorn waits for ever for a client that says nothing or sends its headers a byte at a time; each one holds a
    connection. The time for bodies is bounded in `middleware.py`.

    Args:
        rest_within_s: for the rest of a body that nobody reads any more, since its request has been answered.
    """

    _hang_up: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, rest_within_s: float, **kwargs: Any) -> None:  # noqa: ANN401  uvicorn's own
        super().__init__(*args, **kwargs)
        self._rest_within_s = rest_within_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock with the connection."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is there."""
        had_rest = not self._is_answering() and self._is_in_body()
        super().data_received(data)
        if self._is_answering():
            self._stop_clock()
        elif had_rest and not self._is_in_body():
            self._expect_head()

    def on_response_complete(self) -> None:
        """Start it again for the next request on this connection."""
        super().on_response_complete()
        if not self._is_answering():
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Finish what was begun. Whoever has just connected is about to ask: closed now, it would see a reset."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            self._hang_up_in(LAST_HEAD_WITHIN_S)
        else:
            super().shutdown()

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _is_in_body(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def _expect_head(self) -> None:
        """Start the clock for the next head, or first for what is still to come of a body that was answered early."""
        self._hang_up_in(self._rest_within_s if self._is_in_body() else HEAD_WITHIN_S)

    def _hang_up_in(self, within_s: float) -> None:
        self._stop_clock()
        self._hang_up = self.loop.call_later(within_s, self.transport.close)

    def _stop_clock(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None


class LastCallServer(uvicorn.Server):
    """Uvicorn's server, but that it takes in who already stands at the door before it closes it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what the system has connected already, then stop as uvicorn does."""
        # Nothing may happen between the last look and the closing: who connects there sees a reset.
        late = [connection for listener in sockets or [] for connection in _at_the_door(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in late:
            await loop.connect_accepted_socket(self._speak_http, connection)
        await super().shutdown(sockets)

    def _speak_http(self) -> asyncio.Protocol:
        speak = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return speak(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _at_the_door(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that the system has made and nobody has accepted; none if the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        yield connection


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        SettingsError: the address is not ours or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"Cannot listen on {host} port {port}: {error.strerror}.", code="cannot_listen") from error
    # Python notes no protocol for this socket, connections inherit that, and asyncio switches Nagle's algorithm off
    # only where it reads TCP: the second packet of an answer would wait 40 ms. Opened by number, the protocol is known.
    return socket.socket(fileno=listener.detach())


def address_of(listener: socket.socket) -> str:
    """Where a listening socket answers, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def http_config(app: ASGIApp, settings: Settings, *, backlog: int = BACKLOG) -> uvicorn.Config:
    """How uvicorn serves an application here.

    Args:
        app: the application.
        settings: how long the end may take.
        backlog: connections that are accepted in one go.
    """
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(PatientProtocol, rest_within_s=settings.max_body_s)),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=backlog,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
