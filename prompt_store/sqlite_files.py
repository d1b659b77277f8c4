"""SQLite databases in a store's directory: creating, opening and checking them, and their errors.

They use write-ahead logging, so several processes may read while one writes, and every commit is synced.
"""

import os
import re
import sqlite3
import stat
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from prompt_store.disk import Disk
from prompt_store.durable import TEMPORARY_PREFIX, to_store_error
from prompt_store.errors import PromptStoreError, StorageFullError, StoreCorruptError, StoreReadOnlyError

SIDE_FILES: Final = ("-wal", "-shm")
"""Suffixes of the files that SQLite keeps beside an open database."""
BUSY_TIMEOUT_S: Final = 10.0
MAX_WAL_BYTES: Final = 32 * 1024 * 1024
PAGE_BYTES: Final = 8192  # holds three feature vectors of 512 floats; the default of 4096 holds one and wastes half
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_INDEX_PROBLEM: Final = re.compile(
    r"(row \d+ missing from|wrong # of entries in|non-unique entry in|row \d+ values differ from) index \w+"
)
"""Lines of SQLite's `integrity_check` about an index that does not match its table."""
_DAMAGED_SCHEMA: Final = ("no such table", "no such column", "ambiguous column", "unsupported file format")
"""Begins errors of statements, all of which are constant, when the names in a database's schema changed on the disk."""
_READ_ONLY: Final = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})


def to_database_error(error: sqlite3.Error) -> PromptStoreError | None:
    """Convert an error of the file or the disk, None for any other; messages contain no paths and no system text."""
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = extended & 0xFF
    if code in _DAMAGED or str(error).startswith(_DAMAGED_SCHEMA):
        return StoreCorruptError("The database is damaged. Run `caspl store check`.", code="database_corrupt")
    if code in _FULL or extended in _FULL:
        return StorageFullError("No space left on the store's disk.")
    if code in _BUSY:
        return StoreReadOnlyError(
            "Another process is writing to the database; nothing was changed. Retry later.", code="database_busy"
        )
    if code in _READ_ONLY:
        return StoreReadOnlyError("The database is not writable. Check the mount and the permissions of the store.")
    if code == sqlite3.SQLITE_IOERR:
        return StoreReadOnlyError(
            f"A disk operation failed ({error.sqlite_errorname}); nothing was changed.", code="write_failed"
        )
    return None


@contextmanager
def converted_errors() -> Iterator[None]:
    """Raise the store's errors instead of SQLite's.

    Raises:
        StoreCorruptError: `database_corrupt`.
        StorageFullError: not enough space.
        StoreReadOnlyError: `store_read_only`, `database_busy` or `write_failed`.
    """
    try:
        yield
    except UnicodeDecodeError as error:  # of SQLite's own message, with a name in a damaged schema
        raise StoreCorruptError("The database is damaged. Run `caspl store check`.", code="database_corrupt") from error
    except sqlite3.DatabaseError as error:
        converted = to_database_error(error)
        if converted is None:  # a bug
            raise
        raise converted from error


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a database; None if there is no file.

    Raises:
        StoreCorruptError: `database_corrupt`, it is a symbolic link or a directory.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise to_store_error(error) from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreCorruptError(
            "A symbolic link or a directory is in the place of the database. Run `caspl store check`.",
            code="database_corrupt",
        )
    return found.st_dev, found.st_ino


def create_database(path: Path, schema: str, *, version: int) -> None:
    """Create a database durably unless the file exists; the directory exists. `version` is its `user_version`.

    It is built under a temporary name and linked to its own, so no process ever opens an incomplete one.

    Raises:
        StorageFullError: not enough space.
        StoreReadOnlyError: the directory is not writable.
        StoreCorruptError: `database_corrupt`, the file is missing, but not its write-ahead log.
    """
    # In this order: another process creates the log after the file.
    if (path.with_name(path.name + "-wal")).exists() and not path.exists():
        raise StoreCorruptError(
            "The database is missing, but its write-ahead log is there. Restore the database, or remove the log.",
            code="database_corrupt",
        )
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with converted_errors(), closing(_open(temporary, "mode=rw")) as connection:
            connection.executescript(
                f"PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL; "
                f"BEGIN; PRAGMA user_version={version}; {schema} COMMIT;"
            )
            # `close` would also merge the log into the file, but hide an error of the disk.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with suppress(FileExistsError):
            os.link(temporary, path, follow_symlinks=False)
        Disk().sync_dir(path.parent)
    except OSError as error:
        raise to_store_error(error) from error
    finally:
        for suffix in ("", *SIDE_FILES):
            with suppress(OSError):
                temporary.with_name(temporary.name + suffix).unlink()


