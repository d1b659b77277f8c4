"""Reading and writing the records of one domain; `log` is its open log directory (`disk.open_directory`)."""

import errno
import os
from pathlib import Path
from typing import Final

from prompt_store.digest import digest_bytes
from prompt_store.disk import Disk, read_file
from prompt_store.durable import create_file, error_name, is_transient, to_store_error
from prompt_store.errors import PromptStoreError, StoreCorruptError
from prompt_store.layout import is_record_name, record_name
from prompt_store.records import Record, State, decode_record, encode_record

MAX_RECORD_BYTES: Final = 64 * 1024


def record_numbers(log: int) -> list[int]:
    """Return the numbers of all record files in a log, sorted.

    Raises:
        OSError: the directory cannot be read.
    """
    return sorted(int(name[:10]) for name in os.listdir(log) if is_record_name(name))


def _corrupt(seq: int, problem: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"Commit record {seq} is {problem}. Run `caspl store check`, or restore this domain's log from a backup; "
        "other domains are not affected."
    )


def unreadable_log(error: OSError) -> PromptStoreError:
    """Convert an error of opening or listing a log."""
    if is_transient(error):
        return to_store_error(error)
    why = "a symbolic link or a file is in its place" if error.errno == errno.ENOTDIR else error_name(error)
    return StoreCorruptError(
        f"This domain's log is unreadable ({why}). Run `caspl store check`; other domains are not affected."
    )


def _load_record(log: int, seq: int) -> tuple[Record, str] | None:
    """Read a record and the digest of its bytes; None if the file does not exist.

    Raises:
        StoreCorruptError: unreadable or damaged.
        StoreReadOnlyError: `storage_busy`.
    """
    try:
        data = read_file(record_name(seq), max_bytes=MAX_RECORD_BYTES, dir_fd=log)
    except OSError as error:
        if is_transient(error):
            raise to_store_error(error) from error
        raise _corrupt(seq, f"unreadable ({error_name(error)})") from error
    if data is None:
        return None
    try:
        return decode_record(data), digest_bytes(data)
    except ValueError as error:
        raise _corrupt(seq, f"damaged: {error}") from error


def _has_later(log: int, seq: int, *, scan_all: bool) -> bool:
    """Whether a record after `seq` exists although `seq` itself is missing.

    A full read lists the directory. Incremental reads happen on every call and only check the next number, because
    listing a log of ten thousand records each time is too slow.
    """
    if scan_all:
        return any(number > seq for number in record_numbers(log))
    try:
        os.stat(record_name(seq + 1), dir_fd=log, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def next_state(log: int, state: State, *, scan_all: bool) -> State | None:
    """Return the state after one more record, None if there is none; `scan_all` looks for a gap in the whole log.

    Raises:
        StoreCorruptError: the record is missing, damaged or breaks the chain.
        StoreReadOnlyError: `storage_busy`.
        OSError: the directory cannot be read.
    """
    seq = state.seq + 1
    loaded = _load_record(log, seq)
    if loaded is None and not _has_later(log, seq, scan_all=scan_all):
        return None
    # Another writer may have committed both records between the two checks: read again.
    loaded = loaded or _require_record(log, seq)
    try:
        return state.after(*loaded)
    except ValueError as error:
        raise _corrupt(seq, f"damaged: {error}") from error


def read_log(log: int, known: State) -> State:
    """Apply the records after a known state, read earlier from this log; an empty state reads the whole log.

    Raises: as `next_state`.
    """
    state = known
    while following := next_state(log, state, scan_all=known.seq == 0):
        state = following
    return state


def check_chain(log: int, state: State) -> None:
    """Verify that the log still has all records of a state, and that the last one is unchanged.

    Raises:
        StoreCorruptError: a record is missing or changed.
        OSError: the directory cannot be read.
    """
    if missing := set(range(1, state.seq + 1)).difference(record_numbers(log)):
        raise _corrupt(min(missing), "missing")
    if state.seq and _require_record(log, state.seq)[1] != state.head:
        raise _corrupt(state.seq, "damaged: it changed after it was committed")


def read_records(log: int, state: State, *, first: int, last: int) -> list[Record]:
    """Read records `first`..`last`, oldest first.

    Args:
        log: the domain's log.
        state: the log's state.
        first: at least 1.
        last: at most `state.seq`.

    Raises:
        StoreCorruptError: a record is missing or changed since the state was read.
    """
    # Verify the chain backwards: the state has the digest of the last record, each record that of its predecessor.
    expected = state.head if last == state.seq else _require_record(log, last + 1)[0].prev
    records: list[Record] = []
    for seq in range(last, first - 1, -1):
        record, found = _require_record(log, seq)
        if found != expected:
            raise _corrupt(seq, "damaged: it changed after it was committed")
        expected = record.prev
        records.append(record)
    return records[::-1]


def _require_record(log: int, seq: int) -> tuple[Record, str]:
    loaded = _load_record(log, seq)
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
    data = encode_record(record)
    following = state.after(record, digest_bytes(data))
    return following if create_file(disk, log_dir / record_name(record.seq), data) else None
