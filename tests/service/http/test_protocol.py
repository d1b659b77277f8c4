"""The HTTP protocol on real sockets: deadlines, limits and ambiguous requests, in front of a small application."""

import asyncio
import json
import random
import socket
import threading
import time
from contextlib import contextmanager, suppress
from itertools import pairwise

import httpx
import pytest
import uvicorn

from service.http.connections.strict import MAX_HEAD_BYTES, MAX_PIPELINED
from service.http.server import http_config, listen
from service.settings import Settings

HOST = b"Host: x\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HOST
SLOW = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
IN_CHUNKS = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
OFFER = HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
MAX_READ_BYTES = 256 * 1024
"""asyncio's largest read."""
LARGE_BYTES = 32 * 2**20
"""More than the buffers of a connection."""
handled = []


async def application(scope, receive, send):
    """Responds with 204 before it reads a body; under /echo with what it read; under /slow after 0.6 s; under /large
    with `LARGE_BYTES`.

    Notes paths in `handled`, and a disconnect under /wait.
    """
    handled.append(scope["path"])
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    body, more = b"", scope["path"] in {"/echo", "/wait"}
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            handled.append("disconnect")
            return
        body, more = body + message["body"], message["more_body"] or scope["path"] == "/wait"
    if scope["path"] == "/large":
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE_BYTES)]}
        )
        await send({"type": "http.response.body", "body": bytes(LARGE_BYTES)})
        return
    if scope["path"] != "/echo":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    found = {"body": body.decode(), "query": scope["query_string"].decode(), "headers": headers}
    data = json.dumps(found).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})


@contextmanager
def serving(**changes):
    """The protocol in front of that application: 0.5 s between requests, 1.2 s for the rest of a body."""
    handled.clear()
    config = http_config(application, Settings(**{"max_body_s": 1.2} | changes))
    config.lifespan, config.timeout_keep_alive = "off", 0.5
    with listen("127.0.0.1", 0) as listener:
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def server():
    """The server with its 10 s for a head: a connection that closes earlier was refused."""
    with serving() as address:
        yield address


@pytest.fixture
def hasty_server(monkeypatch):
    """The server with 0.3 s for a head."""
    monkeypatch.setattr("service.http.connections.timeouts.HEAD_TIMEOUT_S", 0.3)
    with serving() as address:
        yield address


def responses(address, *pieces, pause_s=0.0):
    """All bytes that come back for what is sent piece by piece, until the server closes the connection."""
    with socket.create_connection(address, timeout=5) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (BrokenPipeError, ConnectionResetError):
            return b""


def echoed(address, *pieces, pause_s=0.0):
    """What the application read, request by request."""
    text = responses(address, *pieces, pause_s=pause_s).decode()
    assert statuses(text.encode()) == [200] * text.count("HTTP/1.1 "), text
    return [json.loads(line[: line.rindex("}") + 1]) for line in text.split("\r\n") if line.startswith("{")]


def statuses(response):
    return [int(part[:3]) for part in response.split(b"HTTP/1.1 ")[1:]]


def is_refused(response):
    """One 400, or a connection that was closed while the client was still sending; the application saw nothing."""
    return not handled and (response == b"" or statuses(response) == [400])


@pytest.mark.parametrize("piece", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_whose_head_does_not_arrive_is_closed(hasty_server, piece):
    with socket.create_connection(hasty_server, timeout=5) as silent:
        started_s = time.monotonic()
        silent.sendall(piece)
        assert silent.recv(10) == b""
        assert time.monotonic() - started_s > 0.2


def is_closed_while_trickling(connection):
    try:
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.02)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_a_connection_whose_head_trickles_in_is_closed(hasty_server):
    with socket.create_connection(hasty_server, timeout=5) as connection:
        assert is_closed_while_trickling(connection)


def test_a_second_head_that_trickles_in_is_closed_too(hasty_server):
    with socket.create_connection(hasty_server, timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        assert statuses(connection.recv(4096)) == [204]
        assert is_closed_while_trickling(connection)


def test_slow_responses_and_connections_in_use_stay_open(hasty_server):
    host, port = hasty_server
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        for path in ("/slow", "/", "/slow", "/"):
            assert client.get(path).status_code == 204


def test_the_rest_of_a_body_may_follow_its_response_and_then_another_request(hasty_server):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n"
    with socket.create_connection(hasty_server, timeout=5) as connection:
        for _ in range(2):
            connection.sendall(head + b"0123456789")
            assert statuses(connection.recv(4096)) == [204]
            time.sleep(0.6)  # longer than a head or an idle connection may take
            connection.sendall(b"0123456789")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert statuses(connection.recv(4096)) == [204]
        assert connection.recv(10) == b""


def test_a_connection_whose_body_never_ends_is_closed(hasty_server):
    with socket.create_connection(hasty_server, timeout=5) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n0123456789")
        assert statuses(connection.recv(4096)) == [204]
        assert connection.recv(10) == b""


def test_the_rest_of_a_body_that_stalls_is_not_awaited_until_its_time_is_over(monkeypatch):
    monkeypatch.setattr("service.http.connections.timeouts.RATE_WINDOW_S", 0.3)
    with serving(max_body_s=60.0) as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + bytes(10_000))
        assert statuses(connection.recv(4096)) == [204]
        assert connection.recv(10) == b""


