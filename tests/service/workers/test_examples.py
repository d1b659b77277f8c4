"""Examples in a server with several web processes, and after kills."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from prompt_store.store import Store
from tests.service.fakes import colour_bundle, picture
from tests.service.processes import children, client_of, eventually, serving

pytestmark = pytest.mark.slow

URL = "/domains/paint/examples"
N_WORKERS = 2
N_CLIENTS = 4


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    store.activate("paint", store.add("paint", colour_bundle()).version)
    return store


def add(client, n):
    """Add two pictures that no other call adds, and one that all of them add: their ids."""
    parts = [
        ("red", (f"{n}.png", picture((n % 256, n // 256, 1)))),
        ("blue", (f"{n}.png", picture((n % 256, n // 256, 2)))),
        ("red", ("same.png", picture("red"))),
    ]
    answer = client.post(URL, files=parts)
    answer.raise_for_status()
    return [one["id"] for one in answer.json()["examples"]]


def listed(client):
    found, after = {}, 0
    while after is not None:
        body = client.get(URL, params={"after": after, "limit": 50}).raise_for_status().json()
        found |= {one["id"]: one["label"] for one in body["examples"]}
        after = body["next"]
    return found, body["counts"]


def test_web_processes_add_to_the_same_examples(store):
    n_requests = 60
    with serving(store, web_workers=N_WORKERS) as (_, url), client_of(url) as client:
        with ThreadPoolExecutor(N_CLIENTS) as threads:
            ids = list(threads.map(lambda n: add(client, n), range(n_requests)))
        found, counts = listed(client)
        added = client.get("/metrics").text
    own = [number for first, second, _ in ids for number in (first, second)]
    assert len(set(own)) == 2 * n_requests
    assert len({same for *_, same in ids}) == 1
    assert set(found) == {number for numbers in ids for number in numbers}
    assert counts["by_label"] == {"blue": n_requests, "red": n_requests + 1}
    assert f'caspl_examples_total{{domain="paint",result="added"}} {2 * n_requests + 1}.0' in added


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["web process", "service"])
def test_acknowledged_examples_are_there_after_a_kill(store, victim):
    acknowledged, is_over = [], threading.Event()

    def send(url, first):
        with client_of(url) as client:
            n = first
            while not is_over.is_set():
                try:
                    acknowledged.extend(add(client, n))
                except httpx.HTTPError:
                    if victim == "service":
                        return
                n += N_CLIENTS

    with serving(store, web_workers=N_WORKERS) as (process, url), ThreadPoolExecutor(N_CLIENTS) as threads:
        sending = [threads.submit(send, url, first) for first in range(N_CLIENTS)]
        eventually(lambda: len(acknowledged) >= 60)
        os.kill(process.pid if victim == "service" else children(process.pid)[0], signal.SIGKILL)
        n_before = len(acknowledged)
        eventually(lambda: victim == "service" or len(acknowledged) >= n_before + 60)
        is_over.set()
        for one in sending:
            one.result(30)
        if victim == "web process":
            with client_of(url) as client:
                found, _ = listed(client)
                assert set(acknowledged) <= set(found)
    with serving(store) as (_, url), client_of(url) as client:
        found, counts = listed(client)
    assert set(acknowledged) <= set(found)
    assert counts["labelled"] == len(found)
