"""The real process: sockets, signals, exit status."""

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import pytest
import torch

from prompt_store.store import Store
from prompted_clip.fused_tower import FusedImageTower
from service.demo.run import free_port, wait_until_ready
from service.errors import SettingsError
from service.http.auth import add_key
from service.http.server import DrainingServer, http_config, listen
from service.server import (
    batches_at_once,
    chosen_device,
    chosen_dtype,
    image_tower,
    load_model,
    needed_keys,
    on_this_device,
    threads_of,
)
from service.settings import Settings
from service.workers.web_process import SharedListener
from tests.service.demo.demo_assets import write_assets
from tests.service.fakes import picture
from tests.tiny import register_tiny_models, tiny_backbone


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
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert Store.open(tmp_path / "store").live("shelf").version == 1


def test_an_address_that_others_reach_needs_keys():
    with pytest.raises(SettingsError, match="caspl keys new"):
        needed_keys(Settings(host="0.0.0.0"))  # noqa: S104
    assert needed_keys(Settings()) == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])  # noqa: S104
def test_a_key_file_without_keys_does_not_open_the_door(tmp_path, host):
    path = tmp_path / "keys.json"
    path.write_text('{"keys": []}')
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="holds no keys") as refused:
        needed_keys(Settings(host=host, keys_file=path))
    assert refused.value.code == "keys_needed"
    add_key(path, ["classify"], [])
    assert len(needed_keys(Settings(host=host, keys_file=path))) == 1


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
    assert chosen_device(Settings()) == "cpu"
    with pytest.raises(SettingsError, match="--device cpu"):
        chosen_device(Settings(device="cuda"))
    assert chosen_dtype(Settings(backbone="demo-student"), "cpu") == torch.float32
    with monkeypatch.context() as measured:
        measured.setattr("service.server.fastest_dtype", lambda arch, device: f"measured for {arch} on {device}")
        assert chosen_dtype(Settings(), "cpu") == "measured for ViT-B-16 on cpu"
    assert chosen_dtype(Settings(dtype="bfloat16"), "cpu") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device(Settings()) == "cuda"
    assert chosen_device(Settings(device="cuda:1")) == "cuda:1"


def test_decoding_on_the_gpu_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="needs a CUDA device, and torch finds none"):
        load_model(Settings(preprocess="gpu"))


def test_every_card_gets_the_type_that_it_is_good_at_unless_another_is_asked_for(monkeypatch):
    capabilities = {"cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert chosen_dtype(Settings(), "cuda:0") == torch.bfloat16
    assert chosen_dtype(Settings(), "cuda:1") == torch.float16
    assert chosen_dtype(Settings(dtype="float32"), "cuda:1") == torch.float32


@pytest.mark.parametrize(("n_multiprocessors", "n_rows"), [(132, 128), (40, 32), (16, 32), (300, 256)])
def test_on_a_gpu_batches_are_as_large_as_it_is_and_queues_in_proportion(monkeypatch, n_multiprocessors, n_rows):
    facts = SimpleNamespace(multi_processor_count=n_multiprocessors)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    found = on_this_device(Settings())
    assert (found.max_batch_rows, found.max_waiting_rows, found.max_open_requests) == (n_rows, 4 * n_rows, 8 * n_rows)
    asked = on_this_device(Settings(max_batch_rows=64, max_open_requests=9))
    assert (asked.max_batch_rows, asked.max_waiting_rows, asked.max_open_requests) == (64, 256, 9)
    assert on_this_device(Settings(device="cpu")) == Settings(device="cpu")


def test_on_the_cpu_the_fused_image_tower_serves_and_on_cuda_its_recordings():
    register_tiny_models()
    settings = Settings(backbone="tiny", random_weights=0, device="cpu", max_batch_rows=6)
    model = load_model(settings)
    assert isinstance(model.image_tower, FusedImageTower)
    on_cuda = dataclasses.replace(model.backbone, device=torch.device("cuda"))
    assert image_tower(on_cuda, settings).padded_batch_size(5) == settings.max_batch_rows


@pytest.mark.parametrize(("is_heavy", "num_streams"), [(False, 1), (True, 2)])
def test_cores_run_batches_side_by_side_where_the_backbone_is_worth_it(monkeypatch, is_heavy, num_streams):
    register_tiny_models()
    monkeypatch.setattr("service.server.is_heavy", lambda _: is_heavy)
    before = torch.get_num_threads()
    try:
        model = load_model(Settings(backbone="tiny", random_weights=0, device="cpu", n_torch_threads=2))
    finally:
        torch.set_num_threads(before)
    assert model.num_streams == num_streams


@pytest.mark.parametrize(
    ("has_cuda", "device", "arch", "is_shared"),
    [
        (False, "auto", "ViT-B-16", True),
        (False, "auto", "demo-student", False),
        (True, "cpu", "demo-student", False),
        (True, "auto", "demo-student", True),
        (True, "cuda:0", "demo-student", True),
    ],
)
def test_a_small_backbone_on_a_cpu_runs_on_one_thread(monkeypatch, has_cuda, device, arch, is_shared):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("service.server.usable_cores", lambda: 6)
    assert threads_of(arch, device) == (6 if is_shared else 1)


@pytest.mark.parametrize(("asked", "found"), [(0, 1), (3, 3)])
def test_the_number_of_threads_in_the_settings_goes_before(asked, found):
    register_tiny_models()
    before = torch.get_num_threads()
    try:
        load_model(Settings(backbone="tiny", random_weights=0, device="cpu", n_torch_threads=asked))
        assert torch.get_num_threads() == found
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_threads", "max_batch_rows", "num_streams"), [(64, 32, 16), (2, 32, 2), (8, 1, 1), (1, 32, 1)]
)
def test_every_batch_that_runs_beside_others_has_room_for_two_images(
    monkeypatch, n_threads, max_batch_rows, num_streams
):
    monkeypatch.setattr("service.server.is_heavy", lambda _: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    assert batches_at_once(tiny_backbone(), Settings(max_batch_rows=max_batch_rows)) == num_streams


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_backbone_is_built_as_the_settings_say(quick_gelu):
    register_tiny_models()
    model = load_model(Settings(backbone="tiny", random_weights=0, device="cpu", quick_gelu=quick_gelu))
    kinds = {type(block.mlp.gelu).__name__ for block in model.backbone.clip.transformer.resblocks}
    assert kinds == {"QuickGELU" if quick_gelu else "GELU"}


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
    stack = next(iter(context.table.states.values())).served.stack
    context.engine._all_cores.submit(context.engine._on_device, lambda: time.sleep(600))
    if sys.argv[2] == "waiting":
        row = server_row(stack)
        context.batcher.submit([row], lane="a", deadline_s=time.monotonic() + 600)
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
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"fine"})


@pytest.mark.anyio
async def test_who_has_connected_when_the_service_stops_is_answered_all_the_same():
    with SharedListener(fileno=listen("127.0.0.1", 0).detach()) as listener:
        config = http_config(_fine, Settings(), backlog=1)
        config.lifespan = "off"
        server = DrainingServer(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        address = listener.getsockname()
        await server.startup([listener])
        clients = [socket.create_connection(address) for _ in range(20)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.shutdown([listener])  # the loop has had no turn to accept any of them
        for client in clients:
            client.settimeout(5)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
