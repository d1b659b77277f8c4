"""The service is killed while it fits: the version is there whole or not at all, and the examples are intact."""

import sqlite3
from contextlib import suppress

import httpx
import pytest

from prompt_store.bundle import read_bundle
from prompt_store.store import Store
from tests.prompt_store.faults import CountingDisk
from tests.service.examples.colours import add_colours, colour_example
from tests.service.examples.pictures import open_database
from tests.service.fakes import colour_bundle
from tests.service.processes import client_of, eventually, is_alive, serving


@pytest.fixture
def examples(store):
    """The examples of `paint` before the kills."""
    database = open_database(store.root)
    add_colours(database)
    database.add("paint", [colour_example("white", 0)], actor="", source="upload")
    yield database.page("paint", limit=100)
    database.close()


def n_calls_of_publishing(folder):
    """System calls that modify the store while a version is added and activated."""
    Store.open(folder)
    disk = CountingDisk()
    store = Store.open(folder, disk=disk)
    for seed in range(2):
        disk.n_calls = 0
        store.activate("paint", store.add("paint", colour_bundle(seed=seed)).version)
    return disk.n_calls


def fit_until_killed(store, code, **settings):
    with serving(store, once_ready=code, **settings) as (process, url), client_of(url) as client:
        with suppress(httpx.TransportError):
            client.post("/domains/paint/fit", json={})
        process.wait(30) if not settings else eventually(lambda: not is_alive(process.pid))


def check(store, examples):
    """Check store and examples; returns the number of versions."""
    reopened = Store.open(store.root)
    versions = [info.version for info in reopened.versions("paint")]
    made = [read_bundle(reopened.read("paint", version)).manifest.provenance for version in versions]
    assert ["examples" in one.data_digests for one in made] == [False] + [True] * (len(versions) - 1)
    assert reopened.live("paint").version in versions
    database = open_database(store.root)
    assert database.page("paint", limit=100) == examples
    database.close()
    with sqlite3.connect(store.root / "examples.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return len(versions)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_call_that_modifies_the_store(store, examples, tmp_path):
    n_calls = n_calls_of_publishing(tmp_path / "counted")
    assert n_calls > 10
    n_versions = [1]
    for number in range(0, n_calls, max(1, n_calls // 10)):
        fit_until_killed(store, f"from tests.service.examples.killing import kill_at_call; kill_at_call({number})")
        n_versions.append(check(store, examples))
        assert n_versions[-1] - n_versions[-2] in {0, 1}
    assert n_versions[1] == 1, "killed before anything was written"
    assert n_versions[-1] > 1, "killed after the version was added"
    with serving(store) as (_, url), client_of(url) as client:
        answer = client.post("/domains/paint/fit", json={})
        assert (answer.status_code, answer.json()["is_live"]) == (201, True)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"web_workers": 1}], ids=["one process", "web processes"])
def test_a_kill_while_the_fit_is_computed(store, examples, settings):
    fit_until_killed(store, "from tests.service.examples.killing import kill_in_fit; kill_in_fit()", **settings)
    assert check(store, examples) == 1
