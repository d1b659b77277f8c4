"""The store: every domain's versions, which of them is live, and how it came to be so.

Knows the rules of publishing, activating, rolling back and retiring. Does not know torch or HTTP. Threads of one
process and several processes on one machine may use a store at the same time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_store import changes
from prompt_store.blobs import read_blob
from prompt_store.bundle import read_bundle
from prompt_store.collect import GRACE_S, KEEP_VERSIONS, TEMPORARY_GRACE_S, GcReport, collect
from prompt_store.durable import Disk, is_passing, locked
from prompt_store.errors import BundleInvalidError, ConflictError, StoreReadOnlyError
from prompt_store.layout import Layout, open_layout
from prompt_store.logs import Decide, Logs
from prompt_store.manifest import check_domain
from prompt_store.records import State

MAX_HISTORY: Final = 1000
_FATAL_CODES: Final = frozenset({"storage_error", "commit_unknown"})


@dataclass(frozen=True)
class Added:
    """Answer to `add`; `created` is False when the newest version has this content already."""

    version: int
    digest: str
    created: bool


@dataclass(frozen=True)
class VersionInfo:
    """One version; `created_at` is ISO-8601 in UTC."""

    version: int
    digest: str
    size_bytes: int
    created_at: str
    is_live: bool


@dataclass(frozen=True)
class LiveInfo:
    """The version a domain answers with; `seq` is the number of the domain's last commit."""

    version: int
    digest: str
    seq: int


@dataclass(frozen=True)
class HistoryEntry:
    """One commit: when, who, what (`publish`, `activate`, `rollback`, `retire`), from and to which version."""

    at: str
    actor: str
    action: str
    from_version: int | None
    to_version: int | None
    seq: int


def _live_info(state: State) -> LiveInfo | None:
    """Return what is live, None when nothing is."""
    if state.live is None:
        return None
    return LiveInfo(state.live, state.published[state.live - 1].digest, state.seq)


