"""The socket that clients connect to, and the server behind it; the same for every process that listens.

Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp

from service.errors import SettingsError
from service.http.protocol import PatientProtocol
from service.settings import Settings

KEEP_ALIVE_S: Final = 5
BACKLOG: Final = 2048


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
    )
