"""`caspl store check` and `gc` of a store with examples."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from prompt_store.cli import store_app
from prompt_store.disk import Disk
from prompt_store.errors import StoreCorruptError
from prompt_store.store import Store
from tests.prompt_store.samples import sample_bundle
from tests.service.examples.pictures import KEY, add, new_example, open_database

NAME = "examples.sqlite3"


@pytest.fixture
def store(quick_path):
    """A store with a bundle, an older one that nothing refers to, and thirty examples."""
    store = Store.open(quick_path / "store")
    for seed in range(2):
        store.add("flowers", sample_bundle(seed))
    store.activate("flowers", 2)
    store.retire("flowers", 1)
    database = open_database(store.root)
    add(database, *(new_example(n, f"class {n % 3}") for n in range(30)))
    database.close()
    return store


def run(store, command, *options, code=0):
    result = CliRunner().invoke(store_app, [command, "--store", str(store.root), "--json", *options])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def cut(path):
    path.write_bytes(path.read_bytes()[:20_000])


def overwrite_the_header(path):
    path.write_bytes(b"no database" + path.read_bytes()[11:])


def overwrite_the_middle(path):
    content = bytearray(path.read_bytes())
    content[16_384:40_960] = b"\xff" * (40_960 - 16_384)
    path.write_bytes(content)


DAMAGES = [cut, overwrite_the_header, overwrite_the_middle]


def test_a_store_with_examples_is_sound_and_checking_changes_nothing(store):
    before = (store.root / NAME).read_bytes()
    facts = run(store, "check")

    assert facts["is_sound"]
    assert [one for one in facts["findings"] if NAME in one["path"]] == []
    assert (store.root / NAME).read_bytes() == before
    assert not list(store.root.glob(f"{NAME}-*"))


def test_examples_are_checked_while_a_process_uses_them(store):
    database = open_database(store.root)
    add(database, new_example(99, "rose"))
    assert {path.name for path in store.root.glob(f"{NAME}-*")} == {f"{NAME}-wal", f"{NAME}-shm"}

    assert run(store, "check")["is_sound"]
    add(database, new_example(100, "rose"))
    assert database.counts("flowers").labelled == 32
    database.close()


def test_garbage_collection_leaves_the_examples_alone(store):
    before = (store.root / NAME).read_bytes()
    report = run(store, "gc", "--grace-h", "0")

    assert len(report["removed_blobs"]) == 1
    assert (store.root / NAME).read_bytes() == before


def test_garbage_collection_returns_the_space_of_removed_examples_while_a_service_runs(store):
    marker = b"PICTURE" * 10_000
    database = open_database(store.root)
    added = add(database, *(new_example(100 + n, "rose", picture=marker) for n in range(9)))
    database.remove("flowers", [one.id for one in added])
    expected = run(store, "gc", "--dry-run")["freed_bytes"]
    assert expected >= 9 * len(marker)
    assert run(store, "gc")["freed_bytes"] == expected

    assert database.counts("flowers").labelled == 30
    assert add(database, new_example(99, "rose"))[0].status == "added"
    database.close()
    assert marker[:100] not in (store.root / NAME).read_bytes()
    assert (store.root / NAME).stat().st_size < 9 * len(marker)
    assert run(store, "gc")["freed_bytes"] == 0


def test_garbage_collection_without_space_for_a_copy_does_everything_else_and_is_an_error(store, monkeypatch):
    database = open_database(store.root)
    added = add(database, new_example(99, "rose", picture=b"x" * 100_000))
    database.remove("flowers", [added[0].id])
    database.close()
    monkeypatch.setattr(Disk, "free_bytes", lambda *_: 1000)
    result = CliRunner().invoke(store_app, ["gc", "--store", str(store.root), "--grace-h", "0"])

    assert result.exit_code == 1
    assert "insufficient_storage: Rewriting the database of examples needs" in result.stderr
    assert "1000 are free" in result.stderr
    assert len([path for path in (store.root / "blobs").rglob("*") if path.is_file()]) == 1
    assert open_database(store.root).counts("flowers").labelled == 30


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_examples_are_found_and_a_repair_moves_them_to_the_quarantine(store, damage):
    damage(store.root / NAME)
    damaged = (store.root / NAME).read_bytes()
    findings = [one for one in run(store, "check", code=1)["findings"] if one["path"] == NAME]
    assert len(findings) == 1
    assert "The examples are damaged" in findings[0]["detail"]
    assert (store.root / NAME).read_bytes() == damaged

    facts = run(store, "check", "--repair")
    assert facts["is_sound"]
    assert damaged in [path.read_bytes() for path in (store.root / "quarantine").rglob(NAME)]
    database = open_database(store.root)
    assert database.counts("flowers").labelled == 0
    assert add(database, new_example(1, "rose"))[0].status == "added"
    database.close()
    assert store.read("flowers", 2) == sample_bundle(1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_examples_give_a_clear_error_until_they_are_replaced(store, damage):
    database = open_database(store.root)
    backup = store.root.parent / "backup"
    shutil.copy(store.root / NAME, backup)
    damage(store.root / NAME)
    calls = [
        lambda: add(database, *(new_example(n, "tulip") for n in range(40))),
        lambda: [database.page("flowers", limit=1000), database.labelled("flowers", KEY)],
        lambda: database.remove("flowers", None),
    ]
    for call in calls:
        with pytest.raises(StoreCorruptError, match="caspl store check") as caught:
            call()
        assert caught.value.code == "database_corrupt"

    backup.replace(store.root / NAME)
    assert database.counts("flowers").labelled == 30
    assert add(database, new_example(99, "rose"))[0].status == "added"
    database.close()


def test_an_empty_file_is_a_damaged_database(store):
    (store.root / NAME).write_bytes(b"")
    database = open_database(store.root)
    for call in (lambda: database.page("flowers"), lambda: add(database, new_example(1))):
        with pytest.raises(StoreCorruptError):
            call()
    assert not run(store, "check", code=1)["is_sound"]
    assert run(store, "check", "--repair")["is_sound"]


def test_a_log_without_its_database_is_neither_used_nor_lost(store):
    database = open_database(store.root)
    add(database, new_example(99, "rose"))
    log = (store.root / f"{NAME}-wal").read_bytes()
    (store.root / NAME).unlink()
    with pytest.raises(StoreCorruptError, match="write-ahead log"):
        add(database, new_example(1, "rose"))
    assert not run(store, "check", code=1)["is_sound"]
    assert run(store, "check", "--repair")["is_sound"]

    assert [path.read_bytes() for path in (store.root / "quarantine").rglob(f"{NAME}-wal")] == [log]
    assert add(database, new_example(1, "rose"))[0].id == 1
    database.close()


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_link_or_a_directory_in_the_place_of_the_database_is_not_followed(store, kind):
    path, elsewhere = store.root / NAME, store.root.parent / "elsewhere"
    path.replace(elsewhere)
    path.symlink_to(elsewhere) if kind == "link" else path.mkdir()
    before = elsewhere.read_bytes()
    database = open_database(store.root)
    for call in (lambda: database.page("flowers"), lambda: add(database, new_example(1))):
        with pytest.raises(StoreCorruptError, match="symbolic link or a directory"):
            call()

    assert elsewhere.read_bytes() == before
    assert [one["path"] for one in run(store, "check", code=1)["findings"] if one["is_damage"]] == [NAME]


def test_examples_alone_do_not_keep_a_directory_from_becoming_a_store(quick_path):
    database = open_database(quick_path)
    add(database, new_example(1, "rose"))
    database.close()

    assert Store.open(quick_path).domains() == []
