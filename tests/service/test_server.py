"""The real process: sockets, signals, exit status."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch
import uvicorn

from prompt_store.store import Store
from service.demo_run import free_port, wait_until_ready
from service.errors import SettingsError
from service.server import PatientProtocol, chosen_device, listen, needed_keys
from service.settings import Settings
from tests.service.demo_assets import write_assets
from tests.service.fakes import picture


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    return kept | {"OMP_NUM_THREADS": "1", "CASPL_DRAIN_DELAY_S": "1"} | changes


@pytest.fixture
def server(tmp_path):
    """A service process on a free port, with one live domain; killed if the test leaves it running."""
    assets = write_assets(tmp_path / "demo")
    port = free_port()
    command = [sys.executable, "-m", "prompt_store.caspl", "serve", "--demo", "--demo-assets", str(assets)]
    command += ["--random-weights", "--port", str(port), "--store", str(tmp_path / "store")]
    with (
        (tmp_path / "log").open("wb") as log,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client,
        subprocess.Popen(command, env=environment(), stdout=log, stderr=log) as process,
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

    head = f"POST /classify/tiles HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
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
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert Store.open(tmp_path / "store").live("shelf").version == 1


@pytest.fixture
def bare_server(monkeypatch):
    """The server's protocol around an empty application, with a deadline of a third of a second."""
    monkeypatch.setattr("service.server.HEAD_WITHIN_S", 0.3)

    async def app(scope, receive, send):
        await asyncio.sleep(0.6 if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, http=PatientProtocol, lifespan="off", ws="none", log_config=None)
    with listen("127.0.0.1", 0) as listener:
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        running.should_exit = True
        thread.join(10)


@pytest.mark.parametrize("piece", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_does_not_finish_its_headers_is_hung_up_on(bare_server, piece):
    with socket.create_connection(bare_server, timeout=5) as silent:
        started_s = time.monotonic()
        silent.sendall(piece)
        assert silent.recv(10) == b""
        assert 0.2 < time.monotonic() - started_s < 3


def dribble(connection):
    for _ in range(50):
        connection.sendall(b"x")
        time.sleep(0.05)


def test_a_client_that_dribbles_its_headers_is_hung_up_on(bare_server):
    broken = pytest.raises((BrokenPipeError, ConnectionResetError))
    with socket.create_connection(bare_server, timeout=5) as connection, broken:
        dribble(connection)


def test_a_slow_answer_and_a_connection_in_use_are_left_alone(bare_server):
    host, port = bare_server
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        for path in ("/slow", "/", "/slow", "/"):
            assert client.get(path).status_code == 204
            time.sleep(0.1)


def test_an_address_that_others_reach_needs_keys():
    with pytest.raises(SettingsError, match="caspl keys new"):
        needed_keys(Settings(host="0.0.0.0"))  # noqa: S104
    assert needed_keys(Settings()) == ()


def test_a_key_file_without_keys_does_not_open_the_door(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="needs API keys"):
        needed_keys(Settings(host="0.0.0.0", keys_file=path))  # noqa: S104


def test_a_port_that_is_taken_is_told_plainly():
    with listen("127.0.0.1", 0) as taken, pytest.raises(SettingsError, match="Cannot listen"):
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


def test_device_and_type_follow_the_machine_unless_they_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(Settings()) == ("cpu", torch.float32)
    assert chosen_device(Settings(dtype="bfloat16")) == ("cpu", torch.bfloat16)
    with pytest.raises(SettingsError, match="--device cpu"):
        chosen_device(Settings(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device(Settings()) == ("cuda", torch.bfloat16)
    assert chosen_device(Settings(device="cuda:1", dtype="float32")) == ("cuda:1", torch.float32)
