"""The log of one domain: numbered commit records, each naming the digest of the one before.

Knows how records are written, read and chained, and the state they add up to. Does not know bundles or blobs.
There is no "current state" file that could disagree: creating the next numbered record *is* the commit, and the
state is what the records 1..n say.
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
    """One commit. `version` is the version the action is about; `from_version` the one that was live before it."""

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
class Published:
    """One version as its publish record describes it."""

    version: int
    digest: str
    size_bytes: int
    at: str
    is_retired: bool = False


@dataclass(frozen=True)
class State:
    """What the records 1..`seq` of a domain add up to.

    Attributes:
        seq: number of the last record; 0 for a domain without any.
        head: digest of the last record's bytes.
        published: every version ever published, in order; version n is `published[n - 1]`.
        trail: versions in the order in which they went live, as rollback walks them; the last one is live.
    """

    seq: int = 0
    head: str = GENESIS
    published: tuple[Published, ...] = ()
    trail: tuple[int, ...] = ()

    @property
    def live(self) -> int | None:
        """The live version, if any."""
        return self.trail[-1] if self.trail else None

    def find(self, version: int) -> Published | None:
        """Return the version unless it was never published or is retired."""
        if not 1 <= version <= len(self.published):
            return None
        found = self.published[version - 1]
        return None if found.is_retired else found

    def available(self) -> list[Published]:
        """Return all versions that are not retired, oldest first."""
        return [entry for entry in self.published if not entry.is_retired]

    def previous_live(self) -> int | None:
        """Return the version that a rollback goes to: the nearest one on the trail that still exists."""
        for version in reversed(self.trail):
            if version != self.live and self.find(version) is not None:
                return version
        return None

    def after(self, record: Record, record_digest: str) -> "State":
        """Return the state with one more record.

        Raises:
            ValueError: the record cannot follow this state.
        """
        if record.seq != self.seq + 1 or record.prev != self.head:
            raise ValueError("the record does not continue the chain")
        published, trail = self.published, self.trail
        if record.action == "publish":
            if record.version != len(published) + 1:
                raise ValueError("the record skips a version")
            published = (*published, Published(record.version, record.digest, record.size_bytes, record.at))
        else:
            found = self.find(record.version)
            if found is None or found.digest != record.digest:
                raise ValueError("the record names a version that is not there")
            if record.action == "activate":
                trail = (*trail, record.version)
            elif record.action == "rollback":
                trail = _trail_back_to(trail, record.version)
            else:
                retired = replace(found, is_retired=True)
                published = (*published[: record.version - 1], retired, *published[record.version :])
        return State(record.seq, record_digest, published, trail)


def _trail_back_to(trail: tuple[int, ...], version: int) -> tuple[int, ...]:
    shorter = trail[:-1]
    while shorter and shorter[-1] != version:
        shorter = shorter[:-1]
    if not shorter:
        raise ValueError("the record rolls back to a version that was not live")
    return shorter


def clean_actor(actor: str) -> str:
    """Return the name fit for a log line: printable, bounded."""
    return "".join(char if char.isprintable() else "?" for char in actor[:MAX_ACTOR_CHARS])


def _record_path(log_dir: Path, seq: int) -> Path:
    return log_dir / f"{seq:010d}.json"


def _corrupt(seq: int, found: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"expected commit record {seq} to continue the log, found {found}; "
        "restore this domain's log from a backup, other domains are not affected"
    )


def has_records(log_dir: Path) -> bool:
    """Whether a log holds any record, its first one or, where that is lost, another."""
    # Where a folder may not be read, both say no.
    return os.path.exists(_record_path(log_dir, 1)) or any(log_dir.glob("*.json"))  # noqa: PTH110  Path.exists raises


def _has_later(log_dir: Path, seq: int, *, is_first_look: bool) -> bool:
    """Whether a record with a higher number is there although `seq` is not.

    The first look goes through the whole directory. Later ones, of which there is one per call, look one number ahead:
    a log of ten thousand records must not be listed for each.
    """
    if not is_first_look:
        return _record_path(log_dir, seq + 1).exists()
    try:
        return any(_FILE_NAME.fullmatch(path.name) and int(path.stem) > seq for path in log_dir.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _load_record(log_dir: Path, seq: int) -> tuple[Record, str] | None:
    """A record and the digest of its bytes; None where there is no file.

    Raises:
        StoreCorruptError: it is unreadable or no record.
    """
    try:
        data = read_file(_record_path(log_dir, seq), max_bytes=MAX_RECORD_BYTES)
    except OSError as error:
        raise _corrupt(seq, "a file that cannot be read") from error
    if data is None:
        return None
    try:
        return Record.model_validate(load_object(data)), digest_bytes(data)
    except ValueError as error:
        raise _corrupt(seq, "a damaged or foreign record") from error


def read_log(log_dir: Path, known: State) -> State:
    """Read the records that follow a known state; with an empty state, the whole log.

    Args:
        log_dir: the domain's log directory, which need not exist.
        known: a state read from this directory before.

    Raises:
        StoreCorruptError: a record is missing, damaged or does not continue the chain.
    """
    state = known
    while True:
        seq = state.seq + 1
        loaded = _load_record(log_dir, seq)
        if loaded is None and not _has_later(log_dir, seq, is_first_look=known.seq == 0):
            return state
        # Between the two looks another writer may have committed both; records are never removed, so look again.
        loaded = loaded or _existing_record(log_dir, seq)
        try:
            state = state.after(*loaded)
        except ValueError as error:  # not the next one
            raise _corrupt(seq, "a damaged or foreign record") from error


def read_records(log_dir: Path, state: State, *, first: int, last: int) -> list[Record]:
    """Read some records again, oldest first; a state does not keep them.

    Args:
        log_dir: the domain's log directory.
        state: what the log adds up to.
        first: number of the oldest one wanted, at least 1.
        last: number of the newest one, at most `state.seq`.

    Raises:
        StoreCorruptError: a record is missing, or not what it was when the state was read.
    """
    # The chain is followed backwards: each record names the bytes of the one before, and the state those of the last.
    expected = state.head if last == state.seq else _existing_record(log_dir, last + 1)[0].prev
    records: list[Record] = []
    for seq in range(last, first - 1, -1):
        record, found = _existing_record(log_dir, seq)
        if found != expected:
            raise _corrupt(seq, "a damaged or foreign record")
        expected = record.prev
        records.append(record)
    return records[::-1]


def _existing_record(log_dir: Path, seq: int) -> tuple[Record, str]:
    loaded = _load_record(log_dir, seq)
    if loaded is None:
        raise _corrupt(seq, "that it is missing")
    return loaded


def commit_record(disk: Disk, log_dir: Path, state: State, record: Record) -> State | None:
    """Append one record, durably.

    Returns:
        the state after it; None when another writer created that number first.

    Raises:
        StorageFullError: no room; nothing was changed.
        StoreReadOnlyError: the disk refused or failed.
        ValueError: the record cannot follow the state.
    """
    data = dump_canonical(record.model_dump(mode="python"))
    following = state.after(record, digest_bytes(data))
    return following if create_file(disk, _record_path(log_dir, record.seq), data) else None
