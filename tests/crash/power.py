"""A file system that loses what was not synced, replayed from the system calls of a workload.

The model is the weakest that POSIX allows: a file's bytes are durable only after `fsync` or `fdatasync` of the file, a
name only after `fsync` of its directory, and of what is pending, any part may have reached the disk, in any
combination. A write may be cut off in the middle.
"""

import itertools
import random
from dataclasses import dataclass, field
from pathlib import PurePosixPath

MAX_ALL_SUBSETS = 6
"""Up to this number of pending operations every subset is tried; of more, those with the first ones, with one alone and
without one, and a sample."""
N_SAMPLED = 8


@dataclass
class Pending:
    """An operation that may or may not reach the disk: on the bytes of a file, or on names in directories."""

    kind: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    size: int = 0
    name: str = ""
    old_name: str = ""

    @property
    def folders(self):
        """Directories whose sync makes it durable."""
        return {str(PurePosixPath(name).parent) for name in (self.name, self.old_name) if name}


@dataclass
class State:
    """Files by number, and names: of a file its number, of a directory None."""

    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int | None] = field(default_factory=dict)

    def copy(self):
        return State(dict(self.files), dict(self.names))

    def apply(self, change, *, is_torn=False):
        """Carry out an operation as far as the rest of the disk allows."""
        if change.kind == "write":
            data = change.data[: len(change.data) // 2] if is_torn else change.data
            old = self.files.get(change.file, b"").ljust(change.offset, b"\0")
            self.files[change.file] = old[: change.offset] + data + old[change.offset + len(data) :]
        elif change.kind == "size":
            self.files[change.file] = self.files.get(change.file, b"")[: change.size].ljust(change.size, b"\0")
        elif change.kind == "extend":
            self.files[change.file] = self.files.get(change.file, b"").ljust(change.size, b"\0")
        elif change.kind == "folder":
            self.names[change.name] = None
        elif change.kind == "name":
            self.names[change.name] = change.file
        elif change.kind == "unname":
            self.names.pop(change.name, None)
        else:
            self.names.pop(change.old_name, None)
            self.names[change.name] = change.file

    def visible(self):
        """Relative path -> bytes, None for a directory; without what lies in a directory that is lost."""
        seen = {}
        for name in sorted(self.names, key=lambda name: name.count("/")):
            parent = str(PurePosixPath(name).parent)
            if parent == "." or seen.get(parent, b"") is None:
                number = self.names[name]
                seen[name] = None if number is None else self.files.get(number, b"")
        return seen


class Disk:
    """The durable state, and pending operations."""

    def __init__(self, root):
        self.root = str(root)
        self.durable, self.pending = State(), []
        self.now = State()  # as processes see it
        self.positions = {}
        self.n_files = 0

    def relative(self, path):
        """Path below the root, None outside, and an empty string for the root."""
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None

    def play(self, call):
        """Carry out one call of a trace."""
        names = [self.relative(path) for path in call.paths]
        if None in names:
            return
        name = names[0]
        if call.name == "openat":
            self._open(call, name)
        elif call.name in {"write", "pwrite64"}:
            self._write(call, name)
        elif call.name in {"ftruncate", "fallocate"}:
            kind = "size" if call.name == "ftruncate" else "extend"
            self._do(Pending(kind, self.now.names[name], size=call.size))
        elif call.name in {"mkdir", "mkdirat"}:
            self._do(Pending("folder", name=name))
        elif call.name in {"link", "linkat"}:
            self._do(Pending("name", self.now.names[name], name=names[1]))
        elif call.name in {"rename", "renameat", "renameat2"}:
            self._do(Pending("rename", self.now.names[name], name=names[1], old_name=name))
        elif call.name in {"unlink", "unlinkat", "rmdir"}:
            self._do(Pending("unname", name=name))
        elif call.name in {"fsync", "fdatasync"}:
            self._sync(name)

    def _open(self, call, name):
        if call.creates and name not in self.now.names:
            self.n_files += 1
            self.now.files[self.n_files] = self.durable.files[self.n_files] = b""
            self._do(Pending("name", self.n_files, name=name))
        if call.truncates:
            self._do(Pending("size", self.now.names[name], size=0))
        self.positions[name] = 0

    def _write(self, call, name):
        offset = self.positions[name] if call.offset is None else call.offset
        if call.offset is None:
            self.positions[name] += len(call.data)
        self._do(Pending("write", self.now.names[name], offset, call.data))

    def _do(self, change):
        self.now.apply(change)
        self.pending.append(change)

    def _sync(self, name):
        folder = name or "."
        if name in self.now.names and self.now.names[name] is not None:
            is_durable = [change.file == self.now.names[name] and not change.name for change in self.pending]
        else:
            is_durable = [folder in change.folders for change in self.pending]
        for change, durable in zip(self.pending, is_durable, strict=True):
            if durable:
                self.durable.apply(change)
        self.pending = [change for change, durable in zip(self.pending, is_durable, strict=True) if not durable]

    def states(self, rng):
        """Possible contents of the disk after a power failure now, as `State.visible`."""
        numbers = range(len(self.pending))
        subsets = {*(tuple(numbers[:n]) for n in range(len(numbers) + 1)), *((n,) for n in numbers)}
        if len(numbers) <= MAX_ALL_SUBSETS:
            subsets |= {subset for n in numbers for subset in itertools.combinations(numbers, n)}
        else:
            subsets |= {tuple(other for other in numbers if other != n) for n in numbers}
            subsets |= {tuple(n for n in numbers if rng.random() < 0.5) for _ in range(N_SAMPLED)}
        for subset in sorted(subsets):
            torn = [n for n in subset if self.pending[n].kind == "write" and len(self.pending[n].data) > 1]
            for torn_one in (None, *torn[-1:]):
                state = self.durable.copy()
                for n in subset:
                    state.apply(self.pending[n], is_torn=n == torn_one)
                yield state.visible()


def power_failures(root, calls, seed=0):
    """Every state of the disk after a power failure, with the number of steps that were confirmed until then.

    The states are those before each sync and after each confirmation: in between only more becomes possible.
    """
    disk, n_done, rng = Disk(root), 0, random.Random(seed)  # noqa: S311
    for call in calls:
        is_sync = call.name in {"fsync", "fdatasync"}
        if is_sync:
            yield from ((state, n_done) for state in disk.states(rng))
        if call.name == "write" and call.data.startswith(b"done "):
            n_done = int(call.data.split()[1])
            yield from ((state, n_done) for state in disk.states(rng))
        disk.play(call)
    yield from ((state, n_done) for state in disk.states(rng))


def write_tree(state, root):
    """Create the files of a state in a new directory."""
    root.mkdir()
    for name, data in state.items():
        path = root / name
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
            path.chmod(0o600)