def _open(path: Path, option: str) -> sqlite3.Connection:
    """Open an existing database and read its header, so that every error shows here."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{option}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    # A bit that changed on the disk may leave text that is no UTF-8; checksums find it, and other rows can be read.
    connection.text_factory = lambda data: data.decode(errors="replace")
    try:
        # FULL: a commit is on disk when it returns. FAST: removed rows are overwritten, except in pages that are free
        # as a whole; overwriting those would need as much space as they have.
        connection.executescript(
            "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA secure_delete=FAST; "
            f"PRAGMA journal_size_limit={MAX_WAL_BYTES};"
        )
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def open_database(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open an existing database; connections may move between threads, and commit only what `BEGIN` began.

    Returns:
        the connection, and whether it may be kept: not on read-only media, where changes by other processes would
        stay invisible.

    Raises:
        StoreCorruptError: `database_corrupt`.
        StoreReadOnlyError: the file is unreadable, or a process that wrote to it on read-only media did not close it.
    """
    with converted_errors():
        try:
            connection, is_kept = _open(path, "mode=rw"), True
        except sqlite3.OperationalError as error:
            # Without a writable directory SQLite cannot create its side files. It needs none if all is in the database.
            if error.sqlite_errorcode & 0xFF not in _READ_ONLY or _has_content(path.with_name(path.name + "-wal")):
                raise
            connection, is_kept = _open(path, "immutable=1"), False
        if connection.execute("PRAGMA user_version").fetchone() == (0,):  # SQLite takes an empty file for a new one
            connection.close()
            raise StoreCorruptError("The database is empty. Run `caspl store check`.", code="database_corrupt")
    return connection, is_kept


def reclaim_space(path: Path, *, is_dry_run: bool = False) -> int:
    """Rewrite a database without the space of removed rows, and return the number of bytes that this frees.

    Other processes can read meanwhile, but not write.

    Raises:
        StoreCorruptError: `database_corrupt`.
        StorageFullError: no space for a second copy; nothing was changed.
        StoreReadOnlyError: the file is not writable, or another process is writing to it.
    """
    if file_identity(path) is None:
        return 0
    connection, _ = open_database(path)
    with closing(connection), converted_errors():
        names = ("freelist_count", "page_count", "page_size")
        n_free, n_pages, page_bytes = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        if n_free and not is_dry_run:
            _require_free_bytes(path, 2 * (n_pages - n_free) * page_bytes)  # a copy, and the log of writing it back
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return int(n_free * page_bytes)


def _require_free_bytes(path: Path, n_bytes: int) -> None:
    free_bytes = Disk().free_bytes(path.parent)
    if free_bytes < n_bytes:
        raise StorageFullError(
            f"Rewriting the database of examples needs {n_bytes} bytes of free space, {free_bytes} are free. "
            "It was left as it is."
        )


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def database_problem(path: Path) -> str | None:
    """Check a whole database; return the damage, None if it is sound or does not exist.

    Raises:
        StoreReadOnlyError: it cannot be read, or another process holds it.
    """
    if file_identity(path) is None:
        return None
    try:
        connection, _ = open_database(path)
        with closing(connection), converted_errors():
            lines = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(9)")]
            broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    except StoreCorruptError as error:
        return str(error.__cause__ or error)
    if lines != ["ok"]:
        return "; ".join(lines)
    return f"a row of table {broken[0]} refers to a missing one" if broken else None


def is_index_problem(problem: str) -> bool:
    """Whether a problem found by `database_problem` concerns indexes alone, which `rebuild_indexes` repairs.

    SQLite checks the structure of all tables first, so other problems would be among the lines that it returned.
    """
    return all(_INDEX_PROBLEM.fullmatch(line) for line in problem.split("; "))


def rebuild_indexes(path: Path) -> None:
    """Make all indexes of a database anew from its tables.

    Raises:
        StoreCorruptError: `database_corrupt`.
        StorageFullError: not enough space; nothing was changed.
        StoreReadOnlyError: the file is not writable, or another process is writing to it.
    """
    connection, _ = open_database(path)
    with closing(connection), converted_errors():
        connection.execute("REINDEX")
