"""Durable file creation.

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

from prompt_store.disk import Disk
from prompt_store.errors import ConflictError, PromptStoreError, StorageFullError, StoreCorruptError, StoreReadOnlyError

TEMPORARY_PREFIX: Final = ".tmp-"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_PERMISSION: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_BUSY: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""Out of file descriptors. Only opening a file fails this way, so nothing was written."""
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_WRONG_TYPE: Final = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""A symbolic link or a file in the place of a directory, or a directory in the place of a file."""
_DEVICE: Final = frozenset(
    {
        errno.EIO,
        errno.EROFS,  # Linux remounts a damaged file system read-only
        errno.ENXIO,
        errno.ENODEV,
        errno.ENOMEDIUM,
        errno.EREMOTEIO,
        errno.EUCLEAN,  # a corrupted file system
        errno.EBADMSG,  # a wrong checksum in the file system
        errno.ESTALE,  # network file systems
        errno.ETIMEDOUT,
        errno.ENOTCONN,
    }
)
"""The disk or its file system failed. Every other error concerns one operation or one path."""


def error_name(error: OSError) -> str:
    """Return the symbolic name of an error, such as `EIO`."""
    return errno.errorcode.get(error.errno or 0, "unknown error")


def to_store_error(error: OSError) -> PromptStoreError:
    """Convert a failed write; the message contains no paths and no system text."""
    if error.errno in _FULL:
        return StorageFullError("No space left on the store's disk.")
    if error.errno in _PERMISSION:
        return StoreReadOnlyError("The store is not writable. Check the mount and the permissions of its directories.")
    if is_transient(error):
        return StoreReadOnlyError(
            "Too many open files; nothing was changed. Retry later, or raise the limit on open files.",
            code="storage_busy",
        )
    if error.errno in _WRONG_TYPE:
        return StoreCorruptError(
            "A symbolic link or a file is in the place of one of the store's directories; nothing was published. "
            "Run `caspl store check`."
        )
    if is_device_failure(error):
        return StoreReadOnlyError(
            "The disk reported an error; nothing was published. Check the disk and restart.", code="storage_error"
        )
    return StoreReadOnlyError(
        f"The write failed ({error_name(error)}); nothing was published. Run `caspl store check` and retry.",
        code="write_failed",
    )


def is_transient(error: BaseException | None) -> bool:
    """Whether the process or system ran out of file descriptors, so that a retry may succeed."""
    return isinstance(error, OSError) and error.errno in _BUSY


def is_device_failure(error: BaseException | None) -> bool:
    """Whether the disk or its file system failed, so that no later write can be trusted until it is checked."""
    return isinstance(error, OSError) and error.errno in _DEVICE


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
        StoreReadOnlyError: `store_read_only`, `storage_busy`, `write_failed` or `storage_error`, nothing was created;
            `commit_unknown`, the file exists but may not survive a power failure.
        StoreCorruptError: the directory is a link or a file.
    """
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        _write_temporary(disk, temporary, data)
        disk.link(temporary, target)
    except (OSError, PromptStoreError) as error:
        with suppress(OSError):
            disk.unlink(temporary)
        if isinstance(error, FileExistsError):
            return False
        if isinstance(error, OSError):
            raise to_store_error(error) from error
        raise
    try:
        disk.unlink(temporary)
        disk.sync_dir(target.parent)
    except OSError as error:
        raise _commit_unknown() from error
    return True


def sync_directory(disk: Disk, path: Path) -> None:
    """Flush a directory in which another writer may have created names without syncing them yet.

    Raises:
        StoreReadOnlyError: `commit_unknown`, the disk failed; others as in `create_file`.
        StoreCorruptError: the directory is a link or a file.
    """
    try:
        disk.sync_dir(path)
    except OSError as error:
        raise (_commit_unknown() if is_device_failure(error) else to_store_error(error)) from error


def create_directory(disk: Disk, path: Path) -> None:
    """Create a directory durably if it does not exist; its parent exists.

    Raises:
        StorageFullError: not enough space.
        StoreReadOnlyError: the parent is not writable.
        StoreCorruptError: the parent is a link or a file.
    """
    try:
        with suppress(FileExistsError):
            disk.make_dir(path)
        disk.sync_dir(path.parent)
    except OSError as error:
        raise to_store_error(error) from error


def sync_folder(path: Path) -> None:
    """Flush the names in a directory outside of a store, so that a file that was renamed survives a power failure.

    Does nothing on file systems that cannot do this.

    Raises:
        OSError: the disk failed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the store's lock: shared to publish (blocking), exclusive to collect garbage (non-blocking).

    Raises:
        ConflictError: `store_busy`, exclusive, and another process holds the lock.
        StoreReadOnlyError: the lock file cannot be opened for writing.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise to_store_error(error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except BlockingIOError as error:
            message = "Another process is writing to the store. Try again later."
            raise ConflictError(message, code="store_busy") from error
        yield
    finally:
        os.close(fd)
