"""Servers with the protocol."""

import pytest

from tests.service.http.connections.echo import serving


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
