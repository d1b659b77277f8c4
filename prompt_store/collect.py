"""Garbage collection: retire old versions, then remove unreferenced blobs and stale temporary files.

The caller holds the store's exclusive lock, so there is no concurrent writer.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_store.disk import Disk
from prompt_store.durable import to_store_error
from prompt_store.errors import StoreCorruptError
from prompt_store.layout import Layout
from prompt_store.logs import Change, Logs
from prompt_store.records import PublishedVersion, State

KEEP_VERSIONS: Final = 20
GRACE_S: Final = 24 * 3600.0
TEMPORARY_GRACE_S: Final = 3600.0


@dataclass(frozen=True)
class GcReport:
    """Result of a collection.

    Attributes:
        retired: (domain, version) of each retired version.
        removed_blobs: digests of removed blobs.
        n_removed_temporary: number of removed temporary files.
        freed_bytes: total bytes freed.
        is_dry_run: True if nothing was changed.
    """

    retired: tuple[tuple[str, int], ...]
    removed_blobs: tuple[str, ...]
    n_removed_temporary: int
    freed_bytes: int
    is_dry_run: bool


def _state(logs: Logs, domain: str) -> State:
    try:
        return logs.state(domain)
    except StoreCorruptError as error:
        raise StoreCorruptError(f"Nothing was removed, because of domain {domain}: {error}") from error


def _versions_to_retire(state: State, keep_versions: int) -> list[PublishedVersion]:
    available = state.available()
    kept = {entry.version for entry in available[-keep_versions:]}
    kept |= {version for version in (state.live, state.rollback_version()) if version is not None}
    kept |= {state.rollout.plan.version} if state.rollout else set()
    return [entry for entry in available if entry.version not in kept]


def _expired(path: Path, before: float) -> int | None:
    """Return the file's size if it was last modified before the given time, else None."""
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return None
    return stat.st_size if stat.st_mtime <= before else None


def _remove(disk: Disk, paths: list[Path]) -> None:
    try:
        for path in paths:
            disk.unlink(path)
        for directory in sorted({path.parent for path in paths}):
            disk.sync_dir(directory)
    except OSError as error:
        raise to_store_error(error) from error


def collect(
    layout: Layout,
    disk: Disk,
    logs: Logs,
    *,
    keep_versions: int,
    grace_s: float,
    temporary_grace_s: float,
    is_dry_run: bool,
    actor: str,
) -> GcReport:
    """Retire versions and remove files; the caller holds the exclusive lock.

    A blob is removed if no version of any domain refers to it and it is older than the grace period, and the same
    applies to its signatures. If any log is unreadable nothing is removed, because its references are unknown.

    Raises:
        StoreCorruptError: a log is damaged.
        StoreReadOnlyError: the store is not writable or the disk failed; safe to run again.
        StorageFullError: not enough space for the log records.
    """
    now = time.time()
    states = {domain: _state(logs, domain) for domain in logs.names()}
    retiring = [
        (domain, entry) for domain, state in states.items() for entry in _versions_to_retire(state, keep_versions)
    ]
    gone = {(domain, entry.version) for domain, entry in retiring}
    referenced = {
        entry.digest
        for domain, state in states.items()
        for entry in state.available()
        if (domain, entry.version) not in gone
    }
    blobs: dict[str, Path] = {}
    freed_bytes = 0
    for digest, path in layout.blob_files():
        size = None if digest in referenced else _expired(path, now - grace_s)
        if size is not None:
            blobs[digest] = path
            freed_bytes += size
    signatures: list[Path] = []
    for digest, path in layout.signature_files():
        size = None if digest in referenced else _expired(path, now - grace_s)
        if size is not None:
            signatures.append(path)
            freed_bytes += size
    temporary: list[Path] = []
    for path in layout.temporary_files():
        size = _expired(path, now - temporary_grace_s)
        if size is not None:
            temporary.append(path)
            freed_bytes += size
    if not is_dry_run:
        for domain, entry in retiring:
            change = Change("retire", entry)
            logs.commit(domain, lambda _state, change=change: change, actor=actor)  # type: ignore[misc]
        _remove(disk, [*blobs.values(), *signatures, *temporary])
    return GcReport(tuple(sorted(gone)), tuple(sorted(blobs)), len(temporary), freed_bytes, is_dry_run)
