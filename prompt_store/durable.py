"""Durable file creation.

All writes of the store go through `Disk`, so that tests can inject a crash or an error at every system call.

`create_file` writes a temporary file in the target directory, syncs it, links it to its final name (which fails if
the name exists), removes the temporary name and syncs the directory. Readers see either no file or the whole file.
"""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from prompt_store.errors import PromptStoreError, StorageFullError, StoreReadOnlyError

TEMPORARY_PREFIX: Final = ".tmp-"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_PERMISSION: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_BUSY: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""Out of file descriptors. Only opening a file fails this way, so nothing was written."""


class Disk:
    """The system calls that modify a store, one method each."""

    def open_new(self, path: Path) -> int:
        """Create a file that must not exist; symbolic links are not followed."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

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
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Remove a file name."""
        path.unlink()

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file."""
        source.rename(target)

    def make_dir(self, path: Path) -> None:
        """Create one directory."""
        path.mkdir(mode=0o755)

    def sync_dir(self, path: Path) -> None:
        """Flush a directory to disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """Free bytes on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


def to_store_error(error: OSError) -> PromptStoreError:
    """Convert a failed write; the message contains no paths and no system text."""
    if error.errno in _FULL:
        return StorageFullError("No space left on the store's disk.")
    if error.errno in _PERMISSION:
        return StoreReadOnlyError("The store is not writable. Check the mount and its permissions.")
    if is_transient(error):
        return StoreReadOnlyError(
            "Too many open files; nothing was published. Retry later, or raise the limit on open files.",
            code="storage_busy",
        )
    return StoreReadOnlyError(
        "The disk reported an error; nothing was published. Check the disk and restart.", code="storage_error"
    )


def is_transient(error: BaseException | None) -> bool:
    """Whether the error is no sign of a failing disk: the process or system ran out of file descriptors."""
    return isinstance(error, OSError) and error.errno in _BUSY


def _commit_unknown() -> StoreReadOnlyError:
    return StoreReadOnlyError(
        "The disk reported an error while committing, so the change may be lost. Restart, then send it again.",
        code="commit_unknown",
    )


def _write_temporary(disk: Disk, temporary: Path, data: bytes) -> None:
    fd = disk.open_new(temporary)
    try:
        disk.reserve(fd, len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[disk.write(fd, rest) :]
        disk.sync_file(fd)  # never retried: after a failed fsync a second one may succeed although data is lost
        disk.make_read_only(fd)
    except BaseException:
        with suppress(OSError):
            disk.close(fd)
        raise
    disk.close(fd)


def create_file(disk: Disk, target: Path, data: bytes) -> bool:
    """Create a durable, read-only file unless the name exists.

    Args:
        disk: the system calls.
        target: final path; its directory exists.
        data: the whole content.

    Returns:
        True if this call created the file; False if the name exists, whatever its content.

    Raises:
        StorageFullError: not enough space; nothing is left behind.
        StoreReadOnlyError: `store_read_only`, `storage_busy` or `storage_error`, nothing was created; `commit_unknown`,
            the file exists but may not survive a power failure.
    """
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        _write_temporary(disk, temporary, data)
        disk.link(temporary, target)
    except OSError as error:
        with suppress(OSError):
            disk.unlink(temporary)
        if isinstance(error, FileExistsError):
            return False
        raise to_store_error(error) from error
    try:
        disk.unlink(temporary)
        disk.sync_dir(target.parent)
    except OSError as error:
        raise _commit_unknown() from error
    return True


def sync_directory(disk: Disk, path: Path) -> None:
    """Flush a directory in which another writer may have created names without syncing them yet.

    Raises:
        StoreReadOnlyError: `commit_unknown`.
    """
    try:
        disk.sync_dir(path)
    except OSError as error:
        raise _commit_unknown() from error


def create_directory(disk: Disk, path: Path) -> None:
    """Create a directory durably if it does not exist; its parent exists.

    Raises:
        StorageFullError: not enough space.
        StoreReadOnlyError: the parent is not writable.
    """
    try:
        with suppress(FileExistsError):
            disk.make_dir(path)
        disk.sync_dir(path.parent)
    except OSError as error:
        raise to_store_error(error) from error


def read_file(path: Path, *, max_bytes: int) -> bytes | None:
    """Read a regular file without following symbolic links.

    Returns:
        at most `max_bytes` + 1 bytes; None if the file does not exist.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(max_bytes + 1)


@contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the store's lock: shared to publish (blocking), exclusive to collect garbage (non-blocking).

    Raises:
        BlockingIOError: exclusive, and another process holds the lock.
        StoreReadOnlyError: the lock file cannot be opened for writing.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise to_store_error(error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)
