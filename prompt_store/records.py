"""A domain's log: numbered commit records, each containing the digest of its predecessor.

Creating record n+1 *is* the commit. There is no separate state file: the state is computed from records 1..n.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from prompt_store.digest import DIGEST_PATTERN, digest_bytes
from prompt_store.durable import Disk, create_file, read_file
from prompt_store.errors import StoreCorruptError
from prompt_store.strict_json import dump_canonical, load_object

MAX_RECORD_BYTES: Final = 64 * 1024
MAX_ACTOR_CHARS: Final = 128
GENESIS: Final = "sha256:" + "0" * 64

_FILE_NAME: Final = re.compile(r"[0-9]{10}\.json")
Action = Literal["publish", "activate", "rollback", "retire"]


class Record(BaseModel):
    """One commit. `version` is the version acted on; `from_version` the version that was live before."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    seq: Annotated[int, Field(ge=1)]
    prev: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]
    action: Action
    version: Annotated[int, Field(ge=1)]
    digest: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]
    size_bytes: Annotated[int, Field(ge=0)]
    from_version: int | None = None
    at: str
    actor: Annotated[str, Field(max_length=MAX_ACTOR_CHARS)] = ""


@dataclass(frozen=True)
class PublishedVersion:
    """One version, as recorded when it was published."""

    version: int
    digest: str
    size_bytes: int
    at: str
    is_retired: bool = False


@dataclass(frozen=True)
class State:
    """The state of a domain after records 1..`seq`.

    Attributes:
        seq: number of the last record; 0 for an empty log.
        head: digest of the last record's bytes.
        published: all versions ever published; version n is `published[n - 1]`.
        live_history: versions in the order they went live, the last one is live; a rollback removes entries.
    """

    seq: int = 0
    head: str = GENESIS
    published: tuple[PublishedVersion, ...] = ()
    live_history: tuple[int, ...] = ()

    @property
    def live(self) -> int | None:
        """The live version, if any."""
        return self.live_history[-1] if self.live_history else None

    def find(self, version: int) -> PublishedVersion | None:
        """Return the version, or None if it was never published or is retired."""
        if not 1 <= version <= len(self.published):
            return None
        found = self.published[version - 1]
        return None if found.is_retired else found

    def available(self) -> list[PublishedVersion]:
        """Return all versions that are not retired, oldest first."""
        return [entry for entry in self.published if not entry.is_retired]

    def rollback_version(self) -> int | None:
        """Return the target of a rollback: the most recently live version that still exists."""
        for version in reversed(self.live_history):
            if version != self.live and self.find(version) is not None:
                return version
        return None

    def after(self, record: Record, record_digest: str) -> "State":
        """Return the state after one more record.

        Raises:
            ValueError: the record is not a valid successor.
        """
        if record.seq != self.seq + 1 or record.prev != self.head:
            raise ValueError("not the next record in the chain")
        published, live_history = self.published, self.live_history
        if record.action == "publish":
            if record.version != len(published) + 1:
                raise ValueError("the record skips a version number")
            published = (*published, PublishedVersion(record.version, record.digest, record.size_bytes, record.at))
        else:
            found = self.find(record.version)
            if found is None or found.digest != record.digest:
                raise ValueError("the record refers to an unknown version")
            if record.action == "activate":
                live_history = (*live_history, record.version)
            elif record.action == "rollback":
                live_history = _roll_back_to(live_history, record.version)
            else:
                retired = replace(found, is_retired=True)
                published = (*published[: record.version - 1], retired, *published[record.version :])
        return State(record.seq, record_digest, published, live_history)


def _roll_back_to(live_history: tuple[int, ...], version: int) -> tuple[int, ...]:
    shorter = live_history[:-1]
    while shorter and shorter[-1] != version:
        shorter = shorter[:-1]
    if not shorter:
        raise ValueError("the record rolls back to a version that was never live")
    return shorter


def clean_actor(actor: str) -> str:
    """Return the name with unprintable characters replaced, truncated to the maximum length."""
    return "".join(char if char.isprintable() else "?" for char in actor[:MAX_ACTOR_CHARS])


