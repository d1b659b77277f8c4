"""Errors of one operation or one path concern one domain; only errors of the disk make the store read-only."""

import errno
from contextlib import suppress

import pytest

from prompt_store import PromptStoreError, Store, StoreCorruptError, StoreReadOnlyError, blobs
from tests.prompt_store.faults import CountingDisk, FailingDisk
from tests.prompt_store.samples import sample_bundle

FLOWERS, WEEDS = sample_bundle(0), sample_bundle(1, "weeds")
LOCAL = "ENOSPC ENOENT EACCES EFBIG ENOTDIR ELOOP ENAMETOOLONG EISDIR EPERM EINVAL EMLINK EOPNOTSUPP".split()  # noqa: SIM905
DEVICE = "EIO ENXIO ENODEV EUCLEAN EBADMSG ESTALE ENOTCONN".split()  # noqa: SIM905


def number_of_calls(root):
    disk = CountingDisk()
    store = Store.open(root, disk=disk)
    n_opened = disk.n_calls
    store.add("flowers", FLOWERS)
    return disk.n_calls - n_opened


def failed_add(root, step, name):
    """A store in which call number `step` of adding to `flowers` failed, and the error."""
    Store.open(root)
    store = Store.open(root, disk=FailingDisk(step, getattr(errno, name)))
    try:
        store.add("flowers", FLOWERS)
    except PromptStoreError as error:
        return store, error
    return store, None


@pytest.mark.parametrize("name", [*LOCAL[:3], *(pytest.param(name, marks=pytest.mark.slow) for name in LOCAL[3:])])
def test_an_error_of_one_operation_leaves_other_domains_writable(quick_path, name):
    for step in range(number_of_calls(quick_path / "whole")):
        store, error = failed_add(quick_path / f"store{step}", step, name)
        assert error is None or error.code != "storage_error"
        assert store.is_writable
        assert store.add("weeds", WEEDS).version == 1
        if error is not None and error.code != "commit_unknown":
            assert store.add("flowers", FLOWERS).version == 1
        assert Store.open(store.root).read("weeds", 1) == WEEDS


@pytest.mark.parametrize("name", DEVICE)
def test_an_error_of_the_disk_stops_all_writes_until_a_restart(quick_path, name):
    n_errors = 0
    for step in range(number_of_calls(quick_path / "whole")):
        store, error = failed_add(quick_path / f"store{step}", step, name)
        if error is None:
            continue
        n_errors += 1
        assert error.code in {"storage_error", "commit_unknown"}
        assert not store.is_writable
        with pytest.raises(StoreReadOnlyError):
            store.add("weeds", WEEDS)
    assert n_errors > 5


def test_after_an_uncertain_commit_only_its_domain_waits_for_a_restart(quick_path):
    codes = set()
    for step in range(number_of_calls(quick_path / "whole")):
        store, error = failed_add(quick_path / f"store{step}", step, "ENOSPC")
        if error is None or error.code != "commit_unknown":
            continue
        with pytest.raises(StoreReadOnlyError) as caught:
            store.add("flowers", sample_bundle(2))
        codes.add(caught.value.code)
        assert store.add("weeds", WEEDS).version == 1
        with suppress(PromptStoreError):
            assert Store.open(store.root).add("flowers", FLOWERS).version == 1
    assert codes == {"commit_unknown"}


@pytest.mark.parametrize("place", ["domains/flowers", "domains/flowers/log"])
@pytest.mark.parametrize("is_known", [False, True], ids=["unknown before", "known before"])
def test_a_file_in_the_place_of_a_directory_fails_its_domain_only(quick_path, place, is_known):
    store = Store.open(quick_path / "store")
    if is_known:
        store.add("flowers", FLOWERS)
        (store.root / place).rename(quick_path / "away")
    (store.root / place).parent.mkdir(parents=True, exist_ok=True)
    (store.root / place).write_bytes(b"")
    calls = [lambda: store.add("flowers", FLOWERS), lambda: store.live("flowers"), lambda: store.versions("flowers")]
    for call in calls:
        with pytest.raises(StoreCorruptError, match="caspl store check"):
            call()

    assert store.is_writable
    assert store.add("weeds", WEEDS).version == 1
    assert store.domains() == ["flowers", "weeds"]


def test_running_out_of_file_descriptors_while_reading_is_no_damage(quick_path, monkeypatch):
    store = Store.open(quick_path / "store")
    store.add("flowers", FLOWERS)

    def fail(*_, **__):
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as patched:
        patched.setattr(blobs, "read_file", fail)
        for call in (lambda: store.read("flowers", 1), lambda: store.add("flowers", FLOWERS)):
            with pytest.raises(StoreReadOnlyError) as caught:
                call()
            assert caught.value.code == "storage_busy"
    assert not any((store.root / "quarantine").iterdir())
    assert store.read("flowers", 1) == FLOWERS
