"""`caspl store check`: damage and leftovers by name, and repairs that delete nothing."""

import errno
import json
import random
import re
import shutil
import threading
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from prompt_store import ConflictError, Store, StoreCorruptError, VersionExistsError, record_files
from prompt_store.cli import store_app
from prompt_store.durable import locked
from prompt_store.repair import check_store
from tests.prompt_store.faults import CountingDisk, CrashingDisk, ProcessCrash
from tests.prompt_store.samples import sample_bundle, tree

BUNDLES = [sample_bundle(seed) for seed in range(5)]


@pytest.fixture
def store(quick_path):
    """Domain `flowers` with five records and three versions, the second is live; domain `weeds` with one version."""
    store = Store.open(quick_path / "store")
    store.add("weeds", sample_bundle(0, "weeds"))
    for data in BUNDLES[:3]:
        store.add("flowers", data)
    store.activate("flowers", 1)
    store.activate("flowers", 2)
    return store


def record(store, number):
    return store.root / "domains" / "flowers" / "log" / f"{number:010d}.json"


def blob(store, version):
    digest = next(one.digest for one in store.versions("flowers") if one.version == version).removeprefix("sha256:")
    return store.root / "blobs" / "sha256" / digest[:2] / digest


def overwrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


def run(store, *options, code):
    result = CliRunner().invoke(store_app, ["check", "--store", str(store.root), *options])
    assert result.exit_code == code, result.output
    return result.stdout


def contents(root):
    """The contents of all files, wherever they are."""
    return {data for data in tree(root).values() if data}


def test_a_sound_store_is_described_and_left_alone(store):
    before = tree(store.root)
    shown = run(store, code=0)
    facts = json.loads(run(store, "--json", code=0))

    assert "flowers: ok, 5 records, 3 versions, version 2 is live" in shown
    assert "weeds: ok, 1 record, 1 version, none is live" in shown
    assert (facts["is_sound"], facts["findings"], facts["repairs"]) == (True, [], [])
    assert tree(store.root) == before
    assert run(store, "--repair", code=0) == shown
    assert tree(store.root) == before


DAMAGES = {
    "lost record": (lambda store: record(store, 3).unlink(), "record 3 is missing", "intact records before it: 2"),
    "cut record": (
        lambda store: overwrite(record(store, 5), record(store, 5).read_bytes()[:40]),
        "record 5 is damaged: it is not a valid record",
        "intact records before it: 4",
    ),
    "changed record": (
        lambda store: overwrite(record(store, 4), record(store, 4).read_bytes().replace(b'"actor":""', b'"actor":"e"')),
        "record 4 is damaged: its checksum does not match",
        "intact records before it: 3",
    ),
    "exchanged record": (
        lambda store: overwrite(record(store, 4), record(store, 5).read_bytes()),
        "record 4 is damaged: it does not continue the chain",
        "intact records before it: 3",
    ),
    "damaged bundle": (lambda store: overwrite(blob(store, 2), b"rot"), "version 2, which is live", "is damaged"),
    "lost bundle": (lambda store: blob(store, 1).unlink(), "version 1: the stored bundle", "is missing"),
    "linked domain": (
        lambda store: link_away(store, store.root / "domains" / "flowers"),
        "domains/flowers: a symbolic link",
        "unreadable",
    ),
    "linked blobs": (lambda store: link_away(store, store.root / "blobs"), "blobs: a symbolic link", "version 1"),
    "file for a log": (lambda store: file_for(store, record(store, 1).parent), "expected a directory", "unreadable"),
    "directory for the format": (
        lambda store: ((store.root / "FORMAT").unlink(), (store.root / "FORMAT").mkdir()),
        "format: expected a file",
        "format: the file is damaged",
    ),
    "file for all domains": (lambda store: file_for(store, store.root / "domains"), "domains: expected a", "damaged"),
    "damaged format": (lambda store: overwrite(store.root / "FORMAT", b"{"), "format: the file is damaged", "format"),
    "lost format": (lambda store: (store.root / "FORMAT").unlink(), "format: the file is missing", "format"),
}