def test_the_rest_of_a_body_that_keeps_its_rate_may_take_several_windows(monkeypatch):
    monkeypatch.setattr("service.http.connections.timeouts.RATE_WINDOW_S", 1.0)
    with serving(max_body_s=60.0, min_body_rate=10) as address, socket.create_connection(address, 10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1100\r\n\r\n" + bytes(100))
        assert statuses(connection.recv(4096)) == [204]
        for _ in range(10):
            time.sleep(0.25)
            connection.sendall(bytes(100))
        connection.sendall(GET + b"\r\n")
        assert statuses(connection.recv(4096)) == [200]


def reading_large(address):
    """A connection that has requested the large response."""
    connection = socket.create_connection(address, timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    connection.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    return connection


def test_a_client_that_does_not_read_its_response_is_disconnected(monkeypatch):
    monkeypatch.setattr("service.http.connections.timeouts.RATE_WINDOW_S", 0.3)
    with serving() as address, reading_large(address) as connection:
        time.sleep(3)
        n_received = 0
        with suppress(ConnectionResetError):
            while part := connection.recv(2**20):
                n_received += len(part)
    assert n_received < LARGE_BYTES


def test_a_client_that_reads_its_response_slowly_gets_all_of_it(monkeypatch):
    monkeypatch.setattr("service.http.connections.timeouts.RATE_WINDOW_S", 1.0)
    with serving(min_body_rate=10) as address, reading_large(address) as connection:
        n_received = 0
        for pause_s in (*[0.25] * 10, *[0] * LARGE_BYTES):
            time.sleep(pause_s)
            part = connection.recv(2**20)
            if not part:
                break
            n_received += len(part)
    assert n_received > LARGE_BYTES


def head_of(size):
    start = GET + b"X-A: "
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


def test_a_head_within_the_limit_is_read(server):
    (got,) = echoed(server, head_of(MAX_HEAD_BYTES))
    assert list(got["headers"]) == ["host", "x-a"]


@pytest.mark.parametrize(
    "head",
    [
        head_of(MAX_HEAD_BYTES + 64),
        head_of(2 * MAX_READ_BYTES),
        b"GET /" + b"a" * 2 * MAX_READ_BYTES + b" HTTP/1.1\r\n",
    ],
)
def test_a_head_over_the_limit_is_refused(server, head):
    assert is_refused(responses(server, head))


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"", b"\r\n"),
        (b"GET /", b"a"),
        (GET + b"X-A: ", b"a"),
        (GET, b"a: b\r\n"),
        (IN_CHUNKS + b"3;", b"x"),
        (IN_CHUNKS + b"0\r\nX-A: ", b"x"),
        (IN_CHUNKS + b"0\r\n", b"a: b\r\n"),
    ],
)
def test_parts_that_never_end_are_refused_over_the_limit(server, start, endless):
    piece = endless * (4000 // len(endless))
    response = responses(server, start, *[piece] * 8, pause_s=0.01)
    assert response == b"" or statuses(response) == [400]
    assert handled in ([], ["/echo"], ["/echo", "disconnect"])


def test_a_body_in_the_smallest_chunks_is_a_body(server):
    chunks = b"1\r\nx\r\n" * 20_000
    pieces = [chunks[start : start + 5003] for start in range(0, len(chunks), 5003)]
    (got,) = echoed(server, IN_CHUNKS, *pieces, b"0\r\n\r\n")
    assert got["body"] == "x" * 20_000


def test_small_chunks_of_all_connections_are_limited_together_and_large_ones_are_not(monkeypatch):
    monkeypatch.setattr("service.http.connections.strict.MAX_SMALL_CHUNKS", 100)
    monkeypatch.setattr("service.http.connections.strict.SMALL_CHUNKS_PER_S", 0.001)
    small, large = b"1\r\nx\r\n" * 60, b"800\r\n" + b"x" * 2048 + b"\r\n"
    with serving() as address:
        found = [statuses(responses(address, IN_CHUNKS, part + b"0\r\n\r\n")) for part in (small, small, large * 200)]
    assert found == [[200], [400], [200]]


def test_trailers_become_no_headers(server):
    (got,) = echoed(server, IN_CHUNKS + b"2\r\nab\r\n", b"0\r\nAuthorization: x\r\n\r\n", pause_s=0.05)
    assert (got["body"], list(got["headers"])) == ("ab", ["host", "transfer-encoding"])


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        HOST * 2,
        HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n",
        HOST + b"Content-Length: -3\r\n",
        HOST + b"Content-Length: 0x3\r\n",
        HOST + b"Transfer-Encoding: chunked, x\r\n",
        HOST + b"Transfer-Encoding: gzip, chunked\r\n",
        HOST + b"Content-Length : 3\r\n",
        HOST + b"X-A: \0\r\n",
        HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"X-A: a\n",
        HOST + b"X-A: a\r\n b\r\n",
    ],
)
def test_a_head_that_two_servers_could_read_differently_is_refused(server, lines):
    assert is_refused(responses(server, b"POST /echo HTTP/1.1\r\n" + lines + b"\r\n"))


