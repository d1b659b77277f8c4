"""Limits, ambiguous requests, pipelining and offers to upgrade, on real sockets."""

import random
import socket
import time
from itertools import pairwise

import pytest

from service.http.connections.strict import MAX_HEAD_BYTES, MAX_PIPELINED
from tests.service.http.connections.echo import (
    GET,
    HOST,
    IN_CHUNKS,
    MAX_READ_BYTES,
    OFFER,
    SLOW,
    echoed,
    handled,
    is_refused,
    responses,
    serving,
    statuses,
)


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
