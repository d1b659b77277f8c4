"""What the service adds to the audit log of its store: keys, fits, created domains, and entries that are missing."""

import asyncio
import shutil

import pytest

from prompt_store import Store, StoreReadOnlyError
from service.access import audit as audit_module
from service.access import keys as ring_module
from service.access.audit import AuditFollower
from service.access.key_file import Key, add_key, read_keys, revoke_key
from service.access.keys import KeyRing
from tests.service.engine.engine_rows import until
from tests.service.examples.colours import add_colours
from tests.service.fakes import colour_bundle

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(ring_module, "POLL_S", 0)
    monkeypatch.setattr(audit_module, "EVERY_S", 0.01)


@pytest.fixture
def empty(tmp_path):
    return Store.open(tmp_path / "empty")


def changes(store):
    return [(row.action, row.key) for row in store.audit().rows]


def key(number, **fields):
    scopes = fields.pop("scopes", ["classify"])
    return Key.model_validate({"id": f"key{number:05d}", "sha256": "0" * 64, "scopes": scopes, **fields})


async def test_added_and_revoked_keys_have_an_entry_each(tmp_path, empty):
    path = tmp_path / "keys.json"
    first = add_key(path, ["classify"], [])[3:11]
    follower = AuditFollower(empty, KeyRing(read_keys(path), path))
    await follower.follow_keys()
    second = add_key(path, ["publish", "activate"], ["paint"])[3:11]
    await follower.follow_keys()
    revoke_key(path, first)
    await follower.follow_keys()
    await follower.follow_keys()

    assert changes(empty) == [
        ("key added", f"{first} (classify)"),
        ("key added", f"{second} (activate publish)"),
        ("key removed", first),
    ]
    assert empty.audit().problems() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"scopes": ["classify", "metrics"]},
        {"domains": ["paint"]},
        {"expires": "2030-01-01T00:00:00Z"},
        {"requests_per_s": 5},
        {"name": "line 4"},
        {"sha256": "1" * 64},
    ],
    ids=str,
)
async def test_every_changed_field_of_a_key_is_a_change(empty, fields):
    await AuditFollower(empty, KeyRing((key(1), key(2)))).follow_keys()
    await AuditFollower(empty, KeyRing((key(2), key(1)))).follow_keys()
    assert len(changes(empty)) == 2
    await AuditFollower(empty, KeyRing((key(1, **fields), key(2)))).follow_keys()

    assert [action for action, _ in changes(empty)] == ["key added", "key added", "key changed"]


async def test_a_service_that_opens_access_to_everyone_records_that_the_keys_are_gone(empty):
    await AuditFollower(empty, KeyRing((key(1),))).follow_keys()
    await AuditFollower(empty, KeyRing()).follow_keys()

    assert changes(empty)[-1] == ("key removed", "key00001")


async def test_an_entry_that_cannot_be_written_is_logged_once_and_written_later(empty, monkeypatch, caplog):
    follower = AuditFollower(empty, KeyRing((key(1),)))
    works = empty.audit_keys
    calls = []

    def fails(keys):
        calls.append(keys)
        raise StoreReadOnlyError("The store is not writable.")

    monkeypatch.setattr(empty, "audit_keys", fails)
    running = asyncio.create_task(follower.run())
    await until(lambda: len(calls) > 3)
    assert [record.message for record in caplog.records].count("audit.incomplete") == 1
    monkeypatch.setattr(empty, "audit_keys", works)
    await until(lambda: changes(empty) == [("key added", "key00001 (classify)")])
    running.cancel()


async def test_at_startup_changes_of_a_killed_writer_get_their_entries(serve, store):
    shutil.rmtree(store.root / "audit")
    assert len(store.audit().problems()) == 2
    async with serve():
        await until(lambda: store.audit().problems() == [])


async def test_a_damaged_log_is_reported_at_startup_and_left_as_it_is(serve, store, caplog):
    path = store.root / "audit" / "0000000002.json"
    path.unlink()
    async with serve():
        await until(lambda: "audit.damaged" in [record.message for record in caplog.records])
    assert store.audit().problems() == ["Entry 2 is missing."]


async def test_a_fit_and_a_created_domain_are_named_as_such(serve, store):
    async with serve() as client:
        add_colours(client.context.examples)
        fitted = await client.post("/domains/paint/fit", json={})
        created = await client.put("/domains/fresh", json={"classes": ["red", "blue"]})
        uploaded = await client.post("/domains/paint/versions", content=colour_bundle(seed=7))
    assert [answer.status_code for answer in (fitted, created, uploaded)] == [201, 201, 201]
    rows = [(row.action, row.domain) for row in store.audit().rows]
    assert rows[4:] == [
        ("fit", "paint"),
        ("activate", "paint"),
        ("create", "fresh"),
        ("activate", "fresh"),
        ("publish", "paint"),
    ]
