"""uvicorn's HTTP/1.1 protocol on httptools (llhttp), without requests that two servers could read differently.

llhttp rejects ambiguous framing. It bounds nothing, and leaves `Host`, the target and the version to its caller.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.access.rates import TokenBucket

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_PIPELINED: Final = 64
"""Requests of a connection that wait for the response to the one before them."""
SMALL_CHUNK_BYTES: Final = 1024
MAX_SMALL_CHUNKS: Final = 20_000
SMALL_CHUNKS_PER_S: Final = 4_000
"""Each chunk takes microseconds: clients that send one byte per chunk would fill the event loop."""
TARGET: Final = re.compile(rb"/[!\"$-~]*|\*")
"""A path or an asterisk; an absolute URL, as for a proxy, may contradict `Host`."""
INVALID: Final = "Invalid HTTP request received."


def small_chunks() -> TokenBucket:
    """Bounds the small chunks of all connections of a process."""
    return TokenBucket(SMALL_CHUNKS_PER_S, MAX_SMALL_CHUNKS, time.monotonic)


class InvalidRequestError(Exception):
    """A request that llhttp accepts and this server does not."""


class StrictHttpProtocol(HttpToolsProtocol):
    """Answers invalid HTTP with 400, after the responses to the requests before it, and closes the connection.

    An offer to upgrade is ignored.

    Args:
        chunks: see `small_chunks`.
    """

    _running: RequestResponseCycle | None = None
    """The request that is being answered; `cycle` is the one received last."""
    _is_in_head = _is_in_body = _is_invalid = False
    _n_pending = _n_chunk_bytes = 0
    """Bytes received since the parser's last progress, and bytes of the current chunk."""

    def __init__(self, *args: Any, chunks: TokenBucket, **kwargs: Any) -> None:  # noqa: ANN401  uvicorn's own
        super().__init__(*args, **kwargs)
        self.parser = httptools.HttpRequestParser(self)  # uvicorn's accepts requests after `Connection: close`
        self._chunks = chunks

    def data_received(self, data: bytes) -> None:
        """Parse bytes; what follows an invalid request is dropped."""
        self._unset_keepalive_if_required()
        if self._is_invalid:
            return
        self._n_pending += len(data)
        try:
            self._feed(data)
            is_valid = self._n_pending <= MAX_HEAD_BYTES
        except httptools.HttpParserError:
            is_valid = False
        if not is_valid:
            self._refuse()

    def on_message_begin(self) -> None:
        """Begin a request; raises InvalidRequestError if too many wait."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise InvalidRequestError
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """Start the request; raises InvalidRequestError for what the parser leaves to its caller."""
        version, n_bytes, n_hosts, codings = self.parser.get_http_version(), len(self.url), 0, []
        self.headers[:] = [(name, value.rstrip(b" \t")) for name, value in self.headers]  # RFC 9112, section 5.1
        for name, value in self.headers:
            n_bytes += len(name) + len(value)
            n_hosts += name == b"host"
            if name == b"transfer-encoding":
                codings.append(value.lower())
        if (
            n_bytes > MAX_HEAD_BYTES
            or (version, n_hosts) not in {("1.1", 1), ("1.0", 1), ("1.0", 0)}
            or (codings and (version, codings) != ("1.1", [b"chunked"]))
            or not TARGET.fullmatch(self.url)
            or self.parser.get_method() == b"CONNECT"
        ):
            raise InvalidRequestError
        self._n_pending = 0
        if self.parser.should_upgrade():
            return
        self.expect_100_continue &= version == "1.1"
        super().on_headers_complete()
        self._is_in_head, self._is_in_body = False, True
        self.headers = []  # trailers are no headers of the request

    def on_body(self, body: bytes) -> None:
        """Add to the body."""
        self._n_pending = 0
        self._n_chunk_bytes += len(body)
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """Begin a chunk."""
        self._n_pending = self._n_chunk_bytes = 0

    def on_chunk_complete(self) -> None:
        """Count a chunk; raises InvalidRequestError for too many small ones."""
        if 0 < self._n_chunk_bytes < SMALL_CHUNK_BYTES:
            if self._chunks.wait_s(1) > 0:
                raise InvalidRequestError
            self._chunks.spend(1)

    def on_message_complete(self) -> None:
        """End a request."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self._is_in_body, self._n_pending = False, 0

    def on_response_complete(self) -> None:
        """Start the next request, or respond to an invalid one."""
        super().on_response_complete()
        if self._is_invalid and not self._is_answering() and not self.transport.is_closing():
            self.send_400_response(INVALID)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request that is being answered; those behind it are dropped."""
        self.pipeline.clear()
        self._disconnect()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _is_idle(self) -> bool:
        """Whether the next byte begins a request."""
        return not (self._is_in_head or self._is_in_body or self._is_invalid or self._is_answering())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _feed(self, data: bytes) -> None:
        """Feed the parser; it takes the body of an offer to upgrade for another protocol and so parses it again."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            line = self.parser.get_method() + b" %b HTTP/%b" % (self.url, self.parser.get_http_version().encode())
            head = [line, *(b"%b: %b" % header for header in self.headers if header[0] != b"upgrade")]
            self.parser = httptools.HttpRequestParser(self)
            self._feed(b"\r\n".join([*head, b"", data[offer.args[0] :]]))

    def _refuse(self) -> None:
        """Respond with 400, unless requests before the invalid one are being answered."""
        self.logger.warning(INVALID)
        self._is_invalid = True
        if self._is_in_body and self.pipeline:
            self.pipeline.popleft()  # the request received last, whose body is invalid
        elif self._is_in_body or not self._is_answering():
            if self._is_in_body and self.cycle.response_started:
                self.transport.close()
            else:
                self.send_400_response(INVALID)
            self._disconnect()

    def _disconnect(self) -> None:
        """Tell the running request that its client is gone."""
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
