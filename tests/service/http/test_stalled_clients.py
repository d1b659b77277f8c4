"""Clients that begin a body and stall, on real sockets: they cost the others nothing and are closed soon."""

import select
import socket
import threading
import time
from contextlib import ExitStack

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.http.server import http_config, listen
from service.settings import Settings
from tests.service.fakes import picture

N_STALLED = 256
HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture
def address(model, store):
    """A service with a window of 1 s for the rate of a body."""
    settings = Settings(store_poll_s=0)
    with pytest.MonkeyPatch.context() as patch, listen("127.0.0.1", 0) as listener:
        for module in ("body", "connections.timeouts"):
            patch.setattr(f"service.http.{module}.RATE_WINDOW_S", 1.0)
        server = uvicorn.Server(http_config(create_app(settings, model, store), settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join(30)


@pytest.mark.parametrize(
    ("path", "status"),
    [(b"/classify/paint", 408), (b"/domains/x/versions", 408), (b"/classify", 415), (b"/classify/nowhere", 404)],
)
def test_256_stalled_bodies_cost_a_good_client_nothing_and_are_closed(address, path, status):
    with ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(N_STALLED)]
        for connection in stalled:
            connection.sendall(HEAD % path + bytes(50))
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=20, trust_env=False) as client:
            answers = [client.post("/classify/paint", content=picture()) for _ in range(5)]
        deadline_s = time.monotonic() + 20
        received = [read_until_closed(connection, deadline_s) for connection in stalled]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert {answer[:12] for answer in received} == {b"HTTP/1.1 %d" % status}


def read_until_closed(connection, deadline_s):
    """All bytes until the server closes the connection, which must be before the deadline."""
    received = b""
    while select.select([connection], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        part = connection.recv(4096)
        if not part:
            return received
        received += part
    raise AssertionError("The connection is still open.")
