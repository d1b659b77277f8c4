"""The store: immutable versions per domain, one live version each, rollback and history.

Thread-safe, and safe for several processes on one machine.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from prompt_store import changes
from prompt_store.audit import KeyChange
from prompt_store.audit_check import AuditReport, audit_report, complete
from prompt_store.audit_keys import append_key_changes, key_changes
from prompt_store.blobs import read_blob
from prompt_store.bundle import Bundle, read_bundle
from prompt_store.collect import GRACE_S, KEEP_VERSIONS, TEMPORARY_GRACE_S, GcReport, collect
from prompt_store.disk import Disk
from prompt_store.durable import is_device_failure, locked
from prompt_store.errors import BundleInvalidError, ConflictError, StoreReadOnlyError
from prompt_store.layout import Layout, open_layout
from prompt_store.logs import Decide, Logs
from prompt_store.manifest import check_domain
from prompt_store.records import history_entry
from prompt_store.rollouts import Event, RolloutPlan
from prompt_store.signature_files import put_signature, read_signatures
from prompt_store.signatures import parse_signature
from prompt_store.sqlite_files import reclaim_space
from prompt_store.versions import Added, HistoryEntry, LiveInfo, VersionInfo

MAX_HISTORY: Final = 1000
_FATAL_CODES: Final = frozenset({"storage_error", "commit_unknown"})


class Store:
    """A directory of bundles. Open it with `Store.open`."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._logs = Logs(layout, disk)
        self._has_failed = False

    @classmethod
    def open(cls, root: Path | str, create: bool = True, *, disk: Disk | None = None) -> "Store":
        """Open the store at `root`, or create it if `create` is True.

        A store on a read-only file system can be opened and read. `root` may be a symbolic link; links inside a store
        are not followed.

        Raises:
            StoreCorruptError: `not_a_store`, the directory is not a store; `store_corrupt`, FORMAT is unreadable.
            StoreReadOnlyError: the directory is not writable.
        """
        disk = disk or Disk()
        return cls(open_layout(Path(root).resolve(), disk, create=create), disk)

    @property
    def root(self) -> Path:
        """The store's directory."""
        return self._layout.root

    @property
    def address(self) -> str:
        """The address that opens it: its directory, or its bucket and prefix."""
        return str(self.root)

    def refresh(self) -> None:
        """Read the changes of other machines, if the store is in a bucket; a directory is read whenever it is used.

        Raises:
            StoreUnavailableError, StoreCorruptError: the bucket cannot be reached, or has no store any more.
        """

    @property
    def is_writable(self) -> bool:
        """Whether the store accepts writes; False on read-only media and after a disk error."""
        places = [path for path in (self.root, self._layout.domains, self._layout.blobs) if path.exists()]
        has_failed = self._has_failed or self._logs.has_failed_disk
        return not has_failed and all(os.access(path, os.W_OK) for path in places)

    def domains(self) -> list[str]:
        """Return the names of all domains, sorted."""
        return self._logs.names()

    def versions(self, domain: str) -> list[VersionInfo]:
        """Return the versions of a domain that are not retired, oldest first.

        Raises:
            DomainNotFoundError: no such domain.
            StoreCorruptError: its log is damaged.
        """
        return changes.version_infos(self._logs.require(domain))

    def read(self, domain: str, version: int) -> bytes:
        """Return a version's bytes, verified against its digest.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version, or it is retired.
            StoreCorruptError: `version_corrupt`, the stored bytes are missing or damaged.
        """
        return read_blob(self._layout, changes.find_version(self._logs.require(domain), version).digest)

    def live(self, domain: str) -> LiveInfo | None:
        """Return the live version, or None if no version was activated yet.

        Raises:
            DomainNotFoundError: no such domain.
            StoreCorruptError: its log is damaged.
        """
        return changes.live_info(self._logs.require(domain))

    def rollback_target(self, domain: str) -> int:
        """Return the version that `rollback` would make live, so that it can be loaded first.

        Raises:
            DomainNotFoundError: no such domain.
            ConflictError: `nothing_to_roll_back`, no earlier live version exists.
            StoreCorruptError: its log is damaged.
        """
        return changes.rollback_target(self._logs.require(domain)).version

    def history(self, domain: str, *, limit: int = MAX_HISTORY, before: int | None = None) -> list[HistoryEntry]:
        """Return the last commits of a domain, oldest first.

        Args:
            domain: the domain.
            limit: maximum number of commits.
            before: only commits with a smaller number; for paging.

        Raises:
            ValueError: `limit` or `before` is below 1.
            DomainNotFoundError: no such domain.
            StoreCorruptError: its log is damaged.
        """
        if limit < 1 or (before is not None and before < 1):
            raise ValueError("limit and before must be at least 1")
        return [history_entry(record) for record in self._logs.records(domain, limit=limit, before=before)]

    def add(
        self,
        domain: str,
        data: bytes,
        *,
        bundle: Bundle | None = None,
        signature: bytes | None = None,
        origin: str = "",
        actor: str = "",
    ) -> Added:
        """Publish a bundle as the domain's next version, without activating it.

        Args:
            domain: must equal the domain in the bundle's manifest.
            data: the bundle file; fully validated before anything is written.
            bundle: `read_bundle(data)`, if the caller has it already.
            signature: a signature of this bundle, stored beside it; not verified, because there is no key here.
            origin: `fit` or `create`, for the audit log; empty for an upload.
            actor: name for the history.

        Returns:
            the version. Idempotent: adding the newest version's content again returns that version, and adds the
            signature to it.

        Raises:
            SignatureError: not a signature of this bundle; nothing was written.
            BundleInvalidError: not a valid bundle, or a bundle for another domain; nothing was written.
            VersionExistsError: an older version has this content; activate that version.
            StorageFullError: not enough space.
            StoreReadOnlyError: the store is not writable or the disk failed.
            StoreCorruptError: the domain's log is damaged.
        """
        check_domain(domain)
        bundle = bundle or read_bundle(data)
        if bundle.manifest.domain != domain:
            raise BundleInvalidError(
                "manifest_mismatch",
                f"The bundle is for domain {bundle.manifest.domain}, not {domain}.",
                field="domain",
            )
        if signature is not None:
            parse_signature(signature, bundle.digest)
        decide = changes.publish(self._layout, self._disk, data, bundle.digest, signature=signature, origin=origin)
        with self._write_lock(domain):
            state, is_created = self._logs.commit(domain, decide, actor=actor)
        return Added(state.available()[-1].version, bundle.digest, is_created)

    def add_signature(self, domain: str, version: int, signature: bytes) -> None:
        """Store a signature of a version beside it; idempotent. It is not verified: there is no key here.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version, or it is retired.
            SignatureError: not a signature of this version's bundle.
            ConflictError: `too_many_signatures`.
            StoreReadOnlyError, StorageFullError, StoreCorruptError: as for `add`.
        """
        digest = changes.find_version(self._logs.require(domain), version).digest
        with self._write_lock(domain):
            put_signature(self._layout, self._disk, signature, digest)

    def signatures(self, digest: str) -> list[bytes]:
        """Return the stored signatures of a bundle, not verified.

        Raises:
            SignatureError: they are damaged.
            StoreReadOnlyError: `storage_busy`.
        """
        return read_signatures(self._layout, digest)

    def audit(self) -> AuditReport:
        """Return all changes of all domains and of the service's keys, and what is wrong with their log.

        Raises:
            StoreCorruptError: the directory of all domains cannot be read.
            StoreReadOnlyError: `storage_busy`.
        """
        return audit_report(self._layout)

    def complete_audit(self) -> tuple[int, str]:
        """Append the missing entries of the audit log, such as after a kill between a change and its entry.

        Returns:
            the number of entries, and the damage of the log that was found; empty without damage.

        Raises:
            StoreReadOnlyError, StorageFullError, StoreCorruptError: as for `add`.
        """
        report = self.audit()
        if report.problem or all(gap.is_lost for gap in report.gaps):
            return 0, " ".join(report.problems())
        with self._write_lock():
            return complete(self._layout, self._disk)

    def audit_keys(self, keys: Mapping[str, tuple[str, str]]) -> list[KeyChange]:
        """Append the changes of the service's API keys since the last call to the audit log, whoever made it.

        Args:
            keys: id -> (digest of the key's fields, scopes); all keys in force.

        Returns:
            the changes.

        Raises:
            StoreReadOnlyError, StorageFullError, StoreCorruptError: as for `add`.
        """
        if not key_changes(self._layout, keys):
            return []
        with self._write_lock():
            return append_key_changes(self._layout, self._disk, keys)

    def activate(
        self,
        domain: str,
        version: int,
        *,
        expected_live: int | None = None,
        completes: tuple[int, str] | None = None,
        actor: str = "",
    ) -> LiveInfo:
        """Make a version live; idempotent. Ends the domain's rollout, if one is running.

        Args:
            domain: the domain.
            version: one of its versions.
            expected_live: if given, fail unless this version is live now; 0 for no live version.
            completes: the `seq` of a rollout that must be running, and its figures for the history.
            actor: name for the history.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version, or it is retired.
            ConflictError: the live version is not `expected_live`, or the rollout has ended.
            StoreCorruptError: the version's bytes or the log are damaged; the live version is unchanged.
            StoreReadOnlyError, StorageFullError: as for `add`.
        """
        self._logs.require(domain)
        return self._move_live(domain, changes.activate(self._layout, version, expected_live, completes), actor)

    def rollback(self, domain: str, *, actor: str = "") -> LiveInfo:
        """Make the previously live version live; repeated calls go further back, skipping retired versions.

        Raises:
            DomainNotFoundError: no such domain.
            ConflictError: `nothing_to_roll_back`, no earlier live version exists.
            StoreCorruptError: the version's bytes or the log are damaged; the live version is unchanged.
            StoreReadOnlyError, StorageFullError: as for `add`.
        """
        self._logs.require(domain)
        return self._move_live(domain, changes.roll_back(self._layout), actor)

    def start_rollout(
        self, domain: str, plan: RolloutPlan, *, expected_live: int | None = None, actor: str = ""
    ) -> LiveInfo:
        """Start a rollout beside the live version; at most one runs in a domain.

        Raises:
            DomainNotFoundError, VersionNotFoundError: no such domain or candidate.
            VersionLiveError: the candidate is live.
            ConflictError: `rollout_running`; or no version, or not `expected_live`, is live.
            StoreReadOnlyError, StorageFullError, StoreCorruptError: as for `add`.
        """
        self._logs.require(domain)
        return self._move_live(domain, changes.start_rollout(plan, expected_live), actor)

    def end_rollout(
        self, domain: str, started: int | None = None, *, event: Event = "stop", detail: str = "", actor: str = ""
    ) -> bool:
        """End the rollout with this `seq`, or any; returns whether it was running. Raises as `start_rollout` does."""
        self._logs.require(domain)
        with self._write_lock(domain):
            return self._logs.commit(domain, changes.end_rollout(started, event, detail), actor=actor)[1]

    def retire(self, domain: str, version: int, *, actor: str = "") -> None:
        """Retire a version. Its number is never reused; garbage collection removes its bytes.

        Raises:
            DomainNotFoundError: no such domain.
            VersionNotFoundError: no such version, or it is already retired.
            VersionLiveError: the version is live.
            ConflictError: `rollout_running`, it is the candidate of a rollout.
            StoreReadOnlyError, StorageFullError, StoreCorruptError: as for `add`.
        """
        self._logs.require(domain)
        with self._write_lock(domain):
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

        The live version, the rollback target and a rollout's candidate are always kept. The database of examples is
        rewritten without the space of removed ones.

        Args:
            keep_versions: versions to keep per domain, at least 1.
            grace_s: minimum age in seconds of an unreferenced blob before it is removed.
            temporary_grace_s: the same for temporary files of killed writers.
            dry_run: report only.
            actor: name for the history.

        Raises:
            ConflictError: `store_busy`, another process is publishing or collecting.
            StoreCorruptError: a log is damaged, and nothing was removed; or the examples are damaged.
            StorageFullError: no space to rewrite the examples; everything else was done.
            StoreReadOnlyError: the store is not writable or the disk failed.
            ValueError: `keep_versions` is below 1.
        """
        if keep_versions < 1:
            raise ValueError("keep_versions must be at least 1")
        with self._write_lock(exclusive=True):
            report = collect(
                self._layout,
                self._disk,
                self._logs,
                keep_versions=keep_versions,
                grace_s=grace_s,
                temporary_grace_s=temporary_grace_s,
                is_dry_run=dry_run,
                actor=actor,
            )
            n_bytes = reclaim_space(self._layout.examples, is_dry_run=dry_run)
            return replace(report, freed_bytes=report.freed_bytes + n_bytes)

    def _move_live(self, domain: str, decide: Decide, actor: str) -> LiveInfo:
        with self._write_lock(domain):
            state, _ = self._logs.commit(domain, decide, actor=actor)
        info = changes.live_info(state)
        if info is None:
            raise ConflictError("No version is live after the change. Check the domain's history.")
        return info

    def _read_changes(self, domain: str) -> None:
        """Called before a write, with the domain if it concerns one; a copy of a bucket fetches new changes here."""

    @contextmanager
    def _write_lock(self, domain: str = "", *, exclusive: bool = False) -> Iterator[None]:
        """Hold the lock. After an error of the disk all writes fail until a restart: a retried fsync proves nothing.

        Errors of one operation or one path, such as a file in the place of a directory, concern nothing else.
        """
        self._has_failed |= self._logs.has_failed_disk
        if self._has_failed:
            raise StoreReadOnlyError("The disk reported an error earlier. Check the disk and restart.")
        try:
            with locked(self._layout.lock_file, exclusive=exclusive):
                self._read_changes(domain)
                yield
        except StoreReadOnlyError as error:
            self._has_failed |= error.code in _FATAL_CODES and is_device_failure(error.__cause__)
            raise