class Store:
    """A directory of bundles. Open it with `Store.open`."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._logs = Logs(layout, disk)
        self._has_failed = False

    @classmethod
    def open(cls, root: Path, create: bool = True, *, disk: Disk | None = None) -> "Store":
        """Open the store at `root`; a new one is made there when there is none and `create` is set.

        A store on a read-only file system opens and can be read.

        Raises:
            StoreCorruptError: `not_a_store`, something else lies there; `store_corrupt`, FORMAT is unreadable.
            StoreReadOnlyError: a new store cannot be written there.
        """
        disk = disk or Disk()
        return cls(open_layout(Path(root), disk, create=create), disk)

    @property
    def root(self) -> Path:
        """The store's directory."""
        return self._layout.root

    @property
    def is_writable(self) -> bool:
        """Whether publishing can work; False on read-only media and after the disk has reported an error."""
        places = [path for path in (self.root, self._layout.domains, self._layout.blobs) if path.exists()]
        return not self._has_failed and all(os.access(path, os.W_OK) for path in places)

    def domains(self) -> list[str]:
        """Return the names of all domains, sorted."""
        return self._logs.names()

    def versions(self, domain: str) -> list[VersionInfo]:
        """Return the versions of a domain that are not retired, oldest first.

        Raises:
            DomainNotFoundError: no such domain.
            StoreCorruptError: its log is damaged.
        """
        state = self._logs.existing(domain)
        return [
            VersionInfo(entry.version, entry.digest, entry.size_bytes, entry.at, entry.version == state.live)
            for entry in state.available()
        ]

    def read(self, domain: str, version: int) -> bytes:
        """Return a version's bytes, verified against its digest.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version, or it is retired.
            StoreCorruptError: `version_corrupt`, the stored bytes are lost or damaged; they are never returned.
        """
        return read_blob(self._layout, changes.found(self._logs.existing(domain), version).digest)

    def live(self, domain: str) -> LiveInfo | None:
        """Return what the domain answers with, None when nothing has been activated yet.

        Raises:
            DomainNotFoundError: no such domain.
            StoreCorruptError: its log is damaged.
        """
        return _live_info(self._logs.existing(domain))

    def rollback_target(self, domain: str) -> int:
        """Return the version that `rollback` would make live, as of now; for whoever has to load it first.

        Raises:
            DomainNotFoundError: no such domain.
            ConflictError: `nothing_to_roll_back`, no earlier live version is left.
            StoreCorruptError: its log is damaged.
        """
        return changes.rollback_target(self._logs.existing(domain)).version

    def history(self, domain: str, *, limit: int = MAX_HISTORY, before: int | None = None) -> list[HistoryEntry]:
        """Return the last commits of a domain, oldest first.

        Args:
            domain: the domain.
            limit: how many at most.
            before: leave out this commit number and all after it; for going further back.

        Raises:
            ValueError: a limit or number below 1.
            DomainNotFoundError: no such domain.
            StoreCorruptError: its log is damaged.
        """
        if limit < 1 or (before is not None and before < 1):
            raise ValueError("history: expected limit and before to be at least 1")
        entries = []
        for record in self._logs.records(domain, limit=limit, before=before):
            from_version = {"publish": None, "retire": record.version}.get(record.action, record.from_version)
            to_version = None if record.action == "retire" else record.version
            entries.append(HistoryEntry(record.at, record.actor, record.action, from_version, to_version, record.seq))
        return entries

    def add(self, domain: str, data: bytes, *, actor: str = "") -> Added:
        """Publish a bundle as the domain's next version; it does not go live.

        Args:
            domain: must be the domain named in the bundle's manifest.
            data: the bundle file; checked whole before anything is written.
            actor: who publishes, for the history.

        Returns:
            the version. The newest version's content again gives that version, so repeating a call is safe.

        Raises:
            BundleInvalidError: not a valid bundle, or one for another domain; nothing was written.
            VersionExistsError: the content is an older version; activate or roll back to that one.
            StorageFullError: no room.
            StoreReadOnlyError: the disk refused or failed.
            StoreCorruptError: the domain's log is damaged.
        """
        check_domain(domain)
        bundle = read_bundle(data)
        if bundle.manifest.domain != domain:
            raise BundleInvalidError(
                "manifest_mismatch",
                f"expected a bundle for domain {domain}, found one for {bundle.manifest.domain}; "
                "publish it there or build it for this domain",
                field="domain",
            )
        decide = changes.publish(self._layout, self._disk, data, bundle.digest)
        with self._writing():
            state, is_created = self._logs.commit(domain, decide, actor=actor)
        return Added(state.available()[-1].version, bundle.digest, is_created)

    def activate(self, domain: str, version: int, *, expected_live: int | None = None, actor: str = "") -> LiveInfo:
        """Make a version live. Making the live version live again changes nothing.

        Args:
            domain: the domain.
            version: one of its versions.
            expected_live: if given, act only if this version is live now; 0 means "none is".
            actor: who asks, for the history.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version, or it is retired.
            ConflictError: another version is live than expected.
            StoreCorruptError: the version's bytes or the log are damaged; the live version stays.
            StoreReadOnlyError, StorageFullError: as for `add`.
        """
        self._logs.existing(domain)
        return self._move_live(domain, changes.activate(self._layout, version, expected_live), actor)

    def rollback(self, domain: str, *, actor: str = "") -> LiveInfo:
        """Go back to the version that was live before the current one; again goes further back.

        Retired versions are skipped.

        Raises:
            DomainNotFoundError: no such domain.
            ConflictError: `nothing_to_roll_back`, no earlier live version is left.
            StoreCorruptError: the earlier version's bytes or the log are damaged; the live version stays.
            StoreReadOnlyError, StorageFullError: as for `add`.
        """
        self._logs.existing(domain)
        return self._move_live(domain, changes.roll_back(self._layout), actor)

    def retire(self, domain: str, version: int, *, actor: str = "") -> None:
        """Remove a version from use. Its number is never given again; its bytes go with the next collection.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version, or it is retired already.
            VersionLiveError: it is live.
            StoreReadOnlyError, StorageFullError, StoreCorruptError: as for `add`.
        """
        self._logs.existing(domain)
        with self._writing():
            self._logs.commit(domain, changes.retire(version), actor=actor)

    def gc(
        self,
        *,
        keep_versions: int = KEEP_VERSIONS,
        grace_s: float = GRACE_S,
        temporary_grace_s: float = TEMPORARY_GRACE_S,
        dry_run: bool = False,
        actor: str = "",
    ) -> GcReport:
        """Retire all but the newest versions of each domain and remove unreferenced files.

        The live version and the one a rollback would go to are always kept.

        Args:
            keep_versions: versions to keep per domain, at least 1.
            grace_s: age in seconds below which an unreferenced blob is kept.
            temporary_grace_s: the same for temporary files of killed writers.
            dry_run: only report.
            actor: who asks, for the history.

        Raises:
            ConflictError: `store_busy`, somebody is publishing or collecting right now.
            StoreCorruptError: a log is damaged; nothing was removed.
            StoreReadOnlyError: the disk refused or failed.
            ValueError: `keep_versions` is below 1.
        """
        if keep_versions < 1:
            raise ValueError("keep_versions: expected at least 1")
        try:
            with self._writing(exclusive=True):
                return collect(
                    self._layout,
                    self._disk,
                    self._logs,
                    keep_versions=keep_versions,
                    grace_s=grace_s,
                    temporary_grace_s=temporary_grace_s,
                    is_dry_run=dry_run,
                    actor=actor,
                )
        except BlockingIOError as error:
            raise ConflictError(
                "expected nobody to write while collecting, found a writer; try again later", code="store_busy"
            ) from error

    def _move_live(self, domain: str, decide: Decide, actor: str) -> LiveInfo:
        with self._writing():
            state, _ = self._logs.commit(domain, decide, actor=actor)
        info = _live_info(state)
        if info is None:
            raise ConflictError("expected a live version after the change, found none; list the history")
        return info

    @contextmanager
    def _writing(self, *, exclusive: bool = False) -> Iterator[None]:
        """Hold the lock, and stop writing for good once the disk has failed: a retried sync proves nothing."""
        if self._has_failed:
            raise StoreReadOnlyError("expected a healthy disk, it reported an error before; check it and restart")
        try:
            with locked(self._layout.lock_file, exclusive=exclusive):
                yield
        except StoreReadOnlyError as error:
            self._has_failed |= error.code in _FATAL_CODES and not is_passing(error.__cause__)
            raise
