"""The real thing: a device process, its web processes, sockets, signals."""

import http.client
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from prompt_store.bundle import read_bundle
from prompt_store.store import Store
from tests.service.fakes import COLOURS, colour_bundle, picture
from tests.service.processes import (
    N_CLIENTS,
    ConcurrentClients,
    children,
    client_of,
    command_of,
    environment,
    eventually,
    is_alive,
    serving,
)

pytestmark = pytest.mark.slow

N_WORKERS = 2
SLOWLY = "model.forward_s = {}"
"""For `once_ready`: every batch takes this many seconds."""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for the tests that do not end it, with the live domains `paint` and `ink`."""
    store = Store.open(tmp_path_factory.mktemp("web") / "store")
    for data, domain in ((colour_bundle(), "paint"), (colour_bundle("ink", ("blue", "red")), "ink")):
        store.activate(domain, store.add(domain, data).version)
    with serving(store, web_workers=N_WORKERS) as (process, url), client_of(url) as client:
        yield process, url, client


TIMES = {"request_id", "timing_ms", "live_since"}


def without_times(answer):
    return answer.status_code, json.loads(
        answer.content, object_hook=lambda fields: {name: value for name, value in fields.items() if name not in TIMES}
    )


REQUESTS = [
    *(("POST", f"/classify/{domain}?top_k=2", {"content": picture(c)}) for domain in ("paint", "ink") for c in COLOURS),
    ("POST", "/classify/paint?stack=boost", {"content": picture((200, 90, 10), (300, 200), "JPEG")}),
    ("POST", "/classify/paint?labels=red,white", {"content": picture("white", kind="WEBP")}),
    ("POST", "/classify/paint", {"files": [("images", ("a.png", picture())), ("images", ("b.txt", b"%PDF"))]}),
    ("POST", "/classify/paint", {"content": b"%PDF no image at all"}),
    ("POST", "/classify/paint", {"content": picture()[:60]}),
    ("POST", "/classify/paint", {"content": b"x", "headers": {"content-type": "text/plain"}}),
    ("POST", "/classify/paint", {"content": b"x" * (33 * 1024 * 1024)}),
    ("POST", "/classify/paint?top_k=0", {"content": picture()}),
    ("POST", "/classify/paint?priority=urgent", {"content": picture()}),
    ("POST", "/classify/paint?version=9", {"content": picture()}),
    ("POST", "/classify/nowhere", {"content": picture()}),
    ("GET", "/classify/paint", {}),
    ("GET", "/domains", {}),
    ("GET", "/domains/paint/versions/99", {}),
    ("GET", "/openapi.json", {}),
    ("GET", "/nowhere", {}),
    ("GET", "/livez", {}),
    ("GET", "/readyz", {}),
    ("DELETE", "/domains/paint/versions/1", {}),
    ("POST", "/domains/paint/versions", {"content": b"no bundle"}),
    ("PUT", "/domains/paint/live", {"content": b"{"}),
]


@pytest.mark.anyio
async def test_both_forms_give_the_same_answers_to_the_bit(serve, service):
    _, _, client = service
    async with serve(host="127.0.0.1") as alone:
        for method, path, content in REQUESTS:
            expected = await alone.request(method, path, **content)
            found = client.request(method, path, **content)
            assert without_times(found) == without_times(expected), (method, path)
            assert set(found.headers) >= set(expected.headers), (method, path)


def test_what_is_live_after_the_answer_is_live_for_every_connection(service):
    _, url, client = service
    for seed in range(1, 6):
        data = colour_bundle(seed=seed)
        uploaded = client.post("/domains/paint/versions?activate=true", content=data)
        assert uploaded.status_code == 201
        for _ in range(10):
            with client_of(url) as fresh:
                assert fresh.post("/classify/paint", content=picture()).json()["digest"] == read_bundle(data).digest


def number(text, name):
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_metrics_are_the_same_whoever_is_asked(service):
    _, _, client = service
    name = 'caspl_images_total{domain="ink",result="answered"}'
    before = number(client.get("/metrics").text, name)
    for _ in range(30):
        assert client.post("/classify/ink", content=picture("blue")).status_code == 200
    found = {number(client.get("/metrics").text, name) - before for _ in range(8)}
    assert found == {30}


def test_a_killed_web_process_takes_only_its_own_connections_with_it(service):
    process, url, client = service
    before = number(client.get("/metrics").text, "caspl_images_total")
    old = children(process.pid)
    with ConcurrentClients(url) as clients:
        eventually(lambda: len(clients.answers) > 20)
        os.kill(old[0], signal.SIGKILL)
        eventually(lambda: len(set(children(process.pid)) - {old[0]}) == N_WORKERS)
        assert client.get("/readyz").status_code == 200
        n_answers = len(clients.answers)
        eventually(lambda: len(clients.answers) > n_answers + 20)
    assert set(clients.answers) == {200}
    assert len(clients.broken) <= N_CLIENTS
    after = number(client.get("/metrics").text, "caspl_images_total")
    assert after - before >= len(clients.answers) / 2, "what the dead one had counted is not forgotten"


def holder_of(connection, pids):
    """Which of these processes has the other end of a connection."""
    here, there = connection.sock.getsockname()[1], connection.sock.getpeername()[1]
    ends = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = f":{there:04X}", f":{here:04X}"
    (inode,) = (end[9] for end in ends if (end[1][-5:], end[2][-5:]) == ports)
    links = {pid: {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()} for pid in pids}
    (pid,) = (pid for pid, targets in links.items() if f"socket:[{inode}]" in targets)
    return pid


def test_connections_to_the_other_web_process_go_on_when_one_is_killed(store):
    def ask(connection):
        connection.request("POST", "/classify/paint", picture())
        answer = connection.getresponse()
        answer.read()
        return answer.status

    with serving(store, web_workers=N_WORKERS) as (process, url):
        dead, other = children(process.pid)
        held = {}
        for pid, stopped in ((dead, other), (other, dead)):
            os.kill(stopped, signal.SIGSTOP)  # so that the one whose turn it is takes the connection
            held[pid] = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
            assert ask(held[pid]) == 200
            os.kill(stopped, signal.SIGCONT)
            assert holder_of(held[pid], (dead, other)) == pid
        os.kill(dead, signal.SIGKILL)
        eventually(lambda: not is_alive(dead))
        assert ask(held[other]) == 200
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(held[dead])
        for connection in held.values():
            connection.close()


def test_without_its_device_process_nothing_is_left(store):
    with serving(store, web_workers=N_WORKERS, once_ready=SLOWLY.format(0.05)) as (process, url):
        workers = children(process.pid)
        assert len(workers) == N_WORKERS
        with ConcurrentClients(url) as clients:
            eventually(lambda: len(clients.answers) > 5)
            killed_s = time.monotonic()
            process.kill()
            eventually(lambda: not any(is_alive(pid) for pid in workers))
        assert set(clients.answers) <= {200, 503}
        with pytest.raises(httpx.ConnectError), client_of(url) as client:
            client.get("/readyz")
        assert time.monotonic() - killed_s < 10


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, N_WORKERS])
def test_a_terminated_service_drops_no_request_in_either_form(store, n_workers):
    slowly = SLOWLY.format(0.02)
    with serving(store, web_workers=n_workers, once_ready=slowly) as (process, url), client_of(url) as client:
        with ConcurrentClients(url) as clients:
            eventually(lambda: len(clients.answers) > 10)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: client.get("/readyz").status_code == 503, within_s=1.8)
            assert process.wait(15) == 0
        assert set(clients.answers) == {200}
        assert clients.broken == []


@pytest.mark.slow
def test_a_stopped_web_process_is_killed_and_replaced_and_takes_only_its_own_connections_with_it(store):
    with serving(store, web_workers=N_WORKERS) as (process, url), client_of(url) as client:
        stopped, other = children(process.pid)
        with ConcurrentClients(url) as clients:
            eventually(lambda: len(clients.answers) > 20)
            os.kill(stopped, signal.SIGSTOP)
            eventually(lambda: not is_alive(stopped))
            eventually(lambda: len(children(process.pid)) == N_WORKERS)
            n_answers = len(clients.answers)
            eventually(lambda: len(clients.answers) > n_answers + 20)
        assert other in children(process.pid)
        assert set(clients.answers) == {200}
        assert len(clients.broken) <= N_CLIENTS, "requests that it had accepted"
        assert not any(isinstance(error, httpx.TimeoutException) for error in clients.broken)
        assert client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_a_device_process_that_was_stopped_goes_on_with_its_web_processes(store):
    with serving(store, web_workers=N_WORKERS, stuck_after_s=5) as (process, url), client_of(url) as client:
        before = children(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(8)  # longer than a hung device, event loop or web process is tolerated
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: client.get("/livez").status_code == 200)
        time.sleep(3)
        assert client.post("/classify/paint", content=picture()).status_code == 200
        assert children(process.pid) == before


@pytest.mark.slow
def test_a_web_process_that_cannot_start_ends_the_start(store):
    command = command_of(store, web_workers=1)
    command[2] = f"from service.workers import device_process\ndevice_process.MODULE = 'nothing.here'\n{command[2]}"
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "A web process exited with status 1" in ended.stderr
    assert ended.stdout == "", "it was never announced"
