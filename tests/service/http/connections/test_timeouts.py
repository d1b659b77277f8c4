"""Slow clients on real sockets: heads, bodies and readers."""

import socket
import time
from contextlib import suppress

import httpx
import pytest

from tests.service.http.connections.echo import GET, HOST, LARGE_BYTES, serving, statuses


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
