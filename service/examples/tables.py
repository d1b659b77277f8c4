"""The tables of the example database, and statements on them.

Triggers keep the totals of a domain, so they agree with the rows after every commit. Pictures and features have tables
of their own, so that a list of examples reads none of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np

from prompt_store import example_checksums
from prompt_store.errors import StoreCorruptError
from prompt_store.example_checksums import (
    PICTURE,
    ROW,
    THUMBNAIL,
    content_checksum,
    damaged_message,
    damaged_rows,
    put_checksums,
    put_row_checksums,
    row_checksum,
    start_of,
)
from prompt_store.logs import utc_now
from service.errors import ExamplesDamagedError, ExamplesFullError
from service.examples.records import Added, FeatureSet, NewExample, Source

SCHEMA_VERSION: Final = 1
NEXT_REVISION: Final = "max(revision + 1, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))"
"""Milliseconds since 1970: a counter would repeat the numbers of other examples after a backup was restored."""
ADDITIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "confirmations": (
        "CREATE TABLE confirmations (example INTEGER PRIMARY KEY REFERENCES examples ON DELETE CASCADE)",
        """CREATE TRIGGER confirmation_ended AFTER UPDATE OF label ON examples WHEN OLD.label IS NOT NEW.label BEGIN
    DELETE FROM confirmations WHERE example = NEW.id;
