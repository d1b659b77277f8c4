"""Disks that die, fail or lose power, and the story of a store that they are tried on."""

import os
import shutil
from itertools import combinations
from pathlib import Path

from prompt_store import Store
from prompt_store.durable import Disk
from tests.prompt_store.samples import sample_bundle

CALLS = (
    "open_new reserve write sync_file make_read_only close link unlink rename make_dir sync_dir".split()  # noqa: SIM905
)
BUNDLES = [sample_bundle(seed) for seed in range(4)]


class Dead(BaseException):
    """The process is gone; no handler of the code under test may stop this."""


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


class DyingDisk(CountingDisk):
    """The process dies right before or right after call number `step`; afterwards nothing happens any more."""

    def __init__(self, step, *, is_after=False):
        super().__init__()
        self.step = step
        self.is_after = is_after
        self.is_dead = False

    def around(self, name, call, arguments):
        if self.is_dead:
            raise Dead
        if self.n_calls == self.step:
            self.is_dead = True
            if self.is_after:
                call(self, *arguments)
            raise Dead(name)
        return super().around(name, call, arguments)


class FailingDisk(CountingDisk):
    """Call number `step` reports an error instead of doing its work; all others work."""

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


class PowerLossDisk(DyingDisk):
    """Remembers what was not synced when the power went, and can then show every disk that might be left.

    `skipped` names one kind of sync that is left out, to prove that its loss would be noticed.
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
            call = type(self).forget  # no need to trouble the real disk
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

    def possible_disks(self, root: Path, scratch: Path):
        """Yield copies of the store as it may look when the power is back."""
        pending = list(range(len(self.names)))
        subsets = {(), tuple(pending), *((index,) for index in pending)}
        if len(pending) <= 6:
            subsets |= {subset for size in range(len(pending)) for subset in combinations(pending, size)}
        for subset in sorted(subsets):
            for is_torn in {False, bool(self.unsynced)}:
                if scratch.exists():
                    shutil.rmtree(scratch)
                if root.exists():
                    shutil.copytree(root, scratch)
                self.damage(root, scratch, subset, is_torn)
                yield scratch

    def damage(self, root, scratch, subset, is_torn):
        if is_torn:
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


def story():
    """Steps of a store's life: each is an action and what a reader must see after it."""
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


def tell(root, disk):
    """Live the story until the disk dies; return the view after the last step that was acknowledged and the next."""
    acknowledged = NOTHING
    try:
        store = Store.open(root, disk=disk)
        for action, view in story():
            attempted = view
            action(store)
            acknowledged = view
    except Dead:
        return acknowledged, attempted if "attempted" in locals() else NOTHING
    return acknowledged, acknowledged


def view(store):
    """What a reader sees: version -> which bundle, and the live version; every byte is verified on the way."""
    if "flowers" not in store.domains():
        return NOTHING
    versions = {info.version: BUNDLES.index(store.read("flowers", info.version)) for info in store.versions("flowers")}
    live = store.live("flowers")
    return versions, live.version if live else None


def check_recovery(root, acknowledged, attempted):
    """All invariants after a fault: nothing acknowledged is lost, nothing half done is seen, work goes on."""
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