@pytest.mark.parametrize(
    "line",
    [
        b"\x16\x03\x01",
        b"GET x",
        b"GET / HTTP/1.1 x",
        b"G\xffT / HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET http://y/ HTTP/1.1",
        b"GET /a#b HTTP/1.1",
        b"CONNECT x:80 HTTP/1.1",
    ],
)
def test_bytes_that_are_no_request_are_refused_without_repeating_them_in_the_log(server, line, caplog):
    assert is_refused(responses(server, line + b"\r\n" + HOST + b"\r\n"))
    assert {record.getMessage() for record in caplog.records} == {"Invalid HTTP request received."}


def test_http_1_0_needs_no_host(server):
    (got,) = echoed(server, b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nab")
    assert got["body"] == "ab"


@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"]
)
def test_an_offer_to_upgrade_to_http2_is_ignored_and_the_body_read(server, body):
    request = b"POST /echo HTTP/1.1\r\n" + OFFER + body
    for pieces in ([request, request], [request + request], [request[:50], request[50:-1], request[-1:] + request]):
        assert [got["body"] for got in echoed(server, *pieces, pause_s=0.05)] == ["ab", "ab"]


def test_expect_100_continue_is_answered(server):
    head = b"POST /echo HTTP/1.1\r\n" + OFFER + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with socket.create_connection(server, timeout=5) as connection:
        connection.sendall(head)
        assert statuses(connection.recv(4096)) == [100]
        connection.sendall(b"ab")
        assert b'"body": "ab"' in b"".join(iter(lambda: connection.recv(4096), b""))


def requests(n):
    return [
        b"POST /echo?%d HTTP/1.1\r\n" % index + HOST + b"Content-Length: 3\r\n\r\n%03d" % index for index in range(n)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_pipelined_requests_are_answered_in_order_wherever_they_are_cut(server, seed):
    rng = random.Random(seed)  # noqa: S311
    stream = b"".join(requests(40))
    cuts = [0, *sorted(rng.sample(range(1, len(stream)), 12)), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(cuts)]
    got = echoed(server, *pieces, pause_s=0.005)
    assert [(one["query"], one["body"]) for one in got] == [(str(index), f"{index:03d}") for index in range(40)]


@pytest.mark.parametrize("rest", [b"\x16\x03\x01" * 10, b"GET /echo HTTP/1.1\r\n\r\n"])
def test_a_malformed_request_leaves_the_one_before_it_alone(server, rest):
    assert statuses(responses(server, SLOW + rest)) == [204, 400]
    assert handled == ["/slow"]


def test_a_malformed_body_leaves_the_requests_before_it_alone(server):
    assert statuses(responses(server, SLOW + SLOW + IN_CHUNKS + b"x\r\n")) == [204, 204, 400]
    assert handled == ["/slow", "/slow"]


def test_more_pipelined_requests_than_the_limit_are_refused_after_the_others(server):
    short = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    assert statuses(responses(server, SLOW + short * (MAX_PIPELINED + 1))) == [204] * (1 + MAX_PIPELINED) + [400]


def test_nothing_is_read_after_a_request_that_closes_the_connection(server):
    close = SLOW.replace(HOST, HOST + b"Connection: close\r\n")
    assert statuses(responses(server, close + SLOW)) == [204]
    assert handled == ["/slow"]


def test_a_malformed_body_is_refused_and_ends_its_request(server):
    assert statuses(responses(server, IN_CHUNKS + b"2\r\nab\r\n", b"x\r\n", pause_s=0.1)) == [400]
    assert handled == ["/echo", "disconnect"]


def test_a_malformed_body_after_its_response_closes_the_connection(server, caplog):
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert statuses(responses(server, head, b"x\r\n", pause_s=0.1)) == [204]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_disconnect_is_noticed_and_requests_sent_ahead_are_dropped(server):
    with socket.create_connection(server, timeout=5) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + SLOW + SLOW)
    deadline_s = time.monotonic() + 5
    while handled != ["/wait", "disconnect"]:
        assert time.monotonic() < deadline_s, handled
        time.sleep(0.01)
    time.sleep(0.1)
    assert handled == ["/wait", "disconnect"]
