"""The logs of all domains: current states and commits.

Other processes may write to the same store: every call reads new records, and a commit that loses the race for its
number is retried on the new state.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from prompt_store.durable import Disk, create_directory, sync_directory
from prompt_store.errors import DomainNotFoundError
from prompt_store.layout import Layout
from prompt_store.manifest import is_domain
from prompt_store.records import (
    Action,
    PublishedVersion,
    Record,
    State,
    clean_actor,
    commit_record,
    has_records,
    read_log,
    read_records,
)


@dataclass(frozen=True)
class Change:
    """A change to commit: the action and the version it applies to."""

    action: Action
    target: PublishedVersion


Decide = Callable[[State], Change | None]


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Logs:
    """The logs of one store; thread-safe, and safe for several processes on one directory."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._lock = threading.Lock()
        self._states: dict[str, tuple[tuple[int, int], State]] = {}

    def names(self) -> list[str]:
        """Return all domains with at least one record, sorted."""
        try:
            names = [path.name for path in self._layout.domains.iterdir() if is_domain(path.name)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if has_records(self._layout.log(name)))

    def state(self, domain: str) -> State:
        """Return the current state of a domain; the empty state if it does not exist.

        Raises:
            DomainNotFoundError: not a valid domain name.
            StoreCorruptError: the log is damaged.
        """
        log_dir = self._layout.log(domain)
        try:
            stat = log_dir.stat()
        except (FileNotFoundError, NotADirectoryError):
            return State()
        identity = (stat.st_dev, stat.st_ino)  # a replaced directory is read from scratch
        with self._lock:
            known_identity, known = self._states.get(domain, (identity, State()))
        state = read_log(log_dir, known if known_identity == identity else State())
        self._cache_state(domain, identity, state)
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
        return read_records(self._layout.log(domain), state, first=max(1, last - limit + 1), last=last)

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
            StoreCorruptError: the log is damaged.
        """
        log_dir = self._layout.log(domain)
        while True:
            state = self.state(domain)
            change = decide(state)
            if change is None:
                # The latest record may be another writer's, linked but not yet synced.
                sync_directory(self._disk, log_dir)
                return state, False
            if state.seq == 0:
                create_directory(self._disk, self._layout.domains)
                create_directory(self._disk, log_dir.parent)
                create_directory(self._disk, log_dir)
            following = commit_record(self._disk, log_dir, state, _record(state, change, actor))
            if following is not None:
                stat = log_dir.stat()
                self._cache_state(domain, (stat.st_dev, stat.st_ino), following)
                return following, True

    def _cache_state(self, domain: str, identity: tuple[int, int], state: State) -> None:
        with self._lock:
            known_identity, known = self._states.get(domain, (identity, State()))
            if known_identity != identity or known.seq <= state.seq:
                self._states[domain] = (identity, state)


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
    )
