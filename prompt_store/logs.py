"""All domains' logs: the current state of each, and committing on top of it.

Knows that other processes write too: a state is brought up to date on every call, and a commit that loses the race
for a number looks again and decides anew. Does not know bundles.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from prompt_store.durable import Disk, confirm_dir, ensure_dir
from prompt_store.errors import DomainNotFoundError
from prompt_store.layout import Layout
from prompt_store.manifest import is_domain
from prompt_store.records import (
    Action,
    Published,
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
    """What a commit is to record: the action and the version it is about."""

    action: Action
    subject: Published


Decide = Callable[[State], Change | None]


def utc_now() -> str:
    """Return the wall clock as ISO-8601 in UTC, microseconds included."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Logs:
    """The logs of one store; safe for threads, and for processes that share the directory."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int], State]] = {}

    def names(self) -> list[str]:
        """Return all domains that hold at least one record, sorted."""
        try:
            names = [path.name for path in self._layout.domains.iterdir() if is_domain(path.name)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if has_records(self._layout.log(name)))

    def state(self, domain: str) -> State:
        """Return the state of a domain as of now; the empty state for one that does not exist.

        Raises:
            DomainNotFoundError: the text cannot name a domain.
            StoreCorruptError: the log is damaged.
        """
        log_dir = self._layout.log(domain)
        try:
            stat = log_dir.stat()
        except (FileNotFoundError, NotADirectoryError):
            return State()
        identity = (stat.st_dev, stat.st_ino)  # a directory that was replaced is read afresh
        with self._lock:
            known_identity, known = self._known.get(domain, (identity, State()))
        state = read_log(log_dir, known if known_identity == identity else State())
        self._remember(domain, identity, state)
        return state

    def existing(self, domain: str) -> State:
        """Return the state of a domain that must exist.

        Raises:
            DomainNotFoundError: nothing was ever added under that name.
            StoreCorruptError: the log is damaged.
        """
        state = self.state(domain)
        if state.seq == 0:
            raise DomainNotFoundError("expected a domain of this store, found none of that name; list the domains")
        return state

    def records(self, domain: str, *, limit: int, before: int | None = None) -> list[Record]:
        """Return the last `limit` records of a domain, or the last ones in front of number `before`, oldest first.

        Raises:
            DomainNotFoundError: nothing was ever added under that name.
            StoreCorruptError: the log is damaged.
        """
        state = self.existing(domain)
        last = state.seq if before is None else min(before - 1, state.seq)
        return read_records(self._layout.log(domain), state, first=max(1, last - limit + 1), last=last)

    def commit(self, domain: str, decide: Decide, *, actor: str) -> tuple[State, bool]:
        """Record a change, deciding anew each time another writer was faster.

        Args:
            domain: a valid name; its directories are made with the first record.
            decide: returns the change for the state it is given, or None when there is nothing to record; it
                raises to refuse.
            actor: who asks.

        Returns:
            the state after the change, every record in it durable, and whether anything was recorded.

        Raises:
            StorageFullError: no room; nothing was changed.
            StoreReadOnlyError: the disk refused or failed.
            StoreCorruptError: the log is damaged.
        """
        log_dir = self._layout.log(domain)
        while True:
            state = self.state(domain)
            change = decide(state)
            if change is None:
                # The record this answer rests on may be another writer's, linked and not yet synced.
                confirm_dir(self._disk, log_dir)
                return state, False
            if state.seq == 0:
                ensure_dir(self._disk, self._layout.domains)
                ensure_dir(self._disk, log_dir.parent)
                ensure_dir(self._disk, log_dir)
            following = commit_record(self._disk, log_dir, state, _record(state, change, actor))
            if following is not None:
                stat = log_dir.stat()
                self._remember(domain, (stat.st_dev, stat.st_ino), following)
                return following, True

    def _remember(self, domain: str, identity: tuple[int, int], state: State) -> None:
        with self._lock:
            known_identity, known = self._known.get(domain, (identity, State()))
            if known_identity != identity or known.seq <= state.seq:
                self._known[domain] = (identity, state)


def _record(state: State, change: Change, actor: str) -> Record:
    return Record(
        seq=state.seq + 1,
        prev=state.head,
        action=change.action,
        version=change.subject.version,
        digest=change.subject.digest,
        size_bytes=change.subject.size_bytes,
        from_version=state.live,
        at=utc_now(),
        actor=clean_actor(actor),
    )
