"""Blobs: immutable files named by the digest of their bytes, verified on every read."""

import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

from prompt_store.digest import digest_bytes
from prompt_store.disk import Disk, open_directory, read_file
from prompt_store.durable import (
    create_directory,
    create_file,
    error_name,
    is_transient,
    sync_directory,
    to_store_error,
)
from prompt_store.errors import StorageFullError, StoreCorruptError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.layout import Layout

RESERVE_BYTES: Final = 64 * 1024 * 1024


def check_free_space(layout: Layout, disk: Disk, n_bytes: int) -> None:
    """Refuse to write when the disk is nearly full.

    Raises:
        StorageFullError: fewer than 2 * `n_bytes` + 64 MiB are free.
    """
    needed = 2 * n_bytes + RESERVE_BYTES
    free = disk.free_bytes(layout.root)
    if free < needed:
        raise StorageFullError(f"The store's disk has {free} bytes free; {needed} are needed.")


def _read(layout: Layout, digest: str) -> bytes | None:
    """Return the bytes of a blob, None if it does not exist.

    Raises:
        StoreReadOnlyError: `storage_busy`; the blob may be intact.
        OSError: it is unreadable.
    """
    path = layout.blob(digest)
    try:
        with open_directory(path.parent) as directory:
            return read_file(path.name, max_bytes=MAX_BUNDLE_BYTES, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_transient(error):
            raise to_store_error(error) from error
        raise


def _is_intact(layout: Layout, digest: str) -> bool:
    try:
        data = _read(layout, digest)
    except OSError:
        return False
    return data is not None and digest_bytes(data) == digest


def put_blob(layout: Layout, disk: Disk, data: bytes, digest: str) -> None:
    """Write a blob durably unless it exists; an existing damaged file is quarantined and replaced.

    Args:
        layout: the store's layout.
        disk: the system calls.
        data: the blob.
        digest: the digest of `data`.

    Raises:
        StorageFullError: not enough space.
        StoreReadOnlyError: the store is not writable or the disk failed.
    """
    path = layout.blob(digest)
    for parent in (layout.blobs.parent, layout.blobs, path.parent):
        create_directory(disk, parent)  # and sync it: a killed writer may have created it without
    put_file(layout, disk, path, data)


def put_file(layout: Layout, disk: Disk, path: Path, data: bytes) -> None:
    """Write an immutable file durably unless it exists; an existing one of other content is quarantined and replaced.

    Raises: as `put_blob`.
    """
    while not create_file(disk, path, data):
        if _has_content(path, data):
            # Another writer may have linked the file without syncing the directory yet.
            sync_directory(disk, path.parent)
            return
        create_directory(disk, layout.quarantine)
        try:
            with suppress(FileNotFoundError):
                disk.rename(path, layout.quarantine / f"{path.name}.{uuid.uuid4().hex}")
        except OSError as error:
            raise to_store_error(error) from error


def _has_content(path: Path, data: bytes) -> bool:
    try:
        with open_directory(path.parent) as directory:
            return read_file(path.name, max_bytes=len(data), dir_fd=directory) == data
    except OSError as error:
        if is_transient(error):
            raise to_store_error(error) from error
        return False


def repair_blob(layout: Layout, disk: Disk, data: bytes, digest: str) -> None:
    """Write the blob again if the stored copy is missing or damaged.

    Raises:
        StorageFullError: not enough space.
        StoreReadOnlyError: the store is not writable or the disk failed.
    """
    if not _is_intact(layout, digest):
        put_blob(layout, disk, data, digest)


def read_blob(layout: Layout, digest: str) -> bytes:
    """Read a blob and verify its digest.

    Raises:
        StoreCorruptError: `version_corrupt`, the file is missing, unreadable or damaged.
        StoreReadOnlyError: `storage_busy`.
    """
    layout.fetch_blob(digest)
    try:
        data = _read(layout, digest)
    except OSError as error:
        raise StoreCorruptError(
            f"The stored bundle {digest} is unreadable ({error_name(error)}). Run `caspl store check`.",
            code="version_corrupt",
        ) from error
    if data is None or digest_bytes(data) != digest:
        problem = "missing" if data is None else "damaged"
        raise StoreCorruptError(
            f"The stored bundle {digest} is {problem}. Add the original bundle file again, or roll back.",
            code="version_corrupt",
        )
    return data
