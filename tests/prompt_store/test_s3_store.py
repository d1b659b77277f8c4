"""A store in a bucket that several machines share, each with a copy of its own."""

import json

import pytest
from typer.testing import CliRunner

from prompt_store import (
    ConflictError,
    StoreCorruptError,
    StoreReadOnlyError,
    StoreUnavailableError,
    digest_bytes,
    mirror,
    open_store,
)
from prompt_store.cli import store_app
from prompt_store.s3_store import CACHE_VARIABLE
from prompt_store.signing_keys import sign_bundle
from prompt_store.stores import check_store
from tests.prompt_store.keys import private_key
from tests.prompt_store.samples import sample_bundle, tree
from tests.prompt_store.test_store import blob_of

BUNDLES = [sample_bundle(seed) for seed in range(4)]
FIRST = "domains/flowers/log/0000000001.json"


@pytest.fixture
def store(s3_place):
    store = s3_place.open()
    store.add("flowers", BUNDLES[0])
    store.activate("flowers", 1)
    return store


def code_of(call, *arguments):
    with pytest.raises(StoreReadOnlyError) as caught:
        call(*arguments)
    return caught.value.code


def test_another_machine_has_a_change_after_its_next_refresh(store, s3_place):
    another = s3_place.another()
    assert another.live("flowers").version == 1
    store.add("flowers", BUNDLES[1])
    store.activate("flowers", 2)
    store.add("weeds", sample_bundle(domain="weeds"))
    assert another.live("flowers").version == 1
    another.refresh()

    assert another.live("flowers") == store.live("flowers")
    assert another.domains() == ["flowers", "weeds"]
    assert another.read("flowers", 2) == BUNDLES[1]
    assert another.history("flowers") == store.history("flowers")
    assert another.audit().problems() == []


def test_a_refresh_without_a_change_is_one_request_and_none_is_needed_to_read(store, s3_place, proxy):
    another = s3_place.another()
    another.read("flowers", 1)
    proxy.requests.clear()
    for _ in range(3):
        another.refresh()
    assert [method for method, _ in proxy.requests] == ["GET"] * 3
    assert all("list-type=2" in target for _, target in proxy.requests)
    another.live("flowers")
    another.read("flowers", 1)
    another.history("flowers")
    assert len(proxy.requests) == 3


def test_a_change_without_an_entry_in_the_audit_log_is_found_by_the_next_full_listing(store, s3_place, monkeypatch):
    another = s3_place.another()
    entries = s3_place.names("audit/")
    store.add("flowers", BUNDLES[1])
    for key in set(s3_place.names("audit/")) - set(entries):
        s3_place.remove(key)
    another.refresh()
    assert len(another.versions("flowers")) == 1
    monkeypatch.setattr(mirror, "FULL_LIST_S", 0)
    another.refresh()
    assert len(another.versions("flowers")) == 2


def test_a_change_is_decided_on_the_state_in_the_bucket_and_not_on_the_copy(store, s3_place):
    another = s3_place.another()
    store.add("flowers", BUNDLES[1])
    store.activate("flowers", 2)

    with pytest.raises(ConflictError):
        another.activate("flowers", 2, expected_live=1)
    assert another.activate("flowers", 1).seq == store.live("flowers").seq + 1, "1 is live in the old copy only"


def test_machines_that_publish_at_once_get_numbers_of_their_own(store, s3_place, proxy):
    another = s3_place.another()

    def overtake(method, key):
        if method == "PUT" and key.endswith("log/0000000003.json"):
            proxy.fault = lambda method, key: None
            assert another.add("flowers", BUNDLES[2]).version == 2

    proxy.fault = overtake
    assert store.add("flowers", BUNDLES[1]).version == 3
    another.refresh()
    assert [another.read("flowers", number) for number in (1, 2, 3)] == [BUNDLES[0], BUNDLES[2], BUNDLES[1]]
    assert another.audit().problems() == []


@pytest.mark.parametrize(
    "fault", ["lose", *(pytest.param(one, marks=pytest.mark.slow) for one in ("500 after", "refuse"))]
)
@pytest.mark.parametrize("part", ["blobs/", "log/", "audit/", "FORMAT"])
def test_one_failed_request_fails_no_change_and_repeats_none(store, s3_place, proxy, fault, part):
    for method in ("PUT", "GET"):
        left = proxy.once(fault, method, part)
        another = s3_place.another()
        another.add("flowers", BUNDLES[1])
        another.activate("flowers", 2)
        another.rollback("flowers")
        assert not left, "the request was made"
    actions = [entry.action for entry in s3_place.another().history("flowers")]
    assert actions == ["publish", "activate", "publish", *["activate", "rollback"] * 2]


