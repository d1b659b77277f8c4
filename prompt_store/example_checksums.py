"""Checksums of the rows in the database of examples: SQLite has none.

The table `checksums` has a CRC-32 for each part of an example: its row (domain, digest and label), its thumbnail, its
picture and each of its features. A CRC-32 finds every single changed bit, but is no protection against forgery. Parts
that an earlier release wrote have no checksum until the next change by this release, and are not verified.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

from prompt_store.sqlite_files import converted_errors, open_database

TABLE: Final = (
    """CREATE TABLE checksums (
    example INTEGER NOT NULL REFERENCES examples ON DELETE CASCADE,
    part INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (example, part)
) WITHOUT ROWID""",
    # Earlier releases change labels, too: the row is then without a checksum, not with a wrong one.
    """CREATE TRIGGER checksum_outdated AFTER UPDATE OF label ON examples WHEN OLD.label IS NOT NEW.label BEGIN
    DELETE FROM checksums WHERE example = NEW.id AND part = 0;
END""",
)
"""The statements that create the table; `part` is one of the following numbers, or the id of a feature's key."""
ROW: Final = 0
THUMBNAIL: Final = -1
PICTURE: Final = -2
MAX_SHOWN_IDS: Final = 20

_COLUMNS: Final = (
    "SELECT id, name, revision, n_examples, n_bytes FROM domains LIMIT 0",
    "SELECT id, domain, sha256, label, source, added_by, added_at, margin, scored_by, n_bytes FROM examples LIMIT 0",
    "SELECT example, thumbnail, picture FROM pictures LIMIT 0",
    "SELECT id, name, n_bytes FROM feature_keys LIMIT 0",
    "SELECT id, example, key, feature FROM features LIMIT 0",
)
"""Fail if a name in the schema changed on the disk."""
_ROWS: Final = "SELECT d.name, e.id, e.sha256, e.label FROM examples AS e JOIN domains AS d ON d.id = e.domain"
_BLOBS: Final = """
SELECT d.name, e.id, e.sha256, p.thumbnail, p.picture
FROM examples AS e JOIN domains AS d ON d.id = e.domain LEFT JOIN pictures AS p ON p.example = e.id
"""
_FEATURES: Final = """
SELECT d.name, e.id, e.sha256, f.key, k.name, f.feature
FROM features AS f JOIN examples AS e ON e.id = f.example JOIN domains AS d ON d.id = e.domain
    JOIN feature_keys AS k ON k.id = f.key
"""
_WITHOUT_CHECKSUM: Final = """
SELECT d.name, e.id, e.sha256, e.label FROM examples AS e JOIN domains AS d ON d.id = e.domain
WHERE e.id IN (SELECT value FROM json_each(?))
    AND NOT EXISTS (SELECT 1 FROM checksums WHERE example = e.id AND part = 0)
"""
_LOST_FEATURES: Final = """
SELECT d.name, e.id FROM checksums AS c JOIN examples AS e ON e.id = c.example JOIN domains AS d ON d.id = e.domain
WHERE c.part > 0 AND NOT EXISTS (SELECT 1 FROM features AS f WHERE f.example = c.example AND f.key = c.part)
"""
_WRONG_TOTALS: Final = """
SELECT name FROM domains AS d JOIN (
    SELECT domain, count(*) AS n_examples, sum(n_bytes) AS n_bytes FROM examples NOT INDEXED GROUP BY domain
) AS found ON found.domain = d.id WHERE d.n_examples != found.n_examples OR d.n_bytes != found.n_bytes
UNION SELECT name FROM domains AS d WHERE n_examples != 0 AND NOT EXISTS (SELECT 1 FROM examples WHERE domain = d.id)
"""


class Part(NamedTuple):
    """A part of an example with the checksum of its content now."""

    domain: str
    example: int
    part: int
    checksum: int


def row_checksum(domain: str, sha256: str, label: str | None) -> int:
    """Checksum of an example's domain, the digest of its picture and its label."""
    return crc32(f"{domain}\0{sha256}\0{'' if label is None else f'={label}'}".encode())


def content_checksum(sha256: str, content: object, start: int = 0) -> int:
    """Checksum of a thumbnail, a picture or, from `start_of`, a feature; -1 if it is not bytes."""
    return crc32(content, crc32(str(sha256).encode(), start)) if isinstance(content, bytes) else -1


def start_of(feature_key: str) -> int:
    """The beginning of the checksums of features with this key."""
    return crc32(feature_key.encode())


