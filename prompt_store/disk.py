"""The system calls of the store.

No symbolic link inside a store is followed. `open_directory` opens a path component by component with O_NOFOLLOW, and
other calls name files relative to the directory that it returns, so a link that is planted at any moment makes them
fail. A store's root is resolved once, when it is opened; links that lead to the root are fine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

Identity = tuple[int, int]
"""Device and inode of a directory."""
EntryType = Literal["directory", "file", "link", "other"]
_LAST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WALK: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def identity(fd: int) -> Identity:
    """Return the identity of an open directory."""
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino


@contextmanager
def open_directory(path: Path, known: Identity | None = None) -> Iterator[int]:
    """Open a directory without following a symbolic link in any component.

    Args:
        path: absolute and resolved, as all paths in a `Layout`.
        known: identity of a directory that was opened this way before; if `path` still leads there, one call is enough.

    Raises:
        OSError: ENOENT, it does not exist; ENOTDIR, a component is a link or a file.
    """
    if known is not None:
        fd = os.open(path, _LAST)
        try:
            if identity(fd) == known:
                yield fd
                return
        finally:
            os.close(fd)
    *parents, name = path.parts[1:] or (".",)
    fd = os.open(path.anchor, _WALK)
    try:
        for flags, part in (*((_WALK, parent) for parent in parents), (_LAST, name)):
            child = os.open(part, flags, dir_fd=fd)
            os.close(fd)
            fd = child
        yield fd
    finally:
        os.close(fd)


def list_directory(path: Path) -> dict[str, EntryType]:
    """Return the names in a directory, sorted, with their types; links as in `open_directory`.

    Raises:
        OSError: the directory cannot be read.
    """
    with open_directory(path) as fd, os.scandir(fd) as entries:
        return {entry.name: _type(entry) for entry in sorted(entries, key=lambda entry: entry.name)}


def _type(entry: os.DirEntry[str]) -> EntryType:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def read_file(path: Path | str, *, max_bytes: int, dir_fd: int | None = None) -> bytes | None:
    """Read a file that is not a symbolic link.

    Args:
        path: relative to `dir_fd`, if given.
        max_bytes: limit.
        dir_fd: an open directory.

    Returns:
        at most `max_bytes` + 1 bytes; None if the file does not exist.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(max_bytes + 1)


class Disk:
    """The system calls that modify a store, one method each, so that tests can inject a crash or an error into each."""

    def open_new(self, path: Path) -> int:
        """Create a file that must not exist."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open_directory(path.parent) as parent:
            return os.open(path.name, flags, 0o600, dir_fd=parent)

    def reserve(self, fd: int, n_bytes: int) -> None:
        """Reserve space, so that a full disk is detected before the first write."""
        if n_bytes:
            os.posix_fallocate(fd, 0, n_bytes)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of the bytes and return their number."""
        return os.write(fd, data)

    def sync_file(self, fd: int) -> None:
        """Flush a file to disk."""
        os.fsync(fd)

    def make_read_only(self, fd: int) -> None:
        """Make a file read-only for all users."""
        os.fchmod(fd, 0o444)

    def close(self, fd: int) -> None:
        """Close a file; may report a delayed write error."""
        os.close(fd)

    def link(self, source: Path, target: Path) -> None:
        """Add a second name to a file; fails if the name exists, which makes it a compare-and-set."""
        with open_directory(source.parent) as origin, open_directory(target.parent) as parent:
            os.link(source.name, target.name, src_dir_fd=origin, dst_dir_fd=parent, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Remove a file name."""
        with open_directory(path.parent) as parent:
            os.unlink(path.name, dir_fd=parent)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file, a directory or a symbolic link."""
        with open_directory(source.parent) as origin, open_directory(target.parent) as parent:
            os.rename(source.name, target.name, src_dir_fd=origin, dst_dir_fd=parent)

    def make_dir(self, path: Path) -> None:
        """Create one directory."""
        with open_directory(path.parent) as parent:
            os.mkdir(path.name, 0o755, dir_fd=parent)

    def sync_dir(self, path: Path) -> None:
        """Flush a directory to disk."""
        with open_directory(path) as fd:
            os.fsync(fd)

    def free_bytes(self, path: Path) -> int:
        """Free bytes on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize
