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


def _retire(logs: Logs, domain: str, entry: PublishedVersion, keep_versions: int, actor: str) -> bool:
    """Retire a version, unless another machine that shares the store has meanwhile made it one to keep."""

    def decide(state: State) -> Change | None:
        return Change("retire", entry) if entry in _versions_to_retire(state, keep_versions) else None

    _, is_retired = logs.commit(domain, decide, actor=actor)
    return is_retired


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
    gone = {
        (domain, entry.version)
        for domain, state in states.items()
        for entry in _versions_to_retire(state, keep_versions)
        if is_dry_run or _retire(logs, domain, entry, keep_versions, actor)
    }
    referenced = {
        entry.digest
        for domain in states
        for entry in _state(logs, domain).available()
        if (domain, entry.version) not in gone
    }
    unreferenced = [
        file
        for file in layout.collectable_files()
        if file.digest not in referenced and file.modified_s <= now - grace_s
    ]
    blobs = sorted(file.digest for file in unreferenced if file.path == layout.blob(file.digest))
    sizes = {path: _expired(path, now - temporary_grace_s) for path in layout.temporary_files()}
    temporary = {path: size for path, size in sizes.items() if size is not None}
    if not is_dry_run:
        _remove(disk, [*(file.path for file in unreferenced), *temporary])
    freed_bytes = sum(file.size_bytes for file in unreferenced) + sum(temporary.values())
    return GcReport(tuple(sorted(gone)), tuple(blobs), len(temporary), freed_bytes, is_dry_run)
