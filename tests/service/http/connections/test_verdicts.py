"""Raw requests as this server and h11 read them: what both accept they read alike, all other differences are listed."""

import asyncio
import random
import re
from itertools import pairwise

import h11
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.http.connections.strict import MAX_HEAD_BYTES
from service.http.server import http_config
from service.settings import Settings
from tests.service.http.connections.raw_requests import ABC, CHUNKED, CORPUS, HOST, START


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written, self._is_closing = b"", False

    def write(self, data):
        self.written += data

    def close(self):
        self._is_closing = True

    abort = close

    def is_closing(self):
        return self._is_closing

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        pass

    resume_reading = pause_reading


class Reader:
    """The protocol in front of an application that keeps its requests."""

    def __init__(self):
        self._config = http_config(self, Settings())
        self._config.load()
        self._found = []

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        target = (scope["raw_path"], scope["query_string"])
        self._found.append((scope["method"].encode(), *target, scope["headers"], body))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def read(self, *pieces):
        """Complete requests, and whether what follows is rejected."""
        self._found = found = []
        protocol = self._config.http_protocol_class(config=self._config, server_state=ServerState(), app_state={})
        transport = Transport()
        protocol.connection_made(transport)
        for piece in pieces:
            if not transport.is_closing():
                protocol.data_received(piece)
                await turns(protocol)
        protocol.connection_lost(None)
        await turns(protocol)
        return [as_compared(*one) for one in found], b"HTTP/1.1 400" in transport.written


async def turns(protocol):
    """Run the event loop until the requests are answered, or wait for more."""
    for _ in range(6 * (2 + len(protocol.pipeline))):
        await asyncio.sleep(0)


def as_compared(method, path, query, headers, body):
    """A request without the offer to upgrade, which this server removes, and with lower-case codings, as h11 has it."""
    is_offer = any(name == b"connection" and b"upgrade" in value.lower() for name, value in headers)
    kept = [one for one in headers if one[0] != b"upgrade" or not is_offer]
    return (
        method,
        path,
        query,
        [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in kept],
        body,
    )


def read_with_h11(raw):
    """The same by h11 alone."""
    connection = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
    connection.receive_data(raw)
    found, request, body = [], None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return found, True
        if isinstance(event, h11.Request):
            path, _, query = event.target.partition(b"?")
            request, body = (event.method, path, query, list(event.headers)), b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            found.append(as_compared(*request, body))
            connection.send(h11.Response(status_code=404, headers=[(b"content-length", b"0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                return found, False
            connection.start_next_cycle()
        else:
            return found, False


@pytest.fixture(scope="module")
def verdicts():
    """Raw bytes, what this server reads, and what h11 reads."""

    async def read():
        reader = Reader()
        return [(raw, await reader.read(raw), read_with_h11(raw)) for raw in CORPUS]

    return asyncio.run(read())


MORE_LENIENT = {
    "a blank line before a request, which RFC 9112 has servers ignore": rb"(?:\A|\r\n\r\n|abc)[\r\n]+[A-Z]+ ",
    "several spaces in the request line": rb"[A-Z]+  +|  +HTTP/",
    "OPTIONS of RTSP and methods of RTSP and ICE, as HTTP/1.0": rb" (?:RTSP|ICE)/",
    "more than 20 digits of a chunk's size, all of them zeros but the last": rb"\r\n0{20}",
}
"""What this server accepts and h11 does not: nothing of it moves the end of a request."""

STRICTER = {
    "a line that ends without a carriage return": rb"(?<!\r)\n",
    "a folded header": rb"\r\n[ \t]",
    "two lengths": rb"(?is)content-length:.*content-length:|content-length: *\d+,",
    "a length and chunks": rb"(?is)content-length:.*transfer-encoding:|transfer-encoding:.*content-length:",
    "chunks in HTTP/1.0": rb"(?is)HTTP/1\.0\r\n.*transfer-encoding:",
    "a tab after the coding, or a coding in a trailer": rb"chunked\t|\r\n0\r\nTransfer-Encoding:",
    "a space after a chunk's size": rb"\r\n\d[ \t]\r",
    "an invalid chunk extension": rb"\d;\r|;a(?:=[a-z])*[\r\xff=][^\n]",
    "another version than 1.0 and 1.1": rb"HTTP/(?!1\.[01]\r)",
    "another target than a path": rb"\A\s*\S+ (?!/)|\A\s*\S+ [^ ]*#",
    "an unknown method": rb"\A\s*(?!(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) )|[^\r\n](?<![A-Z])(?:GET|POST) ",
    "a control character": rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "requests behind Proxy-Connection: close": rb"Proxy-Connection",
}
"""What this server rejects and h11 does not."""


def is_listed(raw, reasons):
    return any(re.search(pattern, raw) for pattern in reasons.values())


def test_what_both_accept_they_read_alike(verdicts):
    for raw, (ours, _), (reference, _) in verdicts:
        assert all(one == other for one, other in zip(ours, reference, strict=False)), raw


def test_what_this_server_alone_accepts_is_listed(verdicts):
    for raw, (ours, _), (reference, _) in verdicts:
        assert len(ours) <= len(reference) or is_listed(raw, MORE_LENIENT), raw


def test_what_this_server_alone_rejects_is_listed(verdicts):
    for raw, (ours, _), (reference, _) in verdicts:
        assert len(ours) >= len(reference) or is_listed(raw, STRICTER), raw


def test_every_reason_has_an_example(verdicts):
    lenient = [raw for raw, (ours, _), (reference, _) in verdicts if len(ours) > len(reference)]
    strict = [raw for raw, (ours, _), (reference, _) in verdicts if len(ours) < len(reference)]
    for examples, reasons in ((lenient, MORE_LENIENT), (strict, STRICTER)):
        assert [name for name, pattern in reasons.items() if not any(re.search(pattern, raw) for raw in examples)] == []


@pytest.mark.parametrize(
    "raw",
    [
        START + HOST * 2 + b"\r\n",
        START + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + ABC,
        START + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        START + HOST + CHUNKED + b"\r\n3\r\nabc\r\n0\r\nAuthorization: x\r\n\r\n",
    ],
)
def test_the_comparison_finds_what_uvicorns_own_protocol_lets_through(raw):
    reader = Reader()
    reader._config.http_protocol_class = HttpToolsProtocol
    ours, _ = asyncio.run(reader.read(raw))
    reference, _ = read_with_h11(raw)
    assert ours != reference


def test_requests_are_read_alike_wherever_they_are_cut(verdicts):
    rng = random.Random(0)  # noqa: S311

    async def read():
        reader = Reader()
        for raw, ours, _ in verdicts[::10]:
            cuts = [0, *sorted(rng.sample(range(1, len(raw)), 5)), len(raw)]
            assert await reader.read(*(raw[start:end] for start, end in pairwise(cuts))) == ours, raw
            assert await reader.read(*(raw[at : at + 1] for at in range(len(raw)))) == ours, raw

    asyncio.run(read())
