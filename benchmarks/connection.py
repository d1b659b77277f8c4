"""One connection of the load generator, kept alive from request to request.

Reading answers must not cost what the server needs, since the generator runs on the same machine: all connections share
one thread, and a parser in C takes the answers apart.
"""

import asyncio
import http
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

IDLE_S = 2.0
"""A connection that nobody used for longer is opened anew: servers close idle ones, and that is no failure."""


@dataclass
class Reply:
    """An answer.

    Attributes:
        status: of HTTP; 0 for a failure.
        body: for a failure, what happened.
        retry_after: the header.
        done_s: when it was whole.
    """

    status: int = 0
    body: bytes = b""
    retry_after: str = ""
    done_s: float = 0.0


class Connection:
    """Sends one request at a time, over a connection that is made when it is needed.

    Args:
        url: of the server, without a path.
        timeout_s: a request without an answer by then has failed.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._name = parts.hostname or "127.0.0.1", parts.port or 80, parts.netloc
        self._timeout_s = timeout_s
        self._wire: _Wire | None = None
        self._used_s = 0.0

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        """Send one request and wait for its answer; a failure has status 0 and says in its body what happened."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._name}", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        try:
            wire = await self._open()
            reply = await wire.exchange(head.encode("latin-1") + body, self._timeout_s)
        except OSError as error:
            self.close()
            reply = Reply(body=repr(error).encode(), done_s=time.monotonic())
        self._used_s = reply.done_s
        return reply

    def close(self) -> None:
        """Hang up."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _open(self) -> "_Wire":
        if self._wire is not None and (self._wire.is_closed or time.monotonic() - self._used_s > IDLE_S):
            self.close()
        if self._wire is None:
            connecting = asyncio.get_running_loop().create_connection(_Wire, self._host, self._port)
            self._wire = (await asyncio.wait_for(connecting, self._timeout_s))[1]
        return self._wire


class _Wire(asyncio.Protocol):
    """A socket and the answer that comes over it."""

    def __init__(self) -> None:
        self.is_closed = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reply = Reply()
        self._answered: asyncio.Future[Reply] | None = None

    async def exchange(self, request: bytes, timeout_s: float) -> Reply:
        """Send a request and wait for its answer.

        Raises:
            OSError: the server hung up, or did not answer in time, or not in HTTP.
        """
        if self._transport is None:
            raise ConnectionError("not connected")
        loop = asyncio.get_running_loop()
        self._reply = Reply()
        self._answered = loop.create_future()
        alarm = loop.call_later(timeout_s, self._fail, TimeoutError("no answer in time"))
        self._transport.write(request)
        try:
            return await self._answered
        finally:
            alarm.cancel()

    def close(self) -> None:
        """Hang up."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's: note where to write."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Asyncio's: take in a piece of the answer."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionError(f"no answer in HTTP/1.1: {error!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's: an answer that has not come will not come."""
        self.is_closed = True
        self._fail(exc or ConnectionResetError("the server hung up before it had answered"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's: note when to come back."""
        if name.lower() == b"retry-after":
            self._reply.retry_after = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        """The parser's: note a part of the body."""
        self._reply.body += part

    def on_message_complete(self) -> None:
        """The parser's: the answer is whole, unless it only says that one will come."""
        reply, self._reply = self._reply, Reply()
        reply.done_s = time.monotonic()
        reply.status = self._parser.get_status_code()
        if reply.status < http.HTTPStatus.OK:
            return
        if not self._parser.should_keep_alive():
            self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(reply)

    def _fail(self, error: Exception) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