def _record_path(log_dir: Path, seq: int) -> Path:
    return log_dir / f"{seq:010d}.json"


def _corrupt(seq: int, problem: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"Commit record {seq} is {problem}. Restore this domain's log from a backup; other domains are not affected."
    )


def has_records(log_dir: Path) -> bool:
    """Whether the log contains any record, even if the first one is lost."""
    # Both checks are False for an unreadable directory.
    return os.path.exists(_record_path(log_dir, 1)) or any(log_dir.glob("*.json"))  # noqa: PTH110  Path.exists raises


def _has_later(log_dir: Path, seq: int, *, scan_all: bool) -> bool:
    """Whether a record after `seq` exists although `seq` itself is missing.

    A full read lists the directory. Incremental reads happen on every call and only check the next number, because
    listing a log of ten thousand records each time is too slow.
    """
    if not scan_all:
        return _record_path(log_dir, seq + 1).exists()
    try:
        return any(_FILE_NAME.fullmatch(path.name) and int(path.stem) > seq for path in log_dir.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _load_record(log_dir: Path, seq: int) -> tuple[Record, str] | None:
    """Read a record and the digest of its bytes; None if the file does not exist.

    Raises:
        StoreCorruptError: unreadable or damaged.
    """
    try:
        data = read_file(_record_path(log_dir, seq), max_bytes=MAX_RECORD_BYTES)
    except OSError as error:
        raise _corrupt(seq, "unreadable") from error
    if data is None:
        return None
    try:
        return Record.model_validate(load_object(data)), digest_bytes(data)
    except ValueError as error:
        raise _corrupt(seq, "damaged") from error


def read_log(log_dir: Path, known: State) -> State:
    """Apply the records after a known state; an empty state reads the whole log.

    Args:
        log_dir: the domain's log directory; may not exist.
        known: a state read earlier from this directory.

    Raises:
        StoreCorruptError: a record is missing, damaged or breaks the chain.
    """
    state = known
    while True:
        seq = state.seq + 1
        loaded = _load_record(log_dir, seq)
        if loaded is None and not _has_later(log_dir, seq, scan_all=known.seq == 0):
            return state
        # Another writer may have committed both records between the two checks: read again.
        loaded = loaded or _require_record(log_dir, seq)
        try:
            state = state.after(*loaded)
        except ValueError as error:
            raise _corrupt(seq, "damaged") from error


def read_records(log_dir: Path, state: State, *, first: int, last: int) -> list[Record]:
    """Read records `first`..`last`, oldest first.

    Args:
        log_dir: the domain's log directory.
        state: the log's state.
        first: at least 1.
        last: at most `state.seq`.

    Raises:
        StoreCorruptError: a record is missing or changed since the state was read.
    """
    # Verify the chain backwards: the state has the digest of the last record, each record that of its predecessor.
    expected = state.head if last == state.seq else _require_record(log_dir, last + 1)[0].prev
    records: list[Record] = []
    for seq in range(last, first - 1, -1):
        record, found = _require_record(log_dir, seq)
        if found != expected:
            raise _corrupt(seq, "damaged")
        expected = record.prev
        records.append(record)
    return records[::-1]


def _require_record(log_dir: Path, seq: int) -> tuple[Record, str]:
    loaded = _load_record(log_dir, seq)
    if loaded is None:
        raise _corrupt(seq, "missing")
    return loaded


def commit_record(disk: Disk, log_dir: Path, state: State, record: Record) -> State | None:
    """Append one record durably.

    Returns:
        the new state; None if another writer created this number first.

    Raises:
        StorageFullError: not enough space; nothing was changed.
        StoreReadOnlyError: the store is not writable or the disk failed.
        ValueError: the record is not a valid successor.
    """
    data = dump_canonical(record.model_dump(mode="python"))
    following = state.after(record, digest_bytes(data))
    return following if create_file(disk, _record_path(log_dir, record.seq), data) else None
