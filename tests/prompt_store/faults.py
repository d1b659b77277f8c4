"""Fault injection: crashes, disk errors and power failures, and a scenario of store operations to run them on."""

import os
import shutil
from itertools import combinations
from pathlib import Path

from prompt_store import Store
from prompt_store.disk import Disk
from tests.prompt_store.samples import sample_bundle

CALLS = (
    "open_new reserve write sync_file make_read_only close link unlink rename make_dir sync_dir".split()  # noqa: SIM905
)
BUNDLES = [sample_bundle(seed) for seed in range(4)]


class ProcessCrash(BaseException):
    """The process crashed; a BaseException, so that the code under test cannot catch it."""


def counted(name):
    def call(self, *arguments):
        return self.around(name, getattr(Disk, name), arguments)

    return call


class CountingDisk(Disk):
    """Numbers every call from 0."""

    def __init__(self):
        self.n_calls = 0

    def around(self, name, call, arguments):
        self.n_calls += 1
        return call(self, *arguments)


for _name in CALLS:
    setattr(CountingDisk, _name, counted(_name))


class CrashingDisk(CountingDisk):
    """Crashes right before or after call number `step`; all later calls fail."""

    def __init__(self, step, *, is_after=False):
        super().__init__()
        self.step = step
        self.is_after = is_after
        self.is_dead = False

    def around(self, name, call, arguments):
        if self.is_dead:
            raise ProcessCrash
        if self.n_calls == self.step:
            self.is_dead = True
            if self.is_after:
                call(self, *arguments)
            raise ProcessCrash(name)
        return super().around(name, call, arguments)


class FailingDisk(CountingDisk):
    """Call number `step` fails with `errno`; all others succeed."""

    def __init__(self, step, errno):
        super().__init__()
        self.step = step
        self.errno = errno
        self.failed_call = None

    def around(self, name, call, arguments):
        if self.n_calls == self.step:
            self.n_calls += 1
            self.failed_call = name
            raise OSError(self.errno, os.strerror(self.errno))
        return super().around(name, call, arguments)


