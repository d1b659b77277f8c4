"""What a client may do on a connection, and for how long: real sockets, and an application that says what it got."""

import asyncio
import json
import random
import socket
import threading
import time
from contextlib import contextmanager
from itertools import pairwise

import httpx
import pytest
import uvicorn

from service.http.protocol import MAX_HEAD_BYTES, MAX_WAITING_REQUESTS
from service.http.server import http_config, listen
from service.settings import Settings

HOST = b"Host: x\r\n"
asked = []


async def application(scope, receive, send):
    """Answers 204 without reading a body; under /echo with what it read; under /slow after a while.

    Notes who asked in `asked`, and under /wait who hung up.
    """
    asked.append(scope["path"])
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    body, more = b"", scope["path"] in {"/echo", "/wait"}
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            asked.append("gone")
            return
        body, more = body + message["body"], message["more_body"] or scope["path"] == "/wait"
    if scope["path"] != "/echo":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    found = {
        "body": body.decode(),
        "query": scope["query_string"].decode(),
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
    }
    data = json.dumps(found).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})


@contextmanager
def serving():
    """The server's protocol around that application: 0.5 s between requests, 1.2 s for what nobody reads of a body."""
    asked.clear()
    config = http_config(application, Settings(max_body_s=1.2))
    config.lifespan, config.timeout_keep_alive = "off", 0.5
    with listen("127.0.0.1", 0) as listener:
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def bare_server():
    """With all the time in the world for a head: what is hung up on has been refused."""
    with serving() as address:
        yield address


@pytest.fixture
def hasty_server(monkeypatch):
    """With 0.3 s for a head."""
    monkeypatch.setattr("service.http.protocol.HEAD_WITHIN_S", 0.3)
    with serving() as address:
        yield address