def put_checksums(connection: sqlite3.Connection, example: int, checksums: Iterable[tuple[int, int]]) -> None:
    """Store the checksums of parts of an example: pairs of the part and its checksum."""
    rows = [(example, part, checksum) for part, checksum in checksums]
    connection.executemany("INSERT OR REPLACE INTO checksums (example, part, checksum) VALUES (?, ?, ?)", rows)


def put_row_checksums(connection: sqlite3.Connection, ids: str) -> None:
    """Store the checksums of the rows that have none, after a change of their label; `ids` is a JSON array."""
    for domain, example, sha256, label in connection.execute(_WITHOUT_CHECKSUM, (ids,)).fetchall():
        put_checksums(connection, example, [(ROW, row_checksum(domain, sha256, label))])


def put_all_checksums(connection: sqlite3.Connection) -> None:
    """Store the checksums of everything in a database of an earlier release."""
    rows = ((one.example, one.part, one.checksum) for one in _parts(connection))
    connection.executemany("INSERT OR REPLACE INTO checksums (example, part, checksum) VALUES (?, ?, ?)", rows)


def damaged_rows(domain: str, feature_key: str, rows: Iterable[Sequence[Any]]) -> list[int]:
    """Return the ids of those rows of a domain whose content does not match its checksum.

    Args:
        domain: the domain.
        feature_key: of the features.
        rows: id, sha256, label, feature or None, the checksum of the row and that of the feature, None without one.
            A feature that has a checksum cannot be missing.
    """
    start, damaged = start_of(feature_key), []
    for number, sha256, label, feature, of_row, of_feature in rows:
        is_intact = of_row is None or of_row == row_checksum(domain, sha256, label)
        if of_feature is not None:
            is_intact &= of_feature == content_checksum(sha256, feature, start)
        if not is_intact:
            damaged.append(number)
    return damaged


def content_problems(path: Path) -> list[str]:
    """Verify all checksums and totals of a database whose structure is sound; return the problems found.

    Raises:
        StoreCorruptError: `database_corrupt`, it is not the database of examples.
        StoreReadOnlyError: it cannot be read, or another process holds it.
    """
    damaged: dict[str, set[int]] = {}
    connection, _ = open_database(path)
    with closing(connection), converted_errors():
        connection.execute("BEGIN")  # one state of all tables
        for statement in _COLUMNS:
            connection.execute(statement)
        totals = [name for (name,) in connection.execute(_WRONG_TOTALS)]
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'checksums'").fetchone():
            lost = connection.execute(_LOST_FEATURES)
            for domain, example in [*_damaged_parts(connection), *lost]:
                damaged.setdefault(domain, set()).add(example)
    problems = [damaged_message(domain, sorted(ids)) for domain, ids in sorted(damaged.items())]
    return problems + [f"The totals of the examples of {domain} do not match its examples." for domain in totals]


def damaged_message(domain: str, ids: Sequence[int]) -> str:
    """The problem with examples whose content does not match their checksums, and its remedy."""
    more = f" and {len(ids) - MAX_SHOWN_IDS} more" if len(ids) > MAX_SHOWN_IDS else ""
    return (
        f"Examples of {domain} changed on the disk: {', '.join(map(str, ids[:MAX_SHOWN_IDS]))}{more}. "
        "Run `caspl store check --repair`, remove those that it still reports, and add their pictures again."
    )


def _damaged_parts(connection: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    """Domain and id of the examples of which a part does not match its checksum."""
    stored = "SELECT checksum FROM checksums WHERE example = ? AND part = ?"
    for one in _parts(connection):
        found = connection.execute(stored, (one.example, one.part)).fetchone()
        if found is not None and found[0] != one.checksum:
            yield one.domain, one.example


def _parts(connection: sqlite3.Connection) -> Iterator[Part]:
    for domain, example, sha256, label in connection.execute(_ROWS):
        yield Part(domain, example, ROW, row_checksum(domain, sha256, label))
    for domain, example, sha256, thumbnail, picture in connection.execute(_BLOBS):
        yield Part(domain, example, THUMBNAIL, content_checksum(sha256, thumbnail))
        if picture is not None:
            yield Part(domain, example, PICTURE, content_checksum(sha256, picture))
    for domain, example, sha256, key, name, feature in connection.execute(_FEATURES):
        yield Part(domain, example, key, content_checksum(sha256, feature, start_of(name)))