def link_away(store, path):
    elsewhere = store.root.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def file_for(store, path):
    path.rename(store.root.parent / "away")
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_place_and_nothing_is_changed(store, damage):
    make, *words = DAMAGES[damage]
    make(store)
    before = tree(store.root)
    shown = run(store, code=1)

    for word in words:
        assert word in shown.lower()
    assert "The store is damaged" in shown
    assert json.loads(run(store, "--json", code=1))["is_sound"] is False
    assert tree(store.root) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_repair_deletes_nothing_and_leaves_the_other_domain_alone(store, damage):
    DAMAGES[damage][0](store)
    weeds = tree(store.root / "domains" / "weeds")
    before = contents(store.root.parent)
    CliRunner().invoke(store_app, ["check", "--repair", "--store", str(store.root)])

    assert contents(store.root.parent) >= before
    assert tree(store.root / "domains" / "weeds") == weeds
    again = CliRunner().invoke(store_app, ["check", "--repair", "--json", "--store", str(store.root)])
    assert json.loads(again.stdout)["repairs"] == []


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_a_record_in_which_one_bit_changed_is_restored(store, number):
    data = record(store, number).read_bytes()
    before = store.history("flowers")
    overwrite(record(store, number), bytes([*data[:50], data[50] ^ 4, *data[51:]]))
    assert "One bit changed" in run(store, code=1)
    shown = run(store, "--repair", code=0)

    assert "Restored" in shown
    assert "flowers: ok, 5 records" in shown
    assert record(store, number).read_bytes() == data
    assert Store.open(store.root).history("flowers") == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_record_that_cannot_be_read_now_is_named_and_stays(store, monkeypatch, number):
    def fail_third(name, **options):
        if name == "0000000003.json":
            raise OSError(number, "no")
        return read_file(name, **options)

    read_file = record_files.read_file
    before = tree(store.root)
    monkeypatch.setattr(record_files, "read_file", fail_third)

    assert f"record 3 is unreadable ({errno.errorcode[number]})" in run(store, "--repair", code=1)
    assert tree(store.root) == before


def test_a_broken_tail_moves_to_the_quarantine_with_the_bundles_it_names(store):
    overwrite(record(store, 3), b"{}")
    tail = {record(store, number).read_bytes() for number in (3, 4, 5)}
    shown = run(store, "--repair", code=0)
    reopened = Store.open(store.root)

    assert "Moved to quarantine/" in shown
    assert "flowers: ok, 2 records, 2 versions, none is live" in shown
    assert contents(store.root / "quarantine") >= tail
    assert [one.version for one in reopened.versions("flowers")] == [1, 2]
    assert reopened.add("flowers", BUNDLES[2]).version == 3


def test_bundles_of_records_that_a_repair_moves_survive_garbage_collection(store):
    overwrite(record(store, 2), b"{}")
    run(store, "--repair", code=0)
    Store.open(store.root).gc(grace_s=-1, temporary_grace_s=-1)

    assert BUNDLES[2] in contents(store.root / "quarantine")


def test_a_lost_bundle_of_any_version_is_repaired_by_adding_its_file_again(store):
    overwrite(blob(store, 1), b"rot")
    blob(store, 3).unlink()
    run(store, "--repair", code=1)
    with pytest.raises(VersionExistsError):
        store.add("flowers", BUNDLES[0])
    assert store.add("flowers", BUNDLES[2]).version == 3

    assert "The store is sound" in run(store, code=0)


def test_leftovers_are_no_damage_and_a_repair_moves_them(store):
    (record(store, 1).parent / ".tmp-left").write_bytes(b"half")
    (store.root / "notes.txt").write_text("mine")
    store.retire("flowers", 3)
    shown = run(store, code=0)
    assert ".tmp-left: Left by an interrupted write" in shown
    assert "notes.txt: Not a file of the store" in shown
    assert "Bundles that belong to no version: 1" in shown
    run(store, "--repair", code=0)

    assert not list((store.root / "domains").rglob(".tmp-*"))
    assert b"half" in contents(store.root / "quarantine")
    assert (store.root / "notes.txt").read_text() == "mine"


def test_a_store_in_use_is_checked_but_not_repaired(store):
    with locked(store.root / "LOCK", exclusive=False):
        assert check_store(store.root)[0].is_sound
        with pytest.raises(ConflictError) as caught:
            check_store(store.root, repair=True)
    assert caught.value.code == "store_busy"


def test_a_check_beside_a_writer_finds_no_damage(store):
    writer = threading.Thread(target=lambda: [store.add("weeds", sample_bundle(n, "weeds")) for n in range(1, 60)])
    writer.start()
    n_checks = 0
    while writer.is_alive() or not n_checks:
        assert check_store(store.root)[0].is_sound
        n_checks += 1
    writer.join()