def test_without_the_bucket_the_copy_is_served_and_changes_are_refused_until_it_is_back(store, s3_place, proxy):
    another = s3_place.another()
    proxy.is_down = True
    before = tree(store.root)
    assert store.live("flowers").version == 1
    assert store.read("flowers", 1) == BUNDLES[0]
    assert code_of(store.refresh) == "store_unavailable"
    assert not store.is_writable
    for change in (
        lambda: store.add("flowers", BUNDLES[1]),
        lambda: store.activate("flowers", 1),
        lambda: store.rollback("flowers"),
        lambda: store.retire("flowers", 1),
        store.gc,
    ):
        assert code_of(change) == "store_unavailable"
    assert tree(store.root) == before

    proxy.is_down = False
    assert another.add("flowers", BUNDLES[2]).version == 2
    another.activate("flowers", 2)
    store.refresh()
    assert store.is_writable
    assert (store.live("flowers").version, store.read("flowers", 2)) == (2, BUNDLES[2])
    assert store.add("flowers", BUNDLES[1]).version == 3


def test_a_restart_without_the_bucket_begins_with_the_copy_only_if_that_is_allowed(store, s3_place, proxy):
    proxy.is_down = True
    assert code_of(s3_place.open) == "store_unavailable"
    reopened = s3_place.open(allow_stale=True)
    assert (reopened.live("flowers").version, reopened.read("flowers", 1)) == (1, BUNDLES[0])
    with pytest.raises(StoreUnavailableError):
        s3_place.another(allow_stale=True)


def test_a_bundle_that_was_not_copied_is_unavailable_and_not_damaged_until_the_bucket_is_back(store, s3_place, proxy):
    another = s3_place.another()
    proxy.is_down = True
    assert code_of(another.read, "flowers", 1) == "store_unavailable"
    proxy.is_down = False
    assert another.read("flowers", 1) == BUNDLES[0]


def test_a_change_whose_answer_is_lost_is_unknown_and_shown_by_the_next_refresh(store, proxy):
    store.add("flowers", BUNDLES[1])

    def lose_the_record(method, key):
        if method == "PUT" and "/log/" in key:
            proxy.is_down = True
            return "lose"
        return None

    proxy.fault = lose_the_record
    assert code_of(store.activate, "flowers", 2) == "commit_unknown"
    proxy.is_down, proxy.fault = False, lambda method, key: None
    store.refresh()
    store.activate("flowers", 2)
    assert [entry.action for entry in store.history("flowers")].count("activate") == 2
    assert store.live("flowers").version == 2


def test_a_server_that_ignores_conditions_gets_no_change(store, s3_place, proxy):
    proxy.ignores_conditions = True
    another = s3_place.another()
    before = s3_place.names()
    assert code_of(another.add, "flowers", BUNDLES[1]) == "s3_unsupported"
    assert s3_place.names() == before


def test_a_damaged_copy_is_fetched_again(store, s3_place):
    for path in (store.root / FIRST, store.root / blob_of(BUNDLES[0])):
        path.chmod(0o644)
        path.write_bytes(b"rotten")
    reopened = s3_place.open()
    assert (reopened.live("flowers").version, reopened.read("flowers", 1)) == (1, BUNDLES[0])


def test_a_check_finds_damage_in_the_bucket_and_a_repair_mends_the_bucket(store, s3_place, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(s3_place.folder / "checks"))
    store.add("flowers", BUNDLES[1])
    good = s3_place.get(FIRST)
    s3_place.put(FIRST, bytes([good[0] ^ 1]) + good[1:])
    s3_place.put(blob_of(BUNDLES[1]), b"rotten")
    s3_place.put("notes.txt", b"mine")
    found, _ = check_store(s3_place.address)
    assert [(one.path, one.is_damage) for one in found.all_findings()][:1] == [("notes.txt", False)]
    assert any("One bit changed" in one.detail for one in found.all_findings())
    found, repairs = check_store(s3_place.address, repair=True)

    assert s3_place.get(FIRST) == good
    assert {s3_place.get(key) for key in s3_place.names("quarantine/")} == {b"rotten", bytes([good[0] ^ 1]) + good[1:]}
    assert len(repairs) == 2
    another = s3_place.another()
    assert another.add("flowers", BUNDLES[1]).created is False
    assert another.read("flowers", 2) == BUNDLES[1]
    assert check_store(s3_place.address)[0].is_sound


def test_objects_whose_keys_only_resemble_those_of_the_store_are_foreign(store, s3_place, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(s3_place.folder / "checks"))
    keys = ["/etc/passwd", "domains/./flowers/log/0000000001.json", "domains/flowers/log//0000000002.json"]
    for key in keys:
        s3_place.put(key, b"not a record")
    another = s3_place.another()
    assert another.live("flowers").version == 1
    assert another.activate("flowers", 1).version == 1
    found, _ = check_store(s3_place.address)
    assert [one.path for one in found.all_findings()] == keys
    assert found.is_sound


