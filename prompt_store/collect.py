"""Garbage collection: retire old versions, then remove what nothing refers to any more.

Knows which versions are worth keeping. The caller holds the store's lock exclusively, so no writer is at work and
every temporary file was left behind by a process that is gone.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_store.durable import Disk, as_store_error
from prompt_store.layout import Layout
from prompt_store.logs import Change, Logs
from prompt_store.records import Published, State

KEEP_VERSIONS: Final = 20
GRACE_S: Final = 24 * 3600.0
TEMPORARY_GRACE_S: Final = 3600.0


@dataclass(frozen=True)
class GcReport:
    """What a collection did, or would do when `is_dry_run`.

    Attributes:
        retired: (domain, version) of each version that was retired.
        removed_blobs: digests of the blobs that were removed.
        n_removed_temporary: temporary files that were removed.
        freed_bytes: bytes of both together.
        is_dry_run: nothing was changed.
    """

    retired: tuple[tuple[str, int], ...]
    removed_blobs: tuple[str, ...]
    n_removed_temporary: int
    freed_bytes: int
    is_dry_run: bool


def _to_retire(state: State, keep_versions: int) -> list[Published]:
    available = state.available()
    kept = {entry.version for entry in available[-keep_versions:]}
    kept |= {version for version in (state.live, state.previous_live()) if version is not None}
    return [entry for entry in available if entry.version not in kept]


def _expired(path: Path, before: float) -> int | None:
    """Return the size of a file that was last changed before that time, else None."""
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
        raise as_store_error(error) from error


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
    """Retire and remove; the caller holds the exclusive lock.

    A blob goes only if no version of any domain refers to it and it is older than the grace period. When a single
    log cannot be read nothing at all is removed, because what it refers to is unknown.

    Raises:
        StoreCorruptError: a log is damaged.
        StoreReadOnlyError: the disk refused or failed; running again continues.
        StorageFullError: no room for the records of retirement.
    """
    now = time.time()
    states = {domain: logs.state(domain) for domain in logs.names()}
    retiring = [(domain, entry) for domain, state in states.items() for entry in _to_retire(state, keep_versions)]
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
        _remove(disk, [*blobs.values(), *temporary])
    return GcReport(tuple(sorted(gone)), tuple(sorted(blobs)), len(temporary), freed_bytes, is_dry_run)