END""",
    ),
    "names": (
        "CREATE TABLE names (example INTEGER PRIMARY KEY REFERENCES examples ON DELETE CASCADE, name TEXT NOT NULL)",
    ),
    "checksums": example_checksums.TABLE,
}
"""Tables that databases of earlier releases get with their next change; those releases ignore them."""
SCHEMA: Final = f"""
CREATE TABLE domains (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL DEFAULT 0,
    n_examples INTEGER NOT NULL DEFAULT 0,
    n_bytes INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE examples (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    domain INTEGER NOT NULL REFERENCES domains,
    sha256 TEXT NOT NULL,
    label TEXT,
    source TEXT NOT NULL CHECK (source IN ('upload', 'traffic')),
    added_by TEXT NOT NULL,
    added_at TEXT NOT NULL,
    margin REAL,
    scored_by TEXT,
    n_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (domain, sha256)
);
CREATE INDEX examples_by_domain ON examples (domain);
CREATE INDEX examples_by_label ON examples (domain, label);

CREATE TABLE pictures (
    example INTEGER PRIMARY KEY REFERENCES examples ON DELETE CASCADE,
    thumbnail BLOB NOT NULL,
    picture BLOB
);

CREATE TABLE feature_keys (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    n_bytes INTEGER NOT NULL
);

CREATE TABLE features (
    id INTEGER PRIMARY KEY,
    example INTEGER NOT NULL REFERENCES examples ON DELETE CASCADE,
    key INTEGER NOT NULL REFERENCES feature_keys,
    feature BLOB NOT NULL,
    UNIQUE (example, key)
);

CREATE TRIGGER example_added AFTER INSERT ON examples BEGIN
    UPDATE domains SET revision = {NEXT_REVISION}, n_examples = n_examples + 1, n_bytes = n_bytes + NEW.n_bytes
    WHERE id = NEW.domain;
END;
CREATE TRIGGER example_removed AFTER DELETE ON examples BEGIN
    UPDATE domains SET revision = {NEXT_REVISION}, n_examples = n_examples - 1, n_bytes = n_bytes - OLD.n_bytes
    WHERE id = OLD.domain;
END;
CREATE TRIGGER example_relabelled AFTER UPDATE OF label ON examples WHEN OLD.label IS NOT NEW.label BEGIN
    UPDATE domains SET revision = {NEXT_REVISION} WHERE id = NEW.domain;
END;
CREATE TRIGGER example_resized AFTER UPDATE OF n_bytes ON examples BEGIN
    UPDATE domains SET n_bytes = n_bytes + NEW.n_bytes - OLD.n_bytes WHERE id = NEW.domain;
END;
CREATE TRIGGER pictures_added AFTER INSERT ON pictures BEGIN
    UPDATE examples SET n_bytes = n_bytes + length(NEW.thumbnail) + coalesce(length(NEW.picture), 0)
    WHERE id = NEW.example;
END;
CREATE TRIGGER picture_kept AFTER UPDATE OF picture ON pictures BEGIN
    UPDATE examples SET n_bytes = n_bytes + coalesce(length(NEW.picture), 0) - coalesce(length(OLD.picture), 0)
    WHERE id = NEW.example;
END;
CREATE TRIGGER feature_added AFTER INSERT ON features BEGIN
    UPDATE examples SET n_bytes = n_bytes + length(NEW.feature) WHERE id = NEW.example;
END;
{"; ".join(chain.from_iterable(ADDITIONS.values()))};
"""  # noqa: S608  a constant
_FEATURES: Final = """
SELECT e.id, e.sha256, e.label, f.feature, r.checksum, c.checksum
FROM examples AS e
    LEFT JOIN features AS f ON f.example = e.id AND f.key = (SELECT id FROM feature_keys NOT INDEXED WHERE name = :key)
        AND (:is_labelled IS NULL OR (e.label IS NOT NULL) = :is_labelled)
    LEFT JOIN checksums AS r ON r.example = e.id AND r.part = 0
    LEFT JOIN checksums AS c ON c.example = e.id
        AND c.part = (SELECT id FROM feature_keys NOT INDEXED WHERE name = :key)
        AND (:is_labelled IS NULL OR (e.label IS NOT NULL) = :is_labelled)
WHERE e.domain = (SELECT id FROM domains NOT INDEXED WHERE name = :name)
ORDER BY e.id
"""
"""All examples of a domain, so that one whose label was lost on the disk is verified; features of one kind or of both.

Names are looked up in the small tables themselves: a damaged index would hide all examples or all features.
"""


_NAMED: Final = """
INSERT INTO names (example, name) VALUES (?, ?)
ON CONFLICT (example) DO UPDATE SET name = excluded.name WHERE name IS NOT excluded.name
"""


def missing_additions(connection: sqlite3.Connection) -> list[str]:
    """Return the additions that a database of an earlier release lacks until this release changes it."""
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return [name for name in ADDITIONS if name not in found]


def read_revision(connection: sqlite3.Connection, domain: str) -> int:
    """Return a domain's revision; 0 for an unknown domain."""
    row = connection.execute("SELECT revision FROM domains WHERE name = ?", (domain,)).fetchone()
    return int(row[0]) if row else 0


class Totals(NamedTuple):
    """Number and bytes of a domain's examples, and bytes of all domains."""

    n_examples: int
    n_bytes: int
    n_all_bytes: int


def read_totals(connection: sqlite3.Connection, domain: str) -> Totals:
    """Return the totals of a domain that has a row."""
    query = "SELECT n_examples, n_bytes, (SELECT sum(n_bytes) FROM domains) FROM domains WHERE name = ?"
    return Totals(*connection.execute(query, (domain,)).fetchone())


@dataclass(frozen=True)
class Limits:
    """Maximum number of examples of a domain, and of bytes of all domains; one domain may take half of the bytes."""

    max_per_domain: int
    max_bytes: int

    def check(self, before: Totals, after: Totals) -> None:
        """Check the totals after a change; a total that did not rise may exceed its limit.

        Raises:
            ExamplesFullError: too many examples or bytes.
        """
        if before.n_examples < after.n_examples > self.max_per_domain:
            raise ExamplesFullError(
                f"The domain would have {after.n_examples} examples; the maximum is {self.max_per_domain}. "
                "Remove examples, or raise max_examples.",
                limit=self.max_per_domain,
            )
        if before.n_all_bytes < after.n_all_bytes > self.max_bytes:
            raise ExamplesFullError(
                f"The examples of all domains would take {after.n_all_bytes} bytes; the maximum is {self.max_bytes}. "
                "Remove examples, or raise max_example_bytes.",
                limit=self.max_bytes,
            )
        if before.n_bytes < after.n_bytes > (half := self.max_bytes // 2):
            raise ExamplesFullError(
                f"The examples of the domain would take {after.n_bytes} bytes; the maximum is {half}, half of "
                "max_example_bytes, so that one domain leaves space for others. Remove examples, or raise it.",
                limit=half,
            )


def read_features(
    connection: sqlite3.Connection | None, domain: str, feature_key: str, *, is_labelled: bool | None = None
) -> tuple[FeatureSet, FeatureSet]:
    """Return a domain's labelled and unlabelled examples for one feature key; none without a database.

    Args:
        connection: to the database.
        domain: the domain.
        feature_key: of the features.
        is_labelled: features of one kind only; those of the other kind are then stale.

    Raises:
        ExamplesDamagedError: examples do not match their checksums.
        StoreCorruptError: `database_corrupt`, examples cannot be found.
    """
    rows, revision = [], 0
    if connection:
        chosen = {"name": domain, "key": feature_key, "is_labelled": is_labelled}
        rows, revision = connection.execute(_FEATURES, chosen).fetchall(), read_revision(connection, domain)
        _verify(connection, domain, feature_key, rows)
    labelled, unlabelled = ([row for row in rows if (row[2] is not None) == kind] for kind in (True, False))
    return _feature_set(labelled, revision), _feature_set(unlabelled, revision)


def _feature_set(rows: Sequence[tuple[Any, ...]], revision: int) -> FeatureSet:
    known = [row for row in rows if row[3] is not None]
    features = np.frombuffer(b"".join(row[3] for row in known), np.dtype("<f4"))
    content = sorted(f"{sha256} {label or ''}" for _, sha256, label, *_ in known)
    return FeatureSet(
        ids_N=[row[0] for row in known],
        labels_N=[row[2] or "" for row in known],
        features_NE=features.astype(np.float32, copy=False).reshape(len(known), -1 if known else 0),
        stale_ids=[row[0] for row in rows if row[3] is None],
        digest=hashlib.sha256("\n".join(content).encode()).hexdigest(),
        revision=revision,
    )


def _verify(connection: sqlite3.Connection, domain: str, feature_key: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Verify the rows of `_FEATURES`: their checksums, and that an index of the database hides none of them."""
    if damaged := damaged_rows(domain, feature_key, rows):
        raise ExamplesDamagedError(damaged_message(domain, damaged), ids=damaged)
    expected = connection.execute("SELECT n_examples FROM domains NOT INDEXED WHERE name = ?", (domain,)).fetchone()
    n_found = len({row[0] for row in rows})  # an index may also lead to one example twice
    if expected and not expected[0] == n_found == len(rows):
        message = f"The database has {expected[0]} examples of {domain}, of which {n_found} are found."
        raise StoreCorruptError(f"{message} Run `caspl store check`.", code="database_corrupt")


def find_example(connection: sqlite3.Connection, domain: str, sha256: str) -> tuple[int, str | None] | None:
    """Return id and label of a domain's example; None if it has none with this picture."""
    row: tuple[int, str | None] | None = connection.execute(
        "SELECT e.id, e.label FROM examples AS e JOIN domains AS d ON d.id = e.domain "
        "WHERE d.name = ? AND e.sha256 = ?",
        (domain, sha256),
    ).fetchone()
    return row


def known_ids(connection: sqlite3.Connection, domain: str, ids: Iterable[int]) -> set[int]:
    """Return those of the ids that are examples of the domain."""
    rows = connection.execute(
        "SELECT e.id FROM examples AS e JOIN domains AS d ON d.id = e.domain "
        "WHERE d.name = ? AND e.id IN (SELECT value FROM json_each(?))",
        (domain, json.dumps(list(ids))),
    )
    return {row[0] for row in rows}


def add_example(connection: sqlite3.Connection, domain: str, example: NewExample, actor: str, source: Source) -> Added:
    """Add an example, or update the one with this picture as in `ExampleDatabase.add`; the domain has a row."""
    known = find_example(connection, domain, example.sha256)
    if known is None:
        example_id = insert_example(connection, domain, example, actor, source)
        _keep_name(connection, example_id, example)
        return Added(example_id, "added", example.label)
    example_id, label = known
    n_before = connection.total_changes
    for key, feature in example.features.items():
        add_feature(connection, example_id, key, feature)
    if example.picture is not None:
        kept = "UPDATE pictures SET picture = ? WHERE example = ? AND picture IS NULL"
        if connection.execute(kept, (example.picture, example_id)).rowcount:
            checksum = content_checksum(example.sha256, example.picture)
            put_checksums(connection, example_id, [(PICTURE, checksum)])
    if connection.total_changes > n_before:
        connection.execute(f"UPDATE domains SET revision = {NEXT_REVISION} WHERE name = ?", (domain,))  # noqa: S608
    _keep_name(connection, example_id, example)
    if source == "upload":  # it stays, unlike one from traffic
        connection.execute("UPDATE examples SET source = ? WHERE id = ?", (source, example_id))
    if example.label is None or example.label == label:
        return Added(example_id, "exists", label)
    connection.execute("UPDATE examples SET label = ? WHERE id = ?", (example.label, example_id))
    put_row_checksums(connection, json.dumps([example_id]))
    return Added(example_id, "relabelled", example.label)


def insert_example(
    connection: sqlite3.Connection,
    domain: str,
    example: NewExample,
    actor: str,
    source: Source,
    *,
    margin: float | None = None,
    scored_by: str | None = None,
) -> int:
    """Insert an example that the domain does not have, with its pictures and features; return its id."""
    inserted = connection.execute(
        "INSERT INTO examples (domain, sha256, label, source, added_by, added_at, margin, scored_by) "
        "VALUES ((SELECT id FROM domains WHERE name = ?), ?, ?, ?, ?, ?, ?, ?)",
        (domain, example.sha256, example.label, source, actor, utc_now(), margin, scored_by),
    )
    example_id = inserted.lastrowid or 0
    pictures = (example_id, example.thumbnail, example.picture)
    connection.execute("INSERT INTO pictures (example, thumbnail, picture) VALUES (?, ?, ?)", pictures)
    checksums = [
        (ROW, row_checksum(domain, example.sha256, example.label)),
        (THUMBNAIL, content_checksum(example.sha256, example.thumbnail)),
    ]
    if example.picture is not None:
        checksums.append((PICTURE, content_checksum(example.sha256, example.picture)))
    put_checksums(connection, example_id, checksums)
    for key, feature in example.features.items():
        add_feature(connection, example_id, key, feature)
    return example_id


def _keep_name(connection: sqlite3.Connection, example_id: int, example: NewExample) -> None:
    if example.name is not None:
        connection.execute(_NAMED, (example_id, example.name))


def add_feature(connection: sqlite3.Connection, example_id: int, key: str, feature: bytes) -> None:
    """Store a feature of an existing example unless it has one for this key.

    Raises:
        ValueError: other features of this key have another width.
    """
    connection.execute("INSERT OR IGNORE INTO feature_keys (name, n_bytes) VALUES (?, ?)", (key, len(feature)))
    known = connection.execute("SELECT id, n_bytes FROM feature_keys WHERE name = ?", (key,)).fetchone()
    if known[1] != len(feature) or len(feature) % 4:
        raise ValueError(f"a feature has {len(feature)} bytes, others of its key have {known[1]}; float32 is expected")
    row = (example_id, known[0], feature)
    if connection.execute("INSERT OR IGNORE INTO features (example, key, feature) VALUES (?, ?, ?)", row).rowcount:
        (sha256,) = connection.execute("SELECT sha256 FROM examples WHERE id = ?", (example_id,)).fetchone()
        put_checksums(connection, example_id, [(known[0], content_checksum(sha256, feature, start_of(key)))])


def uncertain_examples(connection: sqlite3.Connection, domain: str, digest: str) -> list[tuple[int, float, bool]]:
    """Return a domain's unlabelled examples from traffic, the least certain first.

    Those that other versions than `digest` scored come last: their margins are not comparable.

    Returns:
        id, margin, and whether this version scored it.
    """
    rows = connection.execute(
        "SELECT id, margin, scored_by = :digest FROM examples "
        "WHERE domain = (SELECT id FROM domains WHERE name = :name) AND label IS NULL AND source = 'traffic' "
        "ORDER BY scored_by = :digest DESC, margin, id",
        {"name": domain, "digest": digest},
    )
    return [(example_id, margin, bool(is_own)) for example_id, margin, is_own in rows]


def uncertain_bound(connection: sqlite3.Connection, domain: str, digest: str, n_kept: int) -> float:
    """Return the margin below which an image that this version scored is among the `n_kept` least certain ones."""
    rows = uncertain_examples(connection, domain, digest)
    return rows[n_kept - 1][1] if len(rows) >= n_kept and rows[n_kept - 1][2] else math.inf