def test_records_that_a_repair_took_away_disappear_from_copies(store, s3_place, monkeypatch):
    monkeypatch.setattr(mirror, "FULL_LIST_S", 0)
    store.add("flowers", BUNDLES[1])
    s3_place.remove("domains/flowers/log/0000000003.json")
    store.refresh()
    with pytest.raises(StoreCorruptError, match="record 3 is missing"):
        store.activate("flowers", 1)
    assert len(s3_place.open().versions("flowers")) == 1


def test_a_store_that_is_gone_is_an_error_and_its_copy_stays(store, s3_place, monkeypatch):
    monkeypatch.setattr(mirror, "FULL_LIST_S", 0)
    for key in s3_place.names():
        s3_place.remove(key)
    before = tree(store.root)
    for call in (store.refresh, s3_place.open):
        with pytest.raises(StoreCorruptError) as caught:
            call()
        assert caught.value.code == "not_a_store"
    assert tree(store.root) == before
    assert s3_place.names() == []
    assert store.read("flowers", 1) == BUNDLES[0]


def test_a_prefix_with_other_objects_is_not_turned_into_a_store(s3_place):
    s3_place.put("thesis.txt", b"years of work")
    with pytest.raises(StoreCorruptError, match="Choose another prefix"):
        s3_place.open()
    assert s3_place.names() == ["thesis.txt"]


def test_stores_of_other_prefixes_have_copies_of_their_own(store, s3_place):
    other = open_store(f"s3://{s3_place.bucket}/stores/shelf-2", create=True, cache=s3_place.folder / "cache")
    assert (other.domains(), store.domains()) == ([], ["flowers"])
    assert other.root != store.root
    assert store.address == s3_place.address


def test_a_record_in_the_bucket_is_the_record_on_a_disk(store, s3_place):
    """A store can move between a directory and a bucket with any tool that copies files."""
    record = json.loads(s3_place.get(FIRST))
    assert (record["action"], record["digest"]) == ("publish", digest_bytes(BUNDLES[0]))
    folder = s3_place.folder / "copied"
    for key in s3_place.names():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3_place.get(key))
    assert open_store(folder).read("flowers", 1) == BUNDLES[0]
    assert check_store(folder)[0].is_sound


def test_an_unwritable_place_for_copies_is_named(s3_place):
    file = s3_place.folder / "file"
    file.write_bytes(b"")
    with pytest.raises(StoreReadOnlyError, match="CASPL_STORE_CACHE"):
        open_store(s3_place.address, create=True, cache=file)


def test_publishing_takes_five_requests_and_activating_three(store, proxy):
    """Listing the domain, bundle, record, entry, looking for the bundle; listing the domain, record, entry."""
    proxy.requests.clear()
    store.add("flowers", BUNDLES[1])
    assert [method for method, _ in proxy.requests] == ["GET", "PUT", "PUT", "PUT", "HEAD"]
    proxy.requests.clear()
    store.activate("flowers", 2)
    assert [method for method, _ in proxy.requests] == ["GET", "PUT", "PUT"]


def test_a_signature_that_was_added_elsewhere_is_fetched_by_the_next_call(store, s3_place):
    another = s3_place.another()
    bundle = BUNDLES[0]
    signature = sign_bundle(digest_bytes(bundle), "flowers.safetensors", private_key(0))
    store.add_signature("flowers", 1, signature)
    assert another.signatures(digest_bytes(bundle)) == [signature]
    s3_place.proxy.is_down = True
    assert another.signatures(digest_bytes(bundle)) == [signature]


def test_the_commands_take_the_address_of_a_bucket(s3_place, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(s3_place.folder / "commands"))
    file = s3_place.folder / "flowers.safetensors"
    file.write_bytes(BUNDLES[0])

    def run(*arguments, code=0):
        result = CliRunner().invoke(store_app, [*map(str, arguments), "--store", s3_place.address])
        assert result.exit_code == code, result.output
        return result.stdout

    run("ls", code=1)
    assert "version 1 added, live" in run("add", file, "--activate")
    file.write_bytes(BUNDLES[1])
    run("add", file)
    assert json.loads(run("activate", "flowers", 2, "--json"))["version"] == 2
    assert json.loads(run("rollback", "flowers", "--json"))["version"] == 1
    run("rm", "flowers", 2)
    assert json.loads(run("gc", "--grace-h", 0, "--json"))["removed_blobs"] == [digest_bytes(BUNDLES[1])]
    assert [row["version"] for row in json.loads(run("ls", "--json"))] == [1]
    assert json.loads(run("audit", "--verify", "--json"))["is_intact"]
    assert "weeds" not in run("history", "flowers")
    assert "ok" in run("check")
    s3_place.proxy.is_down = True
    run("ls", code=1)
