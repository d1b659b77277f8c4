"""Faults at any system call: acknowledged commits survive, partial commits are never visible."""

import errno
from contextlib import suppress
from pathlib import Path

import pytest

from prompt_store import PromptStoreError, StorageFullError, Store, StoreReadOnlyError
from tests.prompt_store.faults import (
    BUNDLES,
    NOTHING,
    CountingDisk,
    CrashingDisk,
    FailingDisk,
    PowerLossDisk,
    ProcessCrash,
    check_recovery,
    run_scenario,
    scenario,
    view,
)


def n_steps(root):
    disk = CountingDisk()
    run_scenario(root, disk)
    return disk.n_calls


@pytest.mark.parametrize("is_after", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["before", "after"])
def test_a_process_that_dies_at_any_call_loses_nothing_acknowledged(quick_path, is_after):
    total = n_steps(quick_path / "whole")
    assert total > 80
    for step in range(total):
        root = quick_path / f"{step}"
        acknowledged, attempted = run_scenario(root, CrashingDisk(step, is_after=is_after))
        check_recovery(root, acknowledged, attempted)


def test_a_crash_during_recovery_loses_nothing(quick_path):
    root = quick_path / "store"
    run_scenario(root, CrashingDisk(60))
    store = Store.open(root)
    seen = view(store)
    for step in range(4):
        with suppress(ProcessCrash):
            Store.open(root, disk=CrashingDisk(step)).gc(grace_s=-1, temporary_grace_s=-1)
        assert view(Store.open(root)) == seen
    check_recovery(root, seen, seen)


def power_cuts(quick_path, skipped=None, every=1):
    total = n_steps(quick_path / "whole")
    for step in range(0, total + 1, every):
        root = quick_path / f"{step}"
        disk = PowerLossDisk(step, skipped)
        acknowledged, attempted = run_scenario(root, disk)
        for scratch in disk.possible_states(root, quick_path / "scratch"):
            yield scratch, acknowledged, attempted


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_power_failure_at_any_call_loses_nothing_acknowledged(quick_path, every):
    n_disks = 0
    for scratch, acknowledged, attempted in power_cuts(quick_path, every=every):
        assert view(Store.open(scratch, disk=PowerLossDisk(-1))) in (acknowledged, attempted)
        n_disks += 1
    assert n_disks > 300 / every


def test_what_a_killed_writer_left_unsynced_is_synced_before_another_one_acknowledges_it(quick_path):
    disk = CountingDisk()
    Store.open(quick_path / "whole", disk=disk).add("flowers", BUNDLES[0])
    n_found = 0
    for step in range(disk.n_calls):
        root = quick_path / f"{step}"
        killed = PowerLossDisk(step)
        with suppress(ProcessCrash):
            Store.open(root, disk=killed).add("flowers", BUNDLES[0])
        killed.is_dead, killed.step = False, -1  # the same disk, and another process
        n_found += not Store.open(root, disk=killed).add("flowers", BUNDLES[0]).created
        for scratch in killed.possible_states(root, quick_path / "scratch"):
            assert view(Store.open(scratch, create=False)) == ({1: 0}, None)
    assert n_found >= 2, "the record was there, but maybe not durable"


@pytest.mark.parametrize("skipped", ["sync_file", "sync_dir", "log", "domains", "sha256"])
def test_a_missing_sync_would_be_detected(quick_path, skipped):
    def is_harmed(scratch, acknowledged, attempted):
        try:
            return view(Store.open(scratch, disk=PowerLossDisk(-1))) not in (acknowledged, attempted)
        except PromptStoreError:
            return True

    assert any(is_harmed(*cut) for cut in power_cuts(quick_path, skipped))


def failure(call):
    try:
        call()
    except PromptStoreError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, StorageFullError), (errno.EROFS, StoreReadOnlyError)], ids=["full", "ro"]
)
def test_a_failed_call_changes_nothing_or_reports_commit_unknown(quick_path, number, expected):
    total = n_steps(quick_path / "whole")
    root = quick_path / "store"
    Store.open(root)
    n_checked = 0
    for step in range(total):
        disk = FailingDisk(step, number)
        store = Store.open(root, disk=disk)
        before, left_over = view(store), set(root.rglob(".tmp-*"))
        error = failure(lambda store=store: store.add("flowers", BUNDLES[0]))
        if error is None:
            break
        n_checked += 1
        assert isinstance(error, expected) or error.code == "commit_unknown"
        if error.code != "commit_unknown":
            assert view(Store.open(root)) == before
            assert set(root.rglob(".tmp-*")) <= left_over
    assert n_checked >= 10
    assert view(Store.open(root)) == ({1: 0}, None)


def test_after_a_failed_sync_nothing_is_written_until_a_restart(quick_path):
    root = quick_path / "store"
    Store.open(root).add("flowers", BUNDLES[0])
    codes = []
    for step in range(40):
        disk = FailingDisk(step, errno.EIO)
        store = Store.open(root, disk=disk)
        try:
            store.activate("flowers", 1)
        except StoreReadOnlyError as error:
            codes.append(error.code)
            n_calls = disk.n_calls
            with pytest.raises(StoreReadOnlyError):
                store.add("flowers", BUNDLES[1])
            assert disk.n_calls == n_calls
            assert not store.is_writable
            assert store.read("flowers", 1) == BUNDLES[0]
        if Store.open(root).live("flowers"):
            break

    assert codes[0] == "storage_error"
    assert codes[-1] == "commit_unknown"


def test_running_out_of_file_descriptors_is_transient(quick_path):
    codes = set()
    for step in range(n_steps(quick_path / "whole")):
        root = quick_path / f"store{step}"
        Store.open(root)
        store = Store.open(root, disk=FailingDisk(step, errno.EMFILE))
        error = failure(lambda store=store: store.add("flowers", BUNDLES[0]))
        if error is None:
            break
        codes.add(error.code)
        assert store.is_writable
        assert store.add("flowers", BUNDLES[0]).version == 1
        assert view(Store.open(root)) == ({1: 0}, None)
    assert codes == {"storage_busy", "commit_unknown"}


def test_short_writes_are_completed(quick_path):
    class SlowDisk(CountingDisk):
        def around(self, name, call, arguments):
            if name == "write":
                arguments = (arguments[0], arguments[1][:100])
            return super().around(name, call, arguments)

    store = Store.open(quick_path / "store", disk=SlowDisk())
    store.add("flowers", BUNDLES[0])

    assert store.read("flowers", 1) == BUNDLES[0]


def test_a_nearly_full_disk_is_detected_before_the_first_write(quick_path):
    class SmallDisk(CountingDisk):
        def free_bytes(self, path: Path) -> int:
            return 2 * len(BUNDLES[0]) + 64 * 1024 * 1024 - 1

    disk = SmallDisk()
    store = Store.open(quick_path / "store", disk=disk)
    n_calls = disk.n_calls

    with pytest.raises(StorageFullError):
        store.add("flowers", BUNDLES[0])
    assert disk.n_calls == n_calls
    assert view(store) == NOTHING


def test_the_scenario_succeeds_on_a_healthy_disk(quick_path):
    store = Store.open(quick_path / "store")
    for action, expected in scenario():
        action(store)
        assert view(store) == expected
