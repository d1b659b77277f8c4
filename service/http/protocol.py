"""How HTTP is spoken on a connection: uvicorn's protocol around the parser in C, with bounds on what a client may do.

The parser alone waits for ever and collects without end; every bound of a body is in `middleware.py`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_WAITING_REQUESTS: Final = 32
"""A client need not wait for an answer before it sends its next request; so many may wait on one connection."""
HEAD_WITHIN_S: Final = 10.0
LAST_HEAD_WITHIN_S: Final = 1.0
"""How long a process that stops waits for the request of a client that has just connected."""


class RefusedError(HttpParserError):
    """What the parser lets through and this service does not."""


class PatientProtocol(HttpToolsProtocol):
    """Uvicorn's protocol with a deadline for the head of every request, and a size.

    Uvicorn waits for ever for a client that says nothing or sends its headers a byte at a time; each one holds a
    connection. What is not HTTP, or too much of it, is answered with 400 and the connection is closed; where sound
    requests before it still wait for their answers, those are given instead.

    Args:
        rest_within_s: for the rest of a body that nobody reads any more, since its request has been answered.
    """

    _hang_up: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    """The request that is being answered; uvicorn's `cycle` is the one that came last."""
    _is_in_body = False
    _is_deaf = False
    """Whether what comes is thrown away, since nothing sound can follow."""
    _n_idle_bytes = 0
    """Received since the parser last got anywhere, but for the rest of that piece: it keeps a header until it ends."""

    def __init__(self, *args: Any, rest_within_s: float, **kwargs: Any) -> None:  # noqa: ANN401  uvicorn's own
        super().__init__(*args, **kwargs)
        self._rest_within_s = rest_within_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock with the connection."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a request is there."""
        if self._is_deaf:
            return
        had_rest = not self._is_answering() and self._is_in_body
        self._unset_keepalive_if_required()
        self._n_idle_bytes += len(data)
        try:
            self._parse(data)
        except HttpParserError as error:
            # Of what a callback raises only our own words are safe to keep: others repeat what the client sent.
            self._refuse(error.__context__ if isinstance(error.__context__, RefusedError) else error)
        else:
            if self._n_idle_bytes > MAX_HEAD_BYTES:
                self._refuse("a head without end")
        if self._is_answering():
            self._stop_clock()
        elif had_rest and not self._is_in_body:
            self._expect_head()

    def on_message_begin(self) -> None:
        """Refuse to keep more requests than may wait.

        Raises:
            RefusedError: so many wait already.
        """
        if len(self.pipeline) >= MAX_WAITING_REQUESTS:
            raise RefusedError("too many requests at a time")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; the space around a value is no part of it (RFC 9110, section 5.5)."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Check what the parser leaves to others, then start to answer.

        Raises:
            RefusedError: the head is too large, does not say once whom it is for (RFC 9112, section 3.2), or its body
                comes in a form that nobody here undoes.
        """
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            raise RefusedError("a head that is too large")
        version, n_hosts = self.parser.get_http_version(), [name for name, _ in self.headers].count(b"host")
        if version not in {"1.0", "1.1"} or n_hosts > 1 or (n_hosts < 1 and version == "1.1"):
            raise RefusedError("a head of another HTTP, or without one Host")
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers):
            raise RefusedError("a body in another form than chunks")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise RefusedError("a request to a proxy")
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
        if self._is_in_body:  # it is not idle
            self._unset_keepalive_if_required()
        if not self._is_answering():
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock, and tell the request that is being answered; those that wait are not begun any more."""
        self._stop_clock()
        self.pipeline.clear()
        running = self._running
        super().connection_lost(exc)
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def shutdown(self) -> None:
        """Finish what was begun. Whoever has just connected is about to ask: closed now, it would see a reset."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            self._hang_up_in(LAST_HEAD_WITHIN_S)
        else:
            super().shutdown()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, reason: object) -> None:
        """Hang up with a 400, or once the sound requests that came before are answered."""
        logger.warning("request.malformed", extra={"reason": str(reason)})
        self._is_deaf = True
        owed = [cycle for cycle, _ in reversed(self.pipeline)]
        if self._running is not None and not self._running.response_complete:
            owed.insert(0, self._running)
        if owed and self._is_in_body:  # the last one's own body is what is wrong
            broken = owed.pop()
            if self.pipeline:
                self.pipeline.popleft()
            elif broken.response_started:
                self.transport.close()
                return
        if owed:
            owed[-1].keep_alive = False
            self.flow.resume_reading()  # what is left unread when a connection is closed takes the answers with it
        else:
            limit = f"{MAX_HEAD_BYTES // 1024} KiB"
            self.send_400_response(f"This is not a request in HTTP/1.1, or its head is larger than {limit}.")

    def _parse(self, data: bytes) -> None:
        while (offer := self._parse_until_upgrade(data)) is not None:
            # The client would rather speak another protocol (Java's does with every request, HTTP/2) and need not be
            # heard. But the parser has taken the body for the other protocol's first bytes: it reads all again.
            version = self.parser.get_http_version().encode()
            head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
            head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
            data = b"\r\n".join([*head, b"", data[offer:]])
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def _parse_until_upgrade(self, data: bytes) -> int | None:
        """Feed the parser; the end of a head that offers to speak another protocol, if there is one."""
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as offer:
            return int(offer.args[0])
        return None

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
