"""The real process: sockets, signals, exit status."""

import asyncio
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import torch

from prompt_store.store import Store
from service.access.key_file import add_key
from service.demo.process import free_port, wait_until_ready
from service.errors import SettingsError
from service.http.server import DrainingServer, http_config, listen, pending_connections
from service.server import load_keys, require_gpu_decoding
from service.settings import Settings
from tests.service.demo.demo_assets import write_assets
from tests.service.fakes import picture

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    return kept | {"OMP_NUM_THREADS": "1", "CASPL_DRAIN_DELAY_S": "1"} | changes


@pytest.fixture
def server(tmp_path):
    """A service process on a free port, with one live domain; killed if the test leaves it running."""
    assets = write_assets(tmp_path / "demo")
    port = free_port()
    command = [sys.executable, "-P", "-m", "caspl", "serve", "--demo", "--demo-assets", str(assets)]
    command += ["--random-weights", "--port", str(port), "--store", str(tmp_path / "store")]
    with (
        (tmp_path / "log").open("wb") as log,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client,
        subprocess.Popen(command, env=environment(CASPL_LOG_FORMAT="json"), stdout=log, stderr=log) as process,
    ):
        try:
            wait_until_ready(process, client, tmp_path / "log")
            yield process, client, port
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.slow
def test_a_terminated_service_says_so_answers_what_it_accepted_and_exits_with_zero(server, tmp_path):
    process, client, port = server
    body = picture(size=(64, 64))
    assert client.post("/classify/shelf", content=body).json()["version"] == 1

    with socket.create_connection(("127.0.0.1", port), timeout=10) as flood:
        flood.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40_000)
        assert flood.recv(100)[:12] in {b"", b"HTTP/1.1 400", b"HTTP/1.1 431"}

    head = f"POST /classify/tiles HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow, slow.makefile("rb") as reading:
        slow.sendall(head + body[:50])
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        draining = client.get("/readyz")
        assert (draining.status_code, draining.json()["reason"]) == (503, "draining")
        assert client.post("/classify/shelf", content=body).status_code == 200
        time.sleep(1.2)
        assert process.poll() is None
        slow.sendall(body[50:])
        answer = reading.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(15) == 0
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert not any("traceback" in event for event in events)
    assert {"server.started", "server.draining"} <= {event["event"] for event in events}
    assert Store.open(tmp_path / "store").live("shelf").version == 1


@pytest.mark.slow
def test_a_failed_start_logs_the_reason_in_json(tmp_path):
    command = [sys.executable, "-P", "-m", "caspl", "serve", "--host", "0.0.0.0", "--store", str(tmp_path / "store")]  # noqa: S104
    ended = subprocess.run(
        [*command, "--log-format", "json"], env=environment(), capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (line["event"], line["code"]) == ("command.failed", "keys_needed")
    assert "caspl keys new" in line["reason"]


def test_an_address_that_others_reach_needs_keys():
    with pytest.raises(SettingsError, match="caspl keys new"):
        load_keys(Settings(host="0.0.0.0"))  # noqa: S104
    assert load_keys(Settings()) == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])  # noqa: S104
def test_a_key_file_without_keys_does_not_open_the_door(tmp_path, host):
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="contains no keys") as refused:
        load_keys(Settings(host=host, keys_file=path))
    assert refused.value.code == "keys_needed"
    add_key(path, ["classify"], [])
    assert len(load_keys(Settings(host=host, keys_file=path))) == 1


def test_a_port_that_is_taken_is_told_plainly():
    with listen("127.0.0.1", 0) as taken, pytest.raises(SettingsError, match="it is in use"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_an_answer_in_two_packets_does_not_wait_for_an_acknowledgement():
    async def nagle_is_off(listener):
        seen = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, writer: seen.set_result(writer), sock=listener)
        with socket.create_connection(listener.getsockname()):
            writer = await seen
            value = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
        server.close()
        return value != 0

    with listen("127.0.0.1", 0) as listener:
        assert asyncio.run(nagle_is_off(listener))


