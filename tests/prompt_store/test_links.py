"""Symbolic links inside a store are not followed, neither to write nor to read; links to the store are."""

import os

import pytest

from prompt_store import Store, StoreCorruptError
from prompt_store.disk import Disk
from tests.prompt_store.samples import sample_bundle, tree

FLOWERS, WEEDS, NEXT = sample_bundle(0), sample_bundle(1, "weeds"), sample_bundle(2)
PLACES = ["domains/flowers", "domains/flowers/log", "blobs/sha256", "blobs"]


@pytest.fixture
def store(quick_path):
    store = Store.open(quick_path / "store")
    store.add("flowers", FLOWERS)
    store.activate("flowers", 1)
    return store


def replace_by_link(store, place, elsewhere):
    """Move a directory out of the store and put a link to it in its place."""
    path = store.root / place
    path.rename(elsewhere)
    path.symlink_to(elsewhere, target_is_directory=True)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_reopened", [False, True], ids=["running", "reopened"])
def test_a_linked_directory_is_not_written_to(store, quick_path, place, is_reopened):
    elsewhere = quick_path / "elsewhere"
    replace_by_link(store, place, elsewhere)
    before = tree(elsewhere)
    if is_reopened:
        store = Store.open(store.root)
    with pytest.raises(StoreCorruptError):
        store.add("flowers", NEXT)

    assert tree(elsewhere) == before


@pytest.mark.parametrize("place", PLACES)
def test_a_linked_directory_is_not_read(store, quick_path, place):
    replace_by_link(store, place, quick_path / "elsewhere")
    reopened = Store.open(store.root)
    with pytest.raises(StoreCorruptError):
        reopened.read("flowers", 1)
    with pytest.raises(StoreCorruptError):
        reopened.activate("flowers", 1) if place.startswith("domains") else store.read("flowers", 1)


def test_a_planted_domain_is_listed_as_damaged_and_never_written_to(store, quick_path):
    elsewhere = quick_path / "elsewhere"
    elsewhere.mkdir()
    (store.root / "domains" / "weeds").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(StoreCorruptError):
        store.add("weeds", WEEDS)

    assert list(elsewhere.iterdir()) == []
    assert store.domains() == ["flowers", "weeds"]
    assert store.add("flowers", NEXT).version == 2


def test_linked_directories_of_all_domains_are_an_error_of_the_store(store, quick_path):
    replace_by_link(store, "domains", quick_path / "elsewhere")
    with pytest.raises(StoreCorruptError, match="symbolic link"):
        Store.open(store.root).domains()


def test_a_linked_record_or_bundle_is_not_read(store, quick_path):
    for path in [*store.root.rglob("0000000001.json"), *(store.root / "blobs").rglob("*")]:
        if path.is_file():
            path.rename(quick_path / path.name)
            path.symlink_to(quick_path / path.name)
    reopened = Store.open(store.root)

    for call in (lambda: reopened.live("flowers"), lambda: store.read("flowers", 1)):
        with pytest.raises(StoreCorruptError):
            call()


def test_garbage_collection_removes_nothing_behind_a_link(store, quick_path):
    elsewhere = quick_path / "elsewhere"
    (elsewhere / "log").mkdir(parents=True)
    (elsewhere / "log" / ".tmp-theirs").write_bytes(b"")
    (elsewhere / ("ab" * 32)).write_bytes(b"")
    (store.root / "domains" / "not_a_domain").symlink_to(elsewhere)
    (store.root / "blobs" / "sha256" / "ab").symlink_to(elsewhere)
    before = tree(elsewhere)
    report = store.gc(grace_s=-1, temporary_grace_s=-1)

    assert tree(elsewhere) == before
    assert report.n_removed_temporary == 0


@pytest.mark.parametrize("call", ["open_new", "link", "make_dir"])
def test_a_link_planted_at_the_last_moment_is_not_followed(store, quick_path, call):
    elsewhere = quick_path / "elsewhere"
    elsewhere.mkdir()

    class Race(Disk):
        def plant(self, path):
            if "domains" in path.parts and path.parent.name == "log" and not path.parent.is_symlink():
                path.parent.rename(quick_path / "away")
                path.parent.symlink_to(elsewhere)

        def open_new(self, path):
            if call == "open_new":
                self.plant(path)
            return super().open_new(path)

        def link(self, source, target):
            if call == "link":
                self.plant(target)
            super().link(source, target)

        def make_dir(self, path):
            if call == "make_dir" and path.name == "log":
                path.parent.rename(quick_path / "away")
                path.parent.symlink_to(elsewhere)
            super().make_dir(path)

    raced = Store.open(store.root, disk=Race())
    with pytest.raises(StoreCorruptError):
        raced.add("weeds", WEEDS)

    assert list(elsewhere.iterdir()) == []


def test_the_store_itself_may_be_reached_through_a_link(store, quick_path, monkeypatch):
    (quick_path / "current").symlink_to(store.root, target_is_directory=True)
    linked = Store.open(quick_path / "current")
    assert linked.add("flowers", NEXT).version == 2
    monkeypatch.chdir(quick_path)
    relative = Store.open("current")
    os.chdir("/")
    assert relative.read("flowers", 2) == NEXT
