"""The few system calls of the store, and the one order in which they make a file durable.

Knows files and directories. Does not know records, blobs or domains. All writing of the store goes through a
`Disk`, so that tests can stop, fail or undo it at every single step.

Order for a new file (`create_file`): a temporary file in the target's own directory, space reserved, all bytes
written, file synced, then *linked* to its final name, which either creates the name or fails because it exists,
then the temporary name removed and the directory synced. A reader sees nothing or everything.
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
_REFUSED: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_BUSY: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""Only opening a file ends like this: no byte has been entrusted to the disk by the call that failed."""


class Disk:
    """One method per system call that changes the store."""

    def open_new(self, path: Path) -> int:
        """Create a file that must not exist, never through a symbolic link."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def reserve(self, fd: int, n_bytes: int) -> None:
        """Reserve space, so that a full disk shows before the first byte."""
        if n_bytes:
            os.posix_fallocate(fd, 0, n_bytes)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of the bytes and return how many."""
        return os.write(fd, data)

    def sync_file(self, fd: int) -> None:
        """Make a file's content durable."""
        os.fsync(fd)

    def seal(self, fd: int) -> None:
        """Make a file read-only for everybody."""
        os.fchmod(fd, 0o444)

    def close(self, fd: int) -> None:
        """Close a file; a late write error shows here."""
        os.close(fd)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; fails if the name exists. This is the compare-and-set."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def rename(self, source: Path, target: Path) -> None:
        """Move a file aside."""
        source.rename(target)

    def make_dir(self, path: Path) -> None:
        """Create one directory."""
        path.mkdir(mode=0o755)

    def sync_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """Bytes that may still be written on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


def as_store_error(error: OSError) -> PromptStoreError:
    """Translate a failed write; paths and the system's own text stay out of the message."""
    if error.errno in _FULL:
        return StorageFullError("expected room for the file, the file system is full; free some space and try again")
    if error.errno in _REFUSED:
        return StoreReadOnlyError("expected a writable store, the file system refused; check mount and permissions")
    if is_passing(error):
        return StoreReadOnlyError(
            "expected to open a file, found too many open; nothing was published: send it again later or raise "
            "the limit on open files",
            code="storage_busy",
        )
    return StoreReadOnlyError(
        "expected the disk to take the data, it reported an error; nothing was published, check the disk and restart",
        code="storage_error",
    )


def is_passing(error: BaseException | None) -> bool:
    """Whether a failed call says nothing about the disk: the process or the system had no file handle left."""
    return isinstance(error, OSError) and error.errno in _BUSY


def _commit_unknown() -> StoreReadOnlyError:
    return StoreReadOnlyError(
        "expected the disk to confirm the change, it reported an error; whether the change lasts is decided at the "
        "next start: restart, then send it again",
        code="commit_unknown",
    )


def _write_temporary(disk: Disk, temporary: Path, data: bytes) -> None:
    fd = disk.open_new(temporary)
    try:
        disk.reserve(fd, len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[disk.write(fd, rest) :]
        disk.sync_file(fd)  # once: after a failed sync the data may be gone although a second one succeeds
        disk.seal(fd)
    except BaseException:
        with suppress(OSError):
            disk.close(fd)
        raise
    disk.close(fd)


def create_file(disk: Disk, target: Path, data: bytes) -> bool:
    """Create a durable, read-only file under a name that must be free.

    Args:
        disk: the system calls.
        target: final path; its directory exists.
        data: the whole content.

    Returns:
        True when this call created the file; False when the name was taken, whatever its content.

    Raises:
        StorageFullError: no room; nothing is left behind.
        StoreReadOnlyError: `store_read_only`, `storage_busy` or `storage_error`, nothing was created; `commit_unknown`,
            the file is there but may not outlive a power cut.
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
        raise as_store_error(error) from error
    try:
        disk.unlink(temporary)
        disk.sync_dir(target.parent)
    except OSError as error:
        raise _commit_unknown() from error
    return True


def confirm_dir(disk: Disk, path: Path) -> None:
    """Make names durable that somebody else may have created and not yet synced.

    Raises:
        StoreReadOnlyError: `commit_unknown`.
    """
    try:
        disk.sync_dir(path)
    except OSError as error:
        raise _commit_unknown() from error


def ensure_dir(disk: Disk, path: Path) -> None:
    """Have a durable directory, whoever creates it first; its parent exists.

    Raises:
        StorageFullError: no room.
        StoreReadOnlyError: the parent is not writable.
    """
    try:
        with suppress(FileExistsError):
            disk.make_dir(path)
        disk.sync_dir(path.parent)
    except OSError as error:
        raise as_store_error(error) from error


def read_file(path: Path, *, max_bytes: int) -> bytes | None:
    """Read a regular file without following a symbolic link.

    Returns:
        the content, at most `max_bytes` + 1 bytes of it; None if there is no such file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(max_bytes + 1)


@contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the store's lock: shared while publishing (waits), exclusive while collecting (does not wait).

    Raises:
        BlockingIOError: exclusive, and somebody else holds the lock.
        StoreReadOnlyError: the lock file cannot be opened for writing.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise as_store_error(error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)
