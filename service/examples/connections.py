"""Connections to the example database: kept between calls, one per call at a time."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from prompt_store.disk import Disk
from prompt_store.errors import StorageFullError, StoreCorruptError, StoreReadOnlyError
from prompt_store.example_checksums import put_all_checksums
from prompt_store.sqlite_files import (
    BUSY_TIMEOUT_S,
    converted_errors,
    create_database,
    file_identity,
    open_database,
)
from service.errors import OverloadedError
from service.examples.tables import ADDITIONS, SCHEMA, SCHEMA_VERSION, missing_additions

P = ParamSpec("P")
T = TypeVar("T")

MIN_FREE_BYTES: Final = 64 * 1024 * 1024
_THREADS: Final = ThreadPoolExecutor(4, "examples")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work with the database in one of its threads.

    While another process locks the database, calls wait for seconds. In the threads of `asyncio.to_thread` they would
    delay classification.

    Raises:
        OverloadedError: no thread was free for `BUSY_TIMEOUT_S`.
    """
    context, began_s = contextvars.copy_context(), time.monotonic()

    def run() -> T:
        if time.monotonic() - began_s > BUSY_TIMEOUT_S:
            raise OverloadedError("The database of examples is busy. Retry later.", retry_after_s=1.0)
        return context.run(work, *args, **kwargs)

    return await asyncio.get_running_loop().run_in_executor(_THREADS, run)


class Connections:
    """Reads and changes of one file; the first change creates it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._idle: deque[sqlite3.Connection] = deque()
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # between two attempts SQLite waits for longer than a change takes

    def exists(self) -> bool:
        """Whether the file exists."""
        return file_identity(self._path) is not None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """Run queries on one state of the database; None if there is no file."""
        if not self.exists():
            yield None
            return
        with self._borrowed() as connection:
            connection.execute("BEGIN")
            for name in missing_additions(connection):  # the file may not be writable
                connection.execute(ADDITIONS[name][0].replace("CREATE TABLE", "CREATE TEMP TABLE"))
            yield connection
            connection.execute("ROLLBACK")

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Run statements and commit them at the end; an exception undoes all of them."""
        if not self.exists():
            create_database(self._path, SCHEMA, version=SCHEMA_VERSION)
        if not self._writing.acquire(timeout=BUSY_TIMEOUT_S):  # another thread waits for another process
            raise StoreReadOnlyError("The database is busy; nothing was changed. Retry later.", code="database_busy")
        try:
            with self._borrowed() as connection:
                connection.execute("BEGIN IMMEDIATE")
                added = missing_additions(connection)
                for name in added:
                    for statement in ADDITIONS[name]:
                        connection.execute(statement)
                if "checksums" in added:
                    put_all_checksums(connection)
                yield connection
                connection.execute("COMMIT")
        finally:
            self._writing.release()

    def require_free_space(self) -> None:
        """Keep enough disk space to remove examples again, and for the versions of the store.

        Raises:
            StorageFullError: less than `MIN_FREE_BYTES` are free.
        """
        if Disk().free_bytes(self._path.parent) < MIN_FREE_BYTES:
            raise StorageFullError("No space left on the store's disk.")

    def close(self) -> None:
        """Close the idle connections; the last process to close its own merges the write-ahead log into the file."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection; after an exception it is closed, which undoes an open transaction."""
        identity = file_identity(self._path)
        with self._lock:
            if identity != self._identity:  # the file was removed or replaced
                self._identity = identity
                while self._idle:
                    self._idle.pop().close()
            connection, is_kept = (self._idle.pop(), True) if self._idle else (None, False)
        if connection is None:
            connection, is_kept = open_database(self._path)
        try:
            with converted_errors():
                _check_version(connection)
                yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if is_kept and identity == self._identity:
                self._idle.append(connection)
            else:
                connection.close()


def _check_version(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise StoreCorruptError(
            f"The example database has format {version}; this release supports {SCHEMA_VERSION}. Use the release that "
            "created it.",
            code="database_corrupt",
        )