@pytest.mark.parametrize("piece", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_does_not_finish_its_headers_is_hung_up_on(hasty_server, piece):
    with socket.create_connection(hasty_server, timeout=5) as silent:
        started_s = time.monotonic()
        silent.sendall(piece)
        assert silent.recv(10) == b""
        assert 0.2 < time.monotonic() - started_s < 3


def dribble(connection):
    for _ in range(50):
        connection.sendall(b"x")
        time.sleep(0.05)


def test_a_client_that_dribbles_its_headers_is_hung_up_on(hasty_server):
    broken = pytest.raises((BrokenPipeError, ConnectionResetError))
    with socket.create_connection(hasty_server, timeout=5) as connection, broken:
        dribble(connection)


def test_a_slow_answer_and_a_connection_in_use_are_left_alone(hasty_server):
    host, port = hasty_server
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        for path in ("/slow", "/", "/slow", "/"):
            assert client.get(path).status_code == 204
            time.sleep(0.1)


def test_who_is_answered_early_may_send_the_rest_of_the_body_and_ask_again(hasty_server):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n"
    with socket.create_connection(hasty_server, timeout=5) as connection:
        for _ in range(2):
            connection.sendall(head + b"0123456789")
            assert connection.recv(4096).startswith(b"HTTP/1.1 204")
            time.sleep(0.6)  # longer than a head may take
            connection.sendall(b"0123456789")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 204")
        assert connection.recv(10) == b""  # and then, as ever, not for ever


def test_who_never_sends_the_rest_of_a_body_is_hung_up_on(hasty_server):
    with socket.create_connection(hasty_server, timeout=5) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n0123456789")
        assert connection.recv(4096).startswith(b"HTTP/1.1 204")
        assert connection.recv(10) == b""


def answers_of(address, *pieces, pause_s=0.0):
    """All that comes back for what is sent piece by piece, until the server hangs up."""
    with socket.create_connection(address, timeout=5) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (BrokenPipeError, ConnectionResetError):
            return b""


def echoed(address, *pieces, pause_s=0.0):
    """What the application got, request by request."""
    text = answers_of(address, *pieces, pause_s=pause_s).decode()
    assert text.count("HTTP/1.1") == text.count("HTTP/1.1 200"), text
    return [json.loads(line[: line.rindex("}") + 1]) for line in text.split("\r\n") if line.startswith("{")]


def is_refused(answer):
    """400 as the one answer, or a connection that was closed under a client still sending; nobody was asked."""
    return not asked and (answer == b"" or (answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1 ") == 1))


def head_of(size):
    start = b"GET /echo HTTP/1.1\r\n" + HOST + b"X-A: "
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


def test_a_head_within_the_limit_is_read(bare_server):
    (got,) = echoed(bare_server, head_of(MAX_HEAD_BYTES))
    assert list(got["headers"]) == ["host", "x-a"]


@pytest.mark.parametrize("n_pieces", [1, 2, 40])
@pytest.mark.parametrize(
    "head", [head_of(MAX_HEAD_BYTES + 200), b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"]
)
def test_a_head_over_the_limit_is_refused_however_it_arrives(bare_server, head, n_pieces):
    size = -(-len(head) // n_pieces)
    pieces = [head[start : start + size] for start in range(0, len(head), size)]
    assert is_refused(answers_of(bare_server, *pieces, pause_s=0.002))


GET = b"GET /echo HTTP/1.1\r\n" + HOST
IN_CHUNKS = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


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
def test_what_never_ends_is_refused_once_it_is_over_the_limit(bare_server, start, endless):
    piece = endless * (4000 // len(endless))
    answer = answers_of(bare_server, start, *[piece] * 8, pause_s=0.01)
    assert answer == b"" or (answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1 ") == 1)
    assert asked in ([], ["/echo"], ["/echo", "gone"])


def test_a_body_in_the_smallest_chunks_is_a_body(bare_server):
    chunks = b"1\r\nx\r\n" * 20_000
    pieces = [chunks[start : start + 5003] for start in range(0, len(chunks), 5003)]
    (got,) = echoed(bare_server, IN_CHUNKS, *pieces, b"0\r\n\r\n")
    assert got["body"] == "x" * 20_000


def test_what_follows_a_body_in_chunks_becomes_no_header(bare_server):
    (got,) = echoed(bare_server, IN_CHUNKS + b"2\r\nab\r\n", b"0\r\nAuthorization: x\r\n\r\n", pause_s=0.05)
    assert (got["body"], list(got["headers"])) == ("ab", ["host", "transfer-encoding"])


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        HOST * 2,
        HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n",
        HOST + b"Content-Length: -3\r\n",
        HOST + b"Content-Length: 0x3\r\n",
        HOST + b"Transfer-Encoding: chunked, x\r\n",
        HOST + b"Transfer-Encoding: gzip, chunked\r\n",
        HOST + b"Content-Length : 3\r\n",
        HOST + b"X-A: b\r\n Content-Length: 3\r\n",
        HOST + b"X-A: \0\r\n",
        b"Host: x\nX-A: b\r\n",
    ],
)
def test_a_head_that_two_servers_could_read_differently_is_refused(bare_server, lines):
    assert is_refused(answers_of(bare_server, b"POST /echo HTTP/1.1\r\n" + lines + b"\r\n"))


@pytest.mark.parametrize("line", [b"CONNECT x:80 HTTP/1.1", b"GET / HTTP/2.0", b"\x16\x03\x01", b"GET x"])
def test_what_is_no_request_to_this_server_is_refused(bare_server, line):
    assert is_refused(answers_of(bare_server, line + b"\r\n" + HOST + b"\r\n"))


def test_an_old_client_need_not_say_whom_it_asks(bare_server):
    (got,) = echoed(bare_server, b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nab")
    assert got["body"] == "ab"


@pytest.mark.parametrize("line", [b"Host: x \t", b"X-Request-Id:  a  ", b"Content-Encoding:identity\t "])
def test_the_space_around_a_value_is_no_part_of_it(bare_server, line):
    host = b"" if line.startswith(b"Host") else HOST
    (got,) = echoed(bare_server, b"GET /echo HTTP/1.1\r\n" + host + line + b"\r\n\r\n")
    name, _, value = line.decode().partition(":")
    assert got["headers"][name.lower()] == value.strip()


OFFER = HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
OFFERS = {
    "with a length": b"POST /echo HTTP/1.1\r\n" + OFFER + b"Content-Length: 2\r\n\r\nab",
    "in chunks": b"POST /echo HTTP/1.1\r\n"
    + OFFER
    + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_a_client_that_would_rather_speak_http2_is_answered_in_the_one_it_began_with(bare_server, offer):
    for pieces in ([offer, offer], [offer + offer], [offer[:50], offer[50:-1], offer[-1:] + offer]):
        got = echoed(bare_server, *pieces, pause_s=0.05)
        assert [(each["body"], "upgrade" in each["headers"]) for each in got] == [("ab", False)] * 2


def test_a_client_that_waits_to_be_told_to_go_on_is_told_so_beside_its_offer(bare_server):
    head = b"POST /echo HTTP/1.1\r\n" + OFFER + b"Expect: 100-continue \r\nContent-Length: 2\r\n\r\n"
    with socket.create_connection(bare_server, timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ab")
        assert b'"body": "ab"' in b"".join(iter(lambda: connection.recv(4096), b""))


def requests(n):
    return [
        b"POST /echo?%d HTTP/1.1\r\n" % index + HOST + b"Content-Length: 3\r\n\r\n%03d" % index for index in range(n)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_requests_sent_without_waiting_are_answered_in_their_order_however_they_are_cut(bare_server, seed):
    rng = random.Random(seed)  # noqa: S311
    stream = b"".join(requests(20))
    cuts = [0, *sorted(rng.sample(range(1, len(stream)), 12)), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(cuts)]
    got = echoed(bare_server, *pieces, pause_s=0.005)
    assert [(one["query"], one["body"]) for one in got] == [(str(index), f"{index:03d}") for index in range(20)]


SLOW = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"


def statuses(answer):
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def test_of_more_requests_than_may_wait_those_that_may_are_answered(bare_server):
    answer = answers_of(bare_server, SLOW + b"".join(requests(MAX_WAITING_REQUESTS + 5)))
    assert statuses(answer) == [204] + [200] * MAX_WAITING_REQUESTS


@pytest.mark.parametrize(
    "rest",
    [
        b"\x16\x03\x01" * 10,
        b"GET /echo HTTP/1.1\r\n\r\n",
        b"a: b\r\n" * 10_000,
        IN_CHUNKS + b"x\r\n",
        OFFERS["in chunks"].replace(b"1\r\na", b"x\r\na"),
    ],
)
def test_what_cannot_be_read_spoils_no_request_before_it(bare_server, rest):
    assert statuses(answers_of(bare_server, SLOW + rest, *[b"x" * 10_000] * 4, pause_s=0.01)) == [204]
    assert asked == ["/slow"]


def test_a_request_whose_own_body_breaks_off_is_refused_and_told_so(bare_server):
    assert statuses(answers_of(bare_server, IN_CHUNKS + b"2\r\nab\r\n", b"x\r\n", pause_s=0.1)) == [400]
    assert asked == ["/echo", "gone"]


def test_who_hangs_up_is_noticed_even_with_more_requests_sent_ahead(bare_server):
    with socket.create_connection(bare_server, timeout=5) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + SLOW + SLOW)
    deadline_s = time.monotonic() + 5
    while asked != ["/wait", "gone"]:
        assert time.monotonic() < deadline_s, asked
        time.sleep(0.01)
    time.sleep(0.1)
    assert asked == ["/wait", "gone"], "what nobody will read is not begun"


def test_the_log_does_not_repeat_what_a_client_says(bare_server, caplog):
    for line in (b"GET http://x:99999/secret HTTP/1.1", b"secret / HTTP/1.1", b"GET /secret HTTP/1.1\r\nsecret secret"):
        assert is_refused(answers_of(bare_server, line + b"\r\n" + HOST + b"\r\n"))
    reasons = [record.reason for record in caplog.records if record.msg == "request.malformed"]
    assert len(reasons) == 3
    assert not any("secret" in reason for reason in reasons)
