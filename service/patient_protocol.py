"""How HTTP is spoken on a connection: uvicorn's protocol around the parser in C, with bounds on what a client may do.

The parser alone waits for ever and collects without end; every bound of a body is in `middleware.py`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES: Final = 16 * 1024
MAX_WAITING_REQUESTS: Final = 32
"""A client need not wait for an answer before it sends its next request; so many may wait on one connection."""
HEAD_WITHIN_S: Final = 10.0
LAST_HEAD_WITHIN_S: Final = 1.0
"""How long a process that stops waits for the request of a client that has just connected."""


class PatientProtocol(HttpToolsProtocol):
    """Uvicorn's protocol with a deadline for the head of every request, and a size.

    Uvicorn waits for ever for a client that says nothing or sends its headers a byte at a time; each one holds a
    connection. What is not HTTP, or too much of it, is answered with 400 and the connection is closed.

    Args:
        rest_within_s: for the rest of a body that nobody reads any more, since its request has been answered.
    """

    _hang_up: asyncio.TimerHandle | None = None
    _is_in_body = False
    _n_idle_bytes = 0
    """Received since the parser last got anywhere: it keeps what belongs to a header that has not ended."""

    def __init__(self, *args: Any, rest_within_s: float, **kwargs: Any) -> None:  # noqa: ANN401  uvicorn's own
        super().__init__(*args, **kwargs)
        self._rest_within_s = rest_within_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock with the connection."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is there."""
        had_rest = not self._is_answering() and self._is_in_body
        self._unset_keepalive_if_required()
        self._n_idle_bytes += len(data)
        try:
            self._parse(data)
        except HttpParserError as error:
            self._refuse(error.__context__ or error)
        else:
            if self._n_idle_bytes > MAX_HEADER_BYTES:
                self._refuse("a head without end")
        if self._is_answering():
            self._stop_clock()
        elif had_rest and not self._is_in_body:
            self._expect_head()

    def on_message_begin(self) -> None:
        """Refuse to keep more requests than may wait.

        Raises:
            HttpParserError: so many wait already.
        """
        if len(self.pipeline) >= MAX_WAITING_REQUESTS:
            raise HttpParserError("too many requests at a time")
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check what the parser leaves to others, then start to answer.

        Raises:
            HttpParserError: the head is too large, or does not say once whom it is for (RFC 9112, section 3.2).
        """
        n_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if n_bytes > MAX_HEADER_BYTES:
            raise HttpParserError("a head that is too large")
        version, n_hosts = self.parser.get_http_version(), [name for name, _ in self.headers].count(b"host")
        if version not in {"1.0", "1.1"} or n_hosts > 1 or (n_hosts < 1 and version == "1.1"):
            raise HttpParserError("a head of another HTTP, or without one Host")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise HttpParserError("a request to a proxy")
            return
        super().on_headers_complete()
        self._is_in_body = True
        self._n_idle_bytes = 0
        # What follows a body in chunks is no header of the request that is being answered.
        self.headers = []

    def on_chunk_header(self) -> None:
        """Note that the parser got on; it knows no other sign of a body in small chunks."""
        self._n_idle_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Note that the parser got on."""
        self._n_idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that what comes next is a head."""
        self._n_idle_bytes = 0
        self._is_in_body = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the clock again for the next request on this connection."""
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

    def _refuse(self, reason: object) -> None:
        logger.warning("request.malformed", extra={"reason": str(reason)})
        self.send_400_response("This is not a request in HTTP/1.1, or its head is larger than 16 KiB.")

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as offer:
            # The client would rather speak another protocol (Java's does with every request, HTTP/2) and need not be
            # heard. But the parser has taken the body for the other protocol's first bytes: it reads all again.
            (end_of_head,) = offer.args
            version = self.parser.get_http_version().encode()
            head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
            head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
            self.parser = HttpRequestParser(self)
            self._parse(b"\r\n".join([*head, b"", data[end_of_head:]]))

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        """Start the clock for the next head, or first for what is still to come of a body that was answered early."""
        self._hang_up_in(self._rest_within_s if self._is_in_body else HEAD_WITHIN_S)

    def _hang_up_in(self, within_s: float) -> None:
        self._stop_clock()
        self._hang_up = self.loop.call_later(within_s, self.transport.close)

    def _stop_clock(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None