def test_decoding_on_the_gpu_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="requires a CUDA device, but torch finds none"):
        require_gpu_decoding()


HANGING = """
import signal, sys, threading, time
from prompt_store.store import Store
from service import server
from service.settings import Settings
from tests.service.fakes import FakeModel

model = FakeModel()
server.load_model = lambda settings: model
settings = Settings(port=0, store=sys.argv[1], drain_delay_s=0, drain_timeout_s=0.5, store_poll_s=0)

def announce(context, address):
    stack = next(iter(context.table.states.values())).live.stack
    context.engine._all_cores.submit(context.engine._on_device, lambda: time.sleep(600))
    if sys.argv[2] == "waiting":
        row = server_row(stack)
        context.batcher.submit([row], key="a", tenant="paint", deadline_s=time.monotonic() + 600)
    signal.raise_signal(signal.SIGTERM)

def server_row(stack):
    import numpy as np
    from service.engine.engine import EngineRow
    return EngineRow(np.zeros((3, 16, 16), dtype=np.uint8), stack, 1)

sys.exit(server.run(settings, Store.open(settings.store), announce))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "status"), [("none", 0), ("waiting", 70)])
def test_a_device_that_hangs_does_not_keep_a_terminated_service_alive(store, rows, status):
    command = [sys.executable, "-c", HANGING, str(store.root), rows]
    ended = subprocess.run(command, env=environment(), capture_output=True, timeout=30, check=False)
    assert ended.returncode == status, ended.stderr.decode()


async def _fine(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"fine"})


async def started(listener, app=_fine):
    config = http_config(app, Settings(), n_accepts=1)
    config.lifespan = "off"
    server = DrainingServer(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    return server


@pytest.mark.anyio
async def test_who_has_connected_when_the_service_stops_is_answered_all_the_same():
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        server = await started(listener)
        clients = [socket.create_connection(address) for _ in range(20)]
        for client in clients:
            client.sendall(GET)
        await server.shutdown([listener])  # the loop has had no turn to accept any of them
        for client in clients:
            client.settimeout(5)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


@pytest.mark.anyio
async def test_a_connection_after_the_last_accept_is_refused_not_reset(monkeypatch):
    with listen("127.0.0.1", 0) as listener, socket.socket() as late:
        late.setblocking(False)
        address = listener.getsockname()

        def then_connect(listener):
            yield from pending_connections(listener)
            late.connect_ex(address)

        monkeypatch.setattr("service.http.server.pending_connections", then_connect)
        server = await started(listener)
        await server.shutdown([listener])
        assert select.select([], [late], [], 10)[1]
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.anyio
async def test_the_response_on_a_connection_just_accepted_when_the_server_stops_closes_it():
    with listen("127.0.0.1", 0) as listener:
        server = await started(listener)
        with socket.create_connection(listener.getsockname(), timeout=5) as client:
            client.sendall(GET)
            for _ in range(3):  # asyncio has accepted it, and has not yet called `connection_made`
                await asyncio.sleep(0)
            assert not server.server_state.connections
            await server.shutdown([listener])
            assert b"connection: close\r\n" in client.recv(4096)


@pytest.mark.anyio
async def test_a_connection_stays_open_after_a_response_whose_head_was_sent_before_the_stop():
    may_end = asyncio.Event()

    async def in_two_parts(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await may_end.wait()
        await send({"type": "http.response.body", "body": b"fine"})

    with listen("127.0.0.1", 0) as listener:
        server = await started(listener, in_two_parts)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(GET)
        assert b"connection: close" not in await reader.readuntil(b"\r\n\r\n")
        stopping = asyncio.create_task(server.shutdown([listener]))
        await asyncio.sleep(0.05)
        may_end.set()
        assert await reader.readexactly(4) == b"fine"
        writer.write(GET)
        assert b"connection: close\r\n" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b"fine"
        writer.close()
        await stopping
