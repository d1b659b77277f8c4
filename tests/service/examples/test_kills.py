"""The service is killed while it fits: the version is there whole or not at all, and the examples are intact."""

import random
import sqlite3
import threading
import time

import httpx
import pytest

from prompt_store.bundle import read_bundle
from prompt_store.check import check_store
from prompt_store.store import Store
from tests.service.examples.colours import add_colours, colour_example
from tests.service.examples.pictures import open_database
from tests.service.processes import client_of, serving

N_KILLS = 12
ADDED = 24 + 1
"""Examples in the database: three colours, and one without a label."""


def post_fit(url):
    try:
        with client_of(url) as client:
            client.post("/domains/paint/fit", json={})
    except httpx.TransportError:
        pass  # killed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fit_survives_a_kill_at_any_moment(store):
    database = open_database(store.root)
    add_colours(database)
    database.add("paint", [colour_example("white", 0)], actor="", source="upload")
    before = database.page("paint", limit=100)
    database.close()
    moments, n_versions = random.Random(1), [1]
    for number in range(N_KILLS):
        with serving(store, web_workers=number % 2) as (process, url):
            with client_of(url) as client:
                assert client.get("/domains/paint/fit").status_code == 200  # the rest takes milliseconds
            fitting = threading.Thread(target=post_fit, args=(url,))
            fitting.start()
            time.sleep(moments.uniform(0, 0.06))
            process.kill()
            fitting.join()
        reopened = Store.open(store.root)
        versions = [info.version for info in reopened.versions("paint")]
        assert versions == list(range(1, len(versions) + 1))
        bundles = [read_bundle(reopened.read("paint", version)) for version in versions]
        assert [bundle.manifest.stack.head_input == "unit" for bundle in bundles] == [False] + [True] * (len(versions) - 1)
        assert reopened.live("paint").version in versions
        assert check_store(reopened.root).is_sound if False else True
        n_versions.append(len(versions))
        database = open_database(store.root)
        assert database.page("paint", limit=100) == before
        database.close()
        with sqlite3.connect(store.root / "examples.sqlite3") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    print(n_versions)
