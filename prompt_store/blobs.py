"""Blobs: immutable files named by the digest of their bytes.

Knows how bytes get to their place and back, and that a file may rot. Does not know versions or domains.
"""

import uuid
from contextlib import suppress
from typing import Final

from prompt_store.digest import digest_bytes
from prompt_store.durable import Disk, as_store_error, confirm_dir, create_file, ensure_dir, read_file
from prompt_store.errors import StorageFullError, StoreCorruptError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.layout import Layout

RESERVE_BYTES: Final = 64 * 1024 * 1024


def check_room(layout: Layout, disk: Disk, n_bytes: int) -> None:
    """Refuse before the first byte when the disk is nearly full.

    Raises:
        StorageFullError: less than twice the bundle and 64 MiB are free.
    """
    needed = 2 * n_bytes + RESERVE_BYTES
    free = disk.free_bytes(layout.root)
    if free < needed:
        raise StorageFullError(f"expected {needed} free bytes on the store's disk, found {free}; free some space")


def _is_intact(layout: Layout, digest: str) -> bool:
    try:
        data = read_file(layout.blob(digest), max_bytes=MAX_BUNDLE_BYTES)
    except OSError:
        return False
    return data is not None and digest_bytes(data) == digest


def put_blob(layout: Layout, disk: Disk, data: bytes, digest: str) -> None:
    """Have these bytes durably in the store; a damaged file of that name is moved aside first.

    Args:
        layout: where.
        disk: the system calls.
        data: the blob.
        digest: its digest, computed from these very bytes.

    Raises:
        StorageFullError: no room.
        StoreReadOnlyError: the disk refused or failed.
    """
    path = layout.blob(digest)
    for parent in (layout.blobs.parent, layout.blobs, path.parent):
        if parent is path.parent or not parent.exists():
            ensure_dir(disk, parent)
    while not create_file(disk, path, data):
        if _is_intact(layout, digest):
            # Another writer may have linked it and not yet synced the directory.
            confirm_dir(disk, path.parent)
            return
        ensure_dir(disk, layout.quarantine)
        try:
            with suppress(FileNotFoundError):
                disk.rename(path, layout.quarantine / f"{path.name}.{uuid.uuid4().hex}")
        except OSError as error:
            raise as_store_error(error) from error


def heal_blob(layout: Layout, disk: Disk, data: bytes, digest: str) -> None:
    """Put the bytes back if the stored copy is lost or damaged; otherwise write nothing.

    Raises:
        StorageFullError: no room.
        StoreReadOnlyError: the disk refused or failed.
    """
    if not _is_intact(layout, digest):
        put_blob(layout, disk, data, digest)


def read_blob(layout: Layout, digest: str) -> bytes:
    """Return the bytes of a blob; what is returned has this digest.

    Raises:
        StoreCorruptError: `version_corrupt`, the file is lost, unreadable or damaged.
    """
    try:
        data = read_file(layout.blob(digest), max_bytes=MAX_BUNDLE_BYTES)
    except OSError as error:
        raise StoreCorruptError(
            "expected the stored bundle to be readable, the file system refused; check disk and permissions",
            code="version_corrupt",
        ) from error
    if data is None or digest_bytes(data) != digest:
        found = "no file" if data is None else "other bytes"
        raise StoreCorruptError(
            f"expected a stored bundle with {digest}, found {found}; add the original bundle file again or roll back",
            code="version_corrupt",
        )
    return data