class PowerLossDisk(CrashingDisk):
    """Tracks unsynced data, and enumerates the disk states that are possible after a power failure.

    `skipped` names one kind of sync to skip, to verify that the test detects its absence.
    """

    def __init__(self, step, skipped=None):
        super().__init__(step)
        self.skipped = skipped
        self.names = []  # (directory, how to undo it in another tree)
        self.unsynced = {}  # inode -> paths
        self.paths = {}  # file descriptor -> path

    def around(self, name, call, arguments):
        if name == "unlink" and not self.is_dead and self.n_calls != self.step:
            path = arguments[0]
            content = path.read_bytes() if path.exists() else b""
            self.names.append((path.parent, "recreate", path, content))
        if name in {"sync_file", "sync_dir"}:
            call = type(self).forget  # no real fsync needed
        result = super().around(name, call, arguments)
        if name == "open_new":
            self.paths[result] = arguments[0]
            self.names.append((arguments[0].parent, "remove", arguments[0], None))
        elif name == "write":
            self.unsynced[os.fstat(arguments[0]).st_ino] = [self.paths[arguments[0]]]
        elif name == "link":
            self.names.append((arguments[1].parent, "remove", arguments[1], None))
            self.unsynced.get(arguments[1].stat().st_ino, []).append(arguments[1])
        elif name == "make_dir":
            self.names.append((arguments[0].parent, "remove", arguments[0], None))
        return result

    def forget(self, target):
        if isinstance(target, int):
            if self.skipped != "sync_file":
                self.unsynced.pop(os.fstat(target).st_ino, None)
        elif self.skipped != "sync_dir" and not (self.skipped and target.name == self.skipped):
            self.names = [entry for entry in self.names if entry[0] != target]

    def possible_states(self, root: Path, scratch: Path):
        """Yield copies of the store in every possible state after a power failure."""
        pending = list(range(len(self.names)))
        subsets = {(), tuple(pending), *((index,) for index in pending)}
        if len(pending) <= 6:
            subsets |= {subset for size in range(len(pending)) for subset in combinations(pending, size)}
        for subset in sorted(subsets):
            for is_truncated in {False, bool(self.unsynced)}:
                if scratch.exists():
                    shutil.rmtree(scratch)
                if root.exists():
                    shutil.copytree(root, scratch)
                self.damage(root, scratch, subset, is_truncated)
                yield scratch

    def damage(self, root, scratch, subset, is_truncated):
        if is_truncated:
            for paths in self.unsynced.values():
                for path in paths:
                    copy = scratch / path.relative_to(root)
                    if copy.exists():
                        content = copy.read_bytes()
                        copy.unlink()
                        copy.write_bytes(content[: len(content) // 2])
        for index in sorted(subset, reverse=True):
            _, kind, path, content = self.names[index]
            if path == root or root not in path.parents:
                shutil.rmtree(scratch, ignore_errors=True)
                continue
            copy = scratch / path.relative_to(root)
            if kind == "recreate":
                if copy.parent.exists() and not copy.exists():
                    copy.write_bytes(content)
            elif copy.is_dir():
                shutil.rmtree(copy)
            else:
                copy.unlink(missing_ok=True)


def scenario():
    """A list of (operation, expected view after it)."""
    flowers = "flowers"
    return [
        (lambda store: store.add(flowers, BUNDLES[0]), ({1: 0}, None)),
        (lambda store: store.activate(flowers, 1), ({1: 0}, 1)),
        (lambda store: store.add(flowers, BUNDLES[1]), ({1: 0, 2: 1}, 1)),
        (lambda store: store.add(flowers, BUNDLES[1]), ({1: 0, 2: 1}, 1)),
        (lambda store: store.activate(flowers, 2, expected_live=1), ({1: 0, 2: 1}, 2)),
        (lambda store: store.rollback(flowers), ({1: 0, 2: 1}, 1)),
        (lambda store: store.retire(flowers, 2), ({1: 0}, 1)),
        (lambda store: store.add(flowers, BUNDLES[2]), ({1: 0, 3: 2}, 1)),
        (lambda store: store.gc(keep_versions=5, grace_s=-1, temporary_grace_s=-1), ({1: 0, 3: 2}, 1)),
        (lambda store: store.activate(flowers, 3), ({1: 0, 3: 2}, 3)),
    ]


NOTHING = ({}, None)


def run_scenario(root, disk):
    """Run the scenario until the crash; return the last acknowledged view and the attempted one."""
    acknowledged = NOTHING
    try:
        store = Store.open(root, disk=disk)
        for action, view in scenario():
            attempted = view
            action(store)
            acknowledged = view
    except ProcessCrash:
        return acknowledged, attempted if "attempted" in locals() else NOTHING
    return acknowledged, acknowledged


def view(store):
    """The visible state: version -> bundle index, and the live version; all digests are verified."""
    if "flowers" not in store.domains():
        return NOTHING
    versions = {info.version: BUNDLES.index(store.read("flowers", info.version)) for info in store.versions("flowers")}
    live = store.live("flowers")
    return versions, live.version if live else None


def check_recovery(root, acknowledged, attempted):
    """Check all invariants after a fault: no lost or partial commits, and the store accepts writes."""
    store = Store.open(root)
    seen = view(store)
    assert seen in (acknowledged, attempted)
    assert view(Store.open(root)) == seen
    if seen != NOTHING:
        history = store.history("flowers")
        assert [entry.seq for entry in history] == list(range(1, len(history) + 1))
    store.gc(keep_versions=20, grace_s=-1, temporary_grace_s=-1)
    assert view(store) == seen
    assert not [path for path in root.rglob("*") if ".tmp-" in path.name]
    assert len([path for path in (root / "blobs").rglob("*") if path.is_file()]) == len(set(seen[0].values()))
    added = store.add("flowers", BUNDLES[3])
    assert added.version == max([entry.to_version or 0 for entry in store.history("flowers")])
    assert store.activate("flowers", added.version).version == added.version