def test_a_directory_that_is_no_store_is_left_alone(tmp_path):
    with pytest.raises(StoreCorruptError) as caught:
        check_store(tmp_path, repair=True)
    assert caught.value.code == "not_a_store"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", ["cut record", pytest.param("lost record", marks=pytest.mark.slow), "damaged bundle", "flipped bit"]
)
def test_an_interrupted_repair_is_finished_by_the_next_one(quick_path, store, damage):
    def damaged_copy(name):
        root = quick_path / name
        shutil.copytree(store.root, root)
        copy = Store.open(root)
        if damage == "flipped bit":
            data = record(copy, 3).read_bytes()
            overwrite(record(copy, 3), bytes([*data[:60], data[60] ^ 1, *data[61:]]))
        else:
            DAMAGES[damage][0](copy)
        return root

    whole = damaged_copy("whole")
    disk = CountingDisk()
    expected = check_store(whole, repair=True, disk=disk)[0]
    assert disk.n_calls > 3
    for step in range(disk.n_calls):
        root = damaged_copy(f"{step}")
        before = contents(root)
        with pytest.raises(ProcessCrash):
            check_store(root, repair=True, disk=CrashingDisk(step))
        found, _ = check_store(root, repair=True)
        assert found == expected
        assert contents(root) >= before


@pytest.mark.parametrize("damage", ["linked domain", "file for a log", "file for all domains", "lost record"])
def test_bundles_of_a_damaged_domain_survive_a_repair_and_garbage_collection(store, damage):
    DAMAGES[damage][0](store)
    before = contents(store.root / "blobs")
    check_store(store.root, repair=True)
    with suppress(StoreCorruptError):
        Store.open(store.root).gc(grace_s=-1)

    assert contents(store.root) >= before


def damage_something(dice, root):
    """Flip, cut, remove, replace or exchange something in a store."""
    places = sorted(path for path in root.rglob("*") if path.parent != root and "quarantine" not in path.parts)
    path = dice.choice(places)
    kind = dice.choice(["flip", "cut", "remove", "replace", "link", "exchange"])
    aside = root.parent / f"aside{dice.random()}"
    if path.is_dir() or kind in {"remove", "replace", "link"}:
        path.rename(aside)
        if kind in {"replace", "flip"}:
            path.write_bytes(b"") if aside.is_dir() else path.mkdir()
        elif kind == "link":
            path.symlink_to(aside)
        return
    data = path.read_bytes()
    if kind == "exchange":
        data = dice.choice([other for other in places if other.is_file()]).read_bytes()
    elif kind == "cut":
        data = data[: dice.randrange(len(data))] if data else b"x"
    elif data:
        index = dice.randrange(len(data))
        data = bytes([*data[:index], data[index] ^ 1 << dice.randrange(8), *data[index + 1 :]])
    overwrite(path, data)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_found_and_the_repaired_store_works(store, seed):
    dice = random.Random(seed)  # noqa: S311 - choices, not secrets
    for _ in range(dice.choice([1, 1, 3])):
        damage_something(dice, store.root)
    before = contents(store.root.parent)
    check_store(store.root)
    found, _ = check_store(store.root, repair=True)
    assert contents(store.root.parent) >= before
    damage = [one.detail for one in found.all_findings() if one.is_damage]
    assert all(re.search("stored bundle|symbolic link|Expected a directory|log is unreadable", one) for one in damage)

    reopened = Store.open(store.root)
    for domain in found.domains:
        if not any("unreadable" in one.detail for one in domain.findings):
            assert [one.is_live for one in reopened.versions(domain.domain)].count(True) == bool(domain.live)
            assert len(reopened.history(domain.domain)) == domain.n_records
    if all("stored bundle" in one for one in damage):
        reopened.gc()
        assert reopened.activate("flowers", reopened.add("flowers", BUNDLES[4]).version).version


def test_names_with_control_characters_are_shown_without_them(store):
    (store.root / "evil\x1b[31m").write_bytes(b"")
    assert "\x1b" not in run(store, code=0)


def test_a_directory_with_the_versions_of_another_domain_is_damage(store):
    (store.root / "domains" / "weeds").rename(store.root / "domains" / "trees")
    found = run(store, code=1)
    assert "domains/trees: Version 1 is a bundle for weeds" in " ".join(found.split())
    run(store, "--repair", code=1)
    assert len(store.versions("trees")) == 1
