"""Server processes that share a store in a bucket, and go on without it."""

import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from prompt_store import digest_bytes
from tests.prompt_store.places import moto_port, s3_place
from tests.service.fakes import colour_bundle, picture
from tests.service.processes import client_of, eventually, serving

__all__ = ["moto_port", "s3_place"]

FIRST, SECOND, THIRD = colour_bundle(), colour_bundle(seed=1), colour_bundle(seed=2)
SEEN_WITHIN_S = 2.0


@pytest.fixture
def store(s3_place):
    store = s3_place.open()
    store.add("paint", FIRST)
    store.activate("paint", 1)
    return store


@contextmanager
def server(s3_place, store, name, log=None, **settings):
    """A server with a copy of its own; a restart with the same name has the same copy."""
    own = {"store_cache": str(s3_place.folder / name), "store_poll_s": 1.0, "drain_delay_s": 0}
    with serving(store, log=log, **own | settings) as (process, url), client_of(url) as client:
        yield process, client


def served(client):
    answer = client.post("/classify/paint", content=picture())
    assert answer.status_code == 200, answer.text
    return answer.json()["version"], answer.json()["digest"]


def reachable(client):
    return "caspl_store_reachable 1.0" in client.get("/metrics").text


@pytest.mark.slow
def test_an_activation_on_one_server_is_served_by_the_others_within_two_seconds(s3_place, store):
    with ExitStack() as stack:
        clients = [stack.enter_context(server(s3_place, store, f"server-{n}"))[1] for n in range(2)]
        took_s = []
        for number, data in enumerate([SECOND, THIRD, colour_bundle(seed=3)], 2):
            publisher, follower = clients[number % 2], clients[1 - number % 2]
            answer = publisher.post("/domains/paint/versions?activate=true", content=data)
            assert answer.status_code == 201, answer.text
            began_s = time.monotonic()
            eventually(lambda n=number, f=follower: served(f)[0] == n)
            took_s.append(time.monotonic() - began_s)
            assert served(follower) == served(publisher) == (number, digest_bytes(data))
        assert max(took_s) <= SEEN_WITHIN_S, took_s


@pytest.mark.slow
def test_without_the_bucket_servers_go_on_refuse_changes_and_catch_up(s3_place, store):
    labels, problems, is_over = [], [], threading.Event()
    digests = {1: digest_bytes(FIRST), 2: digest_bytes(SECOND), 3: digest_bytes(THIRD)}

    def classify(client):
        while not is_over.is_set():
            answer = client.post("/classify/paint", content=picture())
            body = answer.json()
            labels.append(body["version"] if answer.status_code == 200 else answer.text)
            if digests.get(body.get("version")) != body.get("digest"):
                problems.append(body)

    with (s3_place.folder / "log").open("w+") as log, server(s3_place, store, "one", log) as (_, client):
        thread = threading.Thread(target=classify, args=(client,))
        thread.start()
        try:
            s3_place.proxy.is_down = True
            eventually(lambda: not reachable(client))
            refused = client.post("/domains/paint/versions?activate=true", content=SECOND)
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            assert int(refused.headers["Retry-After"]) >= 1
            assert client.get("/readyz").status_code == 200
            assert client.get("/info").json()["store_is_writable"] is False

            s3_place.proxy.is_down = False
            eventually(lambda: reachable(client))
            store.add("paint", THIRD)
            store.activate("paint", 2)
            digests[2] = digest_bytes(THIRD)
            eventually(lambda: served(client)[0] == 2)
            digests[3] = digest_bytes(SECOND)
            assert client.post("/domains/paint/versions?activate=true", content=SECOND).json()["version"] == 3
            assert served(client)[0] == 3
        finally:
            is_over.set()
            thread.join()
        log.seek(0)
        lines = log.read()
    assert set(labels) == {1, 2, 3}
    assert sorted(labels) == labels, "no answer is by an older version than the one before"
    assert problems == []
    assert lines.count("store.unavailable") == 1
    assert "test-secret-key" not in lines


@pytest.mark.slow
def test_a_server_restarts_from_its_copy_while_the_bucket_is_away(s3_place, store):
    with server(s3_place, store, "one") as (_, client):
        assert served(client)[0] == 1
    s3_place.proxy.is_down = True
    with server(s3_place, store, "one") as (_, client):
        assert served(client) == (1, digest_bytes(FIRST))
        s3_place.proxy.is_down = False
        store.add("paint", SECOND)
        store.activate("paint", 2)
        eventually(lambda: served(client)[0] == 2)
    s3_place.proxy.is_down = True
    with (
        pytest.raises(AssertionError, match="did not start"),
        (s3_place.folder / "log").open("w") as log,
        server(s3_place, store, "without-a-copy", log),
    ):
        pass


@pytest.mark.slow
def test_examples_stay_on_the_machine_that_got_them(s3_place, store):
    with ExitStack() as stack:
        clients = [stack.enter_context(server(s3_place, store, f"server-{n}"))[1] for n in range(2)]
        files = {"red": ("one.png", picture(), "image/png")}
        assert clients[0].post("/domains/paint/examples", files=files).status_code == 201
        counts = [len(client.get("/domains/paint/examples").json()["examples"]) for client in clients]
    assert counts == [1, 0]
    assert not [key for key in s3_place.names() if "examples" in key]
