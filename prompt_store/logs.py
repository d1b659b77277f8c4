"""The logs of all domains: current states and commits.

Other processes may write to the same store: every call reads new records, and a commit that loses the race for its
number is retried on the new state.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from prompt_store.audit import Audit
from prompt_store.disk import Disk, Identity, identity, list_directory, open_directory
from prompt_store.durable import (
    create_directory,
    error_name,
    is_device_failure,
    is_transient,
    sync_directory,
)
from prompt_store.errors import DomainNotFoundError, StoreCorruptError, StoreReadOnlyError, StoreUnavailableError
from prompt_store.layout import Layout, record_name
from prompt_store.manifest import is_domain
from prompt_store.record_files import (
    check_chain,
    commit_record,
    read_log,
    read_records,
    record_numbers,
    unreadable_log,
)
from prompt_store.records import Action, PublishedVersion, Record, State, clean_actor
from prompt_store.rollouts import RolloutChange


@dataclass(frozen=True)
class Change:
    """A change to commit: action, the version it applies to, origin of a published one, and the event of a rollout."""

    action: Action
    target: PublishedVersion
    origin: str = ""
    rollout: RolloutChange | None = None


Decide = Callable[[State], Change | None]


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Logs:
    """The logs of one store; thread-safe, and safe for several processes on one directory."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._audit = Audit(layout, disk)
        self._lock = threading.Lock()
        self._states: dict[str, tuple[Identity, State]] = {}
        self._uncertain: set[str] = set()
        """Domains whose last change may be lost: a later sync that succeeds would not prove that it is durable."""
        self.has_failed_disk = False
        """The disk failed after a commit, while its entry in the audit log was written."""

    def names(self) -> list[str]:
        """Return all domains, sorted.

        A directory without records is not a domain; a link or a file with a domain's name is an unreadable domain.

        Raises:
            StoreCorruptError: the directory of all domains cannot be read.
        """
        try:
            found = list_directory(self._layout.domains)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreCorruptError(
                f"The store's directory of domains is unreadable ({error_name(error)}). Check the disk, and that it "
                "is neither a file nor a symbolic link."
            ) from error
        return [
            name for name, kind in found.items() if is_domain(name) and (kind != "directory" or self._has_records(name))
        ]

    def _has_records(self, domain: str) -> bool:
        """Whether the log has any record, even if the first one is lost; True if that is unknown."""
        log_dir = self._layout.log(domain)
        try:
            if os.path.exists(log_dir / record_name(1)):  # noqa: PTH110  Path.exists raises
                return True
            with open_directory(log_dir) as log:
                return bool(record_numbers(log))
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def state(self, domain: str) -> State:
        """Return the current state of a domain; the empty state if it does not exist.

        Raises:
            DomainNotFoundError: not a valid domain name.
            StoreCorruptError: the log is damaged or unreadable.
            StoreReadOnlyError: `storage_busy`.
        """
        log_dir = self._layout.log(domain)
        with self._lock:
            cached, known = self._states.get(domain, (None, State()))
        try:
            with open_directory(log_dir, cached) as log:
                found = identity(log)
                # A replaced directory is read from scratch.
                state = read_log(log, known if found == cached else State())
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise unreadable_log(error) from error
        self._cache_state(domain, found, state)
        return state

    def require(self, domain: str) -> State:
        """Return the current state of an existing domain.

        Raises:
            DomainNotFoundError: no such domain.
            StoreCorruptError: the log is damaged.
        """
        state = self.state(domain)
        if state.seq == 0:
            raise DomainNotFoundError("No such domain in this store. Use `caspl store ls` to list domains.")
        return state

    def records(self, domain: str, *, limit: int, before: int | None = None) -> list[Record]:
        """Return the last `limit` records of a domain, or the last ones before number `before`, oldest first.

        Raises:
            DomainNotFoundError: no such domain.
            StoreCorruptError: the log is damaged.
        """
        state = self.require(domain)
        last = state.seq if before is None else min(before - 1, state.seq)
        try:
            with open_directory(self._layout.log(domain)) as log:
                return read_records(log, state, first=max(1, last - limit + 1), last=last)
        except OSError as error:
            raise unreadable_log(error) from error

    def commit(self, domain: str, decide: Decide, *, actor: str) -> tuple[State, bool]:
        """Commit a change; on a conflict with another writer, `decide` runs again on the new state.

        Args:
            domain: a valid name; its directories are created with the first record.
            decide: returns the change for a state, None for no change; may raise to abort.
            actor: name for the history.

        Returns:
            the durable state after the change, and whether a record was written.

        Raises:
            StorageFullError: not enough space; nothing was changed.
            StoreReadOnlyError: the store is not writable or the disk failed.
            StoreCorruptError: the log is damaged, or lost a record since it was read.
        """
        if domain in self._uncertain:
            raise StoreReadOnlyError(
                "An earlier change of this domain may be lost. Restart before the next one.", code="commit_unknown"
            )
        try:
            while True:
                state = self.state(domain)
                following = self._commit(domain, state, decide(state), actor)
                if following is not None:
                    return following, following.seq > state.seq
        except StoreReadOnlyError as error:
            is_of_disk = not isinstance(error, StoreUnavailableError)
            if error.code == "commit_unknown" and is_of_disk and not is_transient(error.__cause__):
                self._uncertain.add(domain)
            raise

    def _commit(self, domain: str, state: State, change: Change | None, actor: str) -> State | None:
        """Write the record of a change; None if another writer was faster."""
        log_dir = self._layout.log(domain)
        if state.seq == 0:
            for directory in (self._layout.domains, log_dir.parent, log_dir):
                create_directory(self._disk, directory)
        try:
            with open_directory(log_dir) as log:
                check_chain(log, state)
                found = identity(log)
        except OSError as error:
            raise unreadable_log(error) from error
        if change is None:
            # The latest record may be another writer's, linked but not yet synced.
            sync_directory(self._disk, log_dir)
            return state
        following = commit_record(self._disk, log_dir, state, _record(state, change, actor))
        if following is not None:
            self._cache_state(domain, found, following)
            problem = self._audit.committed(domain, following)
            self.has_failed_disk |= problem is not None and is_device_failure(problem.__cause__)
        return following

    def _cache_state(self, domain: str, found: Identity, state: State) -> None:
        with self._lock:
            cached, known = self._states.get(domain, (found, State()))
            if cached != found or known.seq <= state.seq:
                self._states[domain] = (found, state)


def _record(state: State, change: Change, actor: str) -> Record:
    return Record(
        seq=state.seq + 1,
        prev=state.head,
        action=change.action,
        version=change.target.version,
        digest=change.target.digest,
        size_bytes=change.target.size_bytes,
        from_version=state.live,
        at=utc_now(),
        actor=clean_actor(actor),
        origin=change.origin,
        rollout=change.rollout,
    )
