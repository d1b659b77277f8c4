"""The store in one process, in a directory and in a bucket."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prompt_store import (
    BundleInvalidError,
    ConflictError,
    DomainNotFoundError,
    Store,
    StoreCorruptError,
    VersionExistsError,
    VersionLiveError,
    VersionNotFoundError,
    digest_bytes,
)
from prompt_store.durable import locked
from prompt_store.s3 import is_s3
from tests.prompt_store.samples import sample_bundle, tree

BUNDLES = [sample_bundle(seed) for seed in range(6)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(place):
    return place.open()


@pytest.fixture
def disk_store(quick_path):
    return Store.open(quick_path / "store")


def filled(store, n_versions=3):
    for data in BUNDLES[:n_versions]:
        store.add("flowers", data)
    return store


def test_put_then_get_is_bit_exact(store):
    added = store.add("flowers", BUNDLES[0], actor="anna")

    assert (added.version, added.digest, added.created) == (1, digest_bytes(BUNDLES[0]), True)
    assert store.read("flowers", 1) == BUNDLES[0]
    assert store.domains() == ["flowers"]
    (info,) = store.versions("flowers")
    assert (info.size_bytes, info.is_live, info.created_at[-1]) == (len(BUNDLES[0]), False, "Z")


def test_adding_the_newest_content_again_returns_its_version(store, place):
    filled(store)
    before = tree(store.root), {key: place.get(key) for key in place.names()}
    again = store.add("flowers", BUNDLES[2])

    assert (again.version, again.created) == (3, False)
    assert (tree(store.root), {key: place.get(key) for key in place.names()}) == before


def test_adding_an_older_versions_content_is_rejected_with_its_number(store):
    filled(store)
    with pytest.raises(VersionExistsError) as caught:
        store.add("flowers", BUNDLES[0])

    assert (caught.value.version, caught.value.code) == (1, "version_exists")


def test_a_bundle_for_another_domain_is_refused(store):
    with pytest.raises(BundleInvalidError) as caught:
        store.add("weeds", BUNDLES[0])

    assert (caught.value.code, caught.value.field) == ("manifest_mismatch", "domain")
    assert store.domains() == []


def test_versions_only_rise_after_retirement_and_collection(store):
    filled(store)
    store.retire("flowers", 3)
    store.gc(grace_s=-1)

    assert store.add("flowers", BUNDLES[2]).version == 4
    assert [info.version for info in store.versions("flowers")] == [1, 2, 4]


def test_repeated_rollbacks_go_further_back_until_none_is_left(store):
    filled(store)
    for version in (1, 2, 3, 1):
        store.activate("flowers", version)
    foreseen, visited = [], []
    for _ in range(3):
        foreseen.append(store.rollback_target("flowers"))
        visited.append(store.rollback("flowers").version)
    assert foreseen == visited

    assert visited == [3, 2, 1]
    with pytest.raises(ConflictError) as caught:
        store.rollback("flowers")
    assert caught.value.code == "nothing_to_roll_back"
    assert store.live("flowers").version == 1


def test_an_activation_after_a_rollback_starts_from_there(store):
    filled(store)
    for version in (1, 2):
        store.activate("flowers", version)
    store.rollback("flowers")
    store.activate("flowers", 3)

    assert store.rollback("flowers").version == 1


def test_rollback_skips_retired_versions(store):
    filled(store)
    for version in (1, 2, 3):
        store.activate("flowers", version)
    store.retire("flowers", 2)

    assert store.rollback("flowers").version == 1


def test_a_live_version_cannot_be_retired(store):
    filled(store).activate("flowers", 2)
    with pytest.raises(VersionLiveError):
        store.retire("flowers", 2)


def test_an_activation_with_the_wrong_expected_version_changes_nothing(store):
    filled(store)
    assert store.activate("flowers", 1, expected_live=0).version == 1
    with pytest.raises(ConflictError):
        store.activate("flowers", 2, expected_live=3)
    with pytest.raises(ConflictError):
        store.activate("flowers", 2, expected_live=0)

    assert store.live("flowers").version == 1


def test_activating_the_live_version_records_nothing(store):
    first = filled(store).activate("flowers", 1)

    assert store.activate("flowers", 1) == first


@pytest.mark.parametrize("domain", ["nobody", "../flowers", "", "a/b", "con"])
def test_an_unknown_domain_is_an_error(store, domain):
    filled(store)
    for call in (store.versions, store.live, store.history, store.rollback, store.rollback_target):
        with pytest.raises(DomainNotFoundError):
            call(domain)
    for call in (store.read, store.activate, store.retire):
        with pytest.raises(DomainNotFoundError):
            call(domain, 1)


@pytest.mark.parametrize("version", [0, -1, 4, 10**12])
def test_an_unknown_version_is_an_error(store, version):
    filled(store)
    for call in (store.read, store.activate, store.retire):
        with pytest.raises(VersionNotFoundError):
            call("flowers", version)


def blob_of(data):
    name = digest_bytes(data).removeprefix("sha256:")
    return f"blobs/sha256/{name[:2]}/{name}"


def refuses_the_damaged_version(store):
    for call in (store.read, store.activate):
        with pytest.raises(StoreCorruptError) as caught:
            call("flowers", 2)
        assert caught.value.code == "version_corrupt"
    assert store.live("flowers").version == 1
    assert store.read("flowers", 1) == BUNDLES[0]


@pytest.mark.parametrize("kind", ["one bit", "cut", "longer", "lost"])
def test_a_damaged_blob_is_never_returned_and_never_goes_live(store, place, kind):
    filled(store, 2).activate("flowers", 1)
    key = blob_of(BUNDLES[1])
    if kind == "one bit":
        place.put(key, bytes([BUNDLES[1][0] ^ 1]) + BUNDLES[1][1:])
    elif kind in {"cut", "longer"}:
        place.put(key, BUNDLES[1][:-1] if kind == "cut" else BUNDLES[1] + b"\x00")
    else:
        place.remove(key)
    refuses_the_damaged_version(place.another())


@pytest.mark.parametrize("kind", ["a directory", "a link"])
def test_a_directory_or_link_in_the_place_of_a_blob_is_never_returned_and_never_goes_live(disk_store, kind):
    filled(disk_store, 2).activate("flowers", 1)
    path = disk_store.root / blob_of(BUNDLES[1])
    path.unlink()
    if kind == "a directory":
        path.mkdir()
    else:
        path.symlink_to(disk_store.root / blob_of(BUNDLES[0]))
    refuses_the_damaged_version(disk_store)


def test_adding_the_newest_content_again_repairs_its_blob(store, place):
    filled(store, 2)
    place.put(blob_of(BUNDLES[1]), b"rotten")
    another = place.another()

    assert another.add("flowers", BUNDLES[1]).created is False
    assert another.read("flowers", 2) == BUNDLES[1] == place.get(blob_of(BUNDLES[1]))
    assert [place.get(key) for key in place.names("quarantine/")] == [b"rotten"]


def changed(data, **changes):
    return json.dumps(json.loads(data) | changes).encode()


@pytest.mark.parametrize("kind", ["lost", "changed", "truncated", "reordered"])
def test_a_damaged_log_stops_that_domain_only(store, place, kind):
    filled(store).activate("flowers", 1)
    store.add("weeds", sample_bundle(domain="weeds"))
    second, third = "domains/flowers/log/0000000002.json", "domains/flowers/log/0000000003.json"
    if kind == "lost":
        place.remove(second)
    elif kind == "changed":
        place.put(second, changed(place.get(second), actor="another actor"))
    elif kind == "truncated":
        place.put(second, place.get(second)[:20])
    else:
        place.put(second, place.get(third))
    reopened = place.another()

    with pytest.raises(StoreCorruptError):
        reopened.live("flowers")
    with pytest.raises(StoreCorruptError):
        reopened.gc()
    assert reopened.versions("weeds")[0].version == 1
    assert store.live("flowers").version == 1, "the cached state is still served"


def test_gc_keeps_referenced_files_and_reports_removals(store, place):
    for data in BUNDLES:
        store.add("flowers", data)
    store.activate("flowers", 1)
    store.activate("flowers", 2)
    temporary = store.root / "domains" / "flowers" / "log" / ".tmp-left"
    temporary.write_bytes(b"half")
    planned = store.gc(keep_versions=1, grace_s=-1, temporary_grace_s=-1, dry_run=True)
    assert len(store.versions("flowers")) == len(BUNDLES)
    report = store.gc(keep_versions=1, grace_s=-1, temporary_grace_s=-1)

    assert len(place.names("blobs/")) == 3
    assert report.retired == planned.retired == tuple(("flowers", version) for version in (3, 4, 5))
    assert set(report.removed_blobs) == {digest_bytes(data) for data in BUNDLES[2:5]} == set(planned.removed_blobs)
    assert report.n_removed_temporary == 1
    assert [info.version for info in store.versions("flowers")] == [1, 2, 6]
    assert store.rollback("flowers").version == 1


def test_gc_keeps_files_within_the_grace_period(store, place):
    filled(store)
    store.retire("flowers", 1)
    (store.root / ".tmp-young").write_bytes(b"")
    report = store.gc()

    assert (report.removed_blobs, report.n_removed_temporary) == ((), 0)
    assert place.get(blob_of(BUNDLES[0])) == BUNDLES[0]


def test_a_blob_shared_by_two_domains_is_kept_while_one_refers_to_it(store):
    data = sample_bundle(domain="weeds")
    store.add("weeds", data)
    filled(store)
    store.retire("weeds", 1)
    assert digest_bytes(data) in store.gc(grace_s=-1).removed_blobs
    assert store.read("flowers", 1) == BUNDLES[0]


def test_a_directory_with_other_files_is_not_turned_into_a_store(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreCorruptError) as caught:
        Store.open(tmp_path)

    assert caught.value.code == "not_a_store"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_store_or_one_of_a_later_format_is_not_opened(place):
    with pytest.raises(StoreCorruptError):
        place.open(create=False)
    assert place.names() == []
    place.open()
    place.put("FORMAT", b'{"format":2}')
    with pytest.raises(StoreCorruptError) as caught:
        place.another()

    assert caught.value.code == "not_a_store"


def test_a_store_without_its_empty_directories_works(disk_store):
    filled(disk_store, 1)
    disk_store.retire("flowers", 1)
    disk_store.gc(grace_s=-1)
    (disk_store.root / "LOCK").unlink()
    for path in sorted(disk_store.root.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    reopened = Store.open(disk_store.root, create=False)

    assert reopened.is_writable
    assert reopened.add("flowers", BUNDLES[1]).version == 2


def test_threads_share_a_store_without_losing_anything(store, place):
    n_bundles = 8 if is_s3(place.address) else 40
    bundles = [sample_bundle(seed) for seed in range(n_bundles)]
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda data: store.add("flowers", data), bundles))

    assert sorted(one.version for one in added) == list(range(1, n_bundles + 1))
    assert all(store.read("flowers", one.version) == data for one, data in zip(added, bundles, strict=True))


def test_gc_fails_while_another_writer_holds_the_lock(store):
    filled(store)
    with locked(store.root / "LOCK", exclusive=False), pytest.raises(ConflictError) as caught:
        store.gc()

    assert caught.value.code == "store_busy"


READ_ONLY = """
import os, sys
from prompt_store import Store, StoreReadOnlyError
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
store = Store.open(sys.argv[1])
print(store.is_writable, store.live("flowers").version, len(store.read("flowers", 1)))
data = open(sys.argv[2], "rb").read()
for call in (lambda: store.add("flowers", data), store.gc, lambda: store.activate("flowers", 2)):
    try:
        call()
    except StoreReadOnlyError as error:
        print(error.code)
"""


def test_a_read_only_store_can_be_read(quick_path):
    store = filled(Store.open(quick_path / "store"), 2)
    store.activate("flowers", 1)
    file = quick_path / "bundle"
    file.write_bytes(BUNDLES[3])
    for path in [quick_path, *quick_path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [sys.executable, "-c", READ_ONLY, str(store.root), str(file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for path in [quick_path, *quick_path.rglob("*")]:
        path.chmod(0o755)

    if os.getuid() == 0 and "PermissionError" in result.stderr:
        pytest.skip("the test's user may not read the interpreter or the sources")
    assert result.stdout.split() == ["False", "1", str(len(BUNDLES[0])), *["store_read_only"] * 3]
