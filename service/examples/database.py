"""The examples of all domains, in one SQLite database beside the bundles.

Calls block on the disk, so coroutines run them with `in_thread`. They are thread-safe, and several processes may
use one file. Every change is atomic, and on disk when its call returns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from prompt_store.example_checksums import (
    PICTURE,
    THUMBNAIL,
    content_checksum,
    damaged_message,
    put_row_checksums,
)
from prompt_store.layout import EXAMPLES
from service.errors import ExampleNotFoundError, ExamplesDamagedError
from service.examples.connections import Connections
from service.examples.records import Added, Counts, Example, FeatureSet, NewExample, Source
from service.examples.tables import (
    Limits,
    add_example,
    add_feature,
    find_example,
    insert_example,
    known_ids,
    read_features,
    read_revision,
    read_totals,
    uncertain_bound,
    uncertain_examples,
)
from service.settings import Settings

MAX_ID: Final = 2**63 - 1
MAX_SHOWN_IDS: Final = 20
_PAGE: Final = """
SELECT e.id, :name, e.label, e.sha256, e.source, e.added_by, e.added_at, e.n_bytes, p.picture IS NOT NULL,
    EXISTS (SELECT 1 FROM confirmations WHERE example = e.id), (SELECT name FROM names WHERE example = e.id)
FROM examples AS e JOIN pictures AS p ON p.example = e.id
WHERE e.domain = (SELECT id FROM domains WHERE name = :name) AND e.id > :after
    AND (:label IS NULL OR e.label = :label)
    AND (:is_labelled IS NULL OR (e.label IS NOT NULL) = :is_labelled)
    AND (:ids IS NULL OR e.id IN (SELECT value FROM json_each(:ids)))
ORDER BY e.id LIMIT :limit
"""
_OF_EXAMPLE: Final = """
FROM pictures AS p JOIN examples AS e ON e.id = p.example JOIN domains AS d ON d.id = e.domain
    LEFT JOIN checksums AS c ON c.example = e.id AND c.part = ?
WHERE e.id = ? AND d.name = ?
"""
_THUMBNAIL: Final = "SELECT p.thumbnail, e.sha256, c.checksum" + _OF_EXAMPLE
_PICTURE: Final = "SELECT p.picture, e.sha256, c.checksum" + _OF_EXAMPLE
_CONFIRM: Final = "INSERT OR IGNORE INTO confirmations SELECT value FROM json_each(?)"
_UNCONFIRM: Final = "DELETE FROM confirmations WHERE example IN (SELECT value FROM json_each(?))"
_CONFIRMED: Final = """
SELECT c.example FROM confirmations AS c JOIN examples AS e ON e.id = c.example JOIN domains AS d ON d.id = e.domain
WHERE d.name = ?
"""
_NAMES: Final = "SELECT example, name FROM names WHERE example IN (SELECT value FROM json_each(?))"


class ExampleDatabase:
    """The examples of all domains.

    Every method raises:
        StoreCorruptError: `database_corrupt`, the file is damaged or of a later release.
        StoreReadOnlyError: the file cannot be read; when changing something, `store_read_only`, the directory is not
            writable, or `database_busy` or `write_failed`.

    Args:
        path: the file; created by the first change.
        max_per_domain: maximum number of examples of a domain.
        max_bytes: maximum size of all pictures, thumbnails and features; of one domain, half of it.
    """

    def __init__(self, path: Path, *, max_per_domain: int, max_bytes: int) -> None:
        self._connections = Connections(path)
        self._limits = Limits(max_per_domain, max_bytes)

    def add(self, domain: str, examples: Sequence[NewExample], *, actor: str, source: Source) -> list[Added]:
        """Add examples, all or none.

        A picture that the domain has already remains one example: another label relabels it, no label changes nothing,
        and a feature or a picture that the example lacks is added to it.

        Raises:
            ExamplesFullError: `max_per_domain`, `max_bytes` or a domain's share of it would be exceeded; nothing was
                stored.
            StorageFullError: not enough disk space; nothing was stored.
        """
        if not examples:
            return []
        self._connections.require_free_space()
        with self._connections.changing() as connection:
            connection.execute("INSERT OR IGNORE INTO domains (name) VALUES (?)", (domain,))
            before = read_totals(connection, domain)
            added = [add_example(connection, domain, example, actor, source) for example in examples]
            self._limits.check(before, read_totals(connection, domain))
        return added

    def uncertain_bound(self, domain: str, *, digest: str, n_kept: int) -> float:
        """Return the margin below which `keep_uncertain` keeps an image; infinite while there are fewer than `n_kept`.

        Args:
            domain: the domain.
            digest: of the version that scores the image.
            n_kept: as in `keep_uncertain`.
        """
        with self._connections.reading() as connection:
            return uncertain_bound(connection, domain, digest, n_kept) if connection else math.inf

    def keep_uncertain(
        self, domain: str, example: NewExample, *, margin: float, digest: str, n_kept: int, actor: str
    ) -> bool:
        """Keep an image from traffic as an unlabelled example if it is among the `n_kept` least certain ones.

        It replaces the most certain unlabelled example from traffic, and first one that another version scored: their
        margins are not comparable. Examples that a person labelled or added stay.

        Args:
            domain: the domain.
            example: the image; its label is ignored.
            margin: difference of the two highest probabilities.
            digest: of the version that scored it.
            n_kept: maximum number of unlabelled examples from traffic.
            actor: the client that sent the image.

        Returns:
            whether it was added; False if the domain has it already.

        Raises:
            ExamplesFullError, StorageFullError: as for `add`.
        """
        self._connections.require_free_space()
        with self._connections.changing() as connection:
            connection.execute("INSERT OR IGNORE INTO domains (name) VALUES (?)", (domain,))
            if margin >= uncertain_bound(connection, domain, digest, n_kept):
                return False
            if find_example(connection, domain, example.sha256):
                return False
            before = read_totals(connection, domain)
            unlabelled = replace(example, label=None)
            insert_example(connection, domain, unlabelled, actor, "traffic", margin=margin, scored_by=digest)
            for example_id, _, _ in uncertain_examples(connection, domain, digest)[n_kept:]:
                connection.execute("DELETE FROM examples WHERE id = ?", (example_id,))
            self._limits.check(before, read_totals(connection, domain))
        return True

    def page(
        self,
        domain: str,
        *,
        after: int = 0,
        limit: int = 100,
        label: str | None = None,
        is_labelled: bool | None = None,
        ids: Sequence[int] | None = None,
    ) -> list[Example]:
        """Return the examples of a domain by ascending id.

        Args:
            domain: the domain.
            after: only greater ids; for paging.
            limit: maximum number of examples.
            label: only this label.
            is_labelled: only labelled or only unlabelled examples.
            ids: only these; unknown ones are ignored.
        """
        chosen = {
            "name": domain,
            "after": min(after, MAX_ID),
            "limit": limit,
            "label": label,
            "is_labelled": is_labelled,
            "ids": None if ids is None else json.dumps(list(ids)),
        }
        with self._connections.reading() as connection:
            rows = connection.execute(_PAGE, chosen).fetchall() if connection else []
        return [Example(*(*row[:8], *map(bool, row[8:10]), row[10])) for row in rows]

    def thumbnail(self, domain: str, example_id: int) -> bytes:
        """Return an example's thumbnail, WebP.

        Raises:
            ExampleNotFoundError: the domain has no such example.
            ExamplesDamagedError: the thumbnail does not match its checksum.
        """
        return self._content(_THUMBNAIL, THUMBNAIL, domain, example_id) or b""

    def picture(self, domain: str, example_id: int) -> bytes | None:
        """Return an example's picture file; None if only the thumbnail is kept.

        Raises:
            ExampleNotFoundError: the domain has no such example.
            ExamplesDamagedError: the picture does not match its checksum.
        """
        return self._content(_PICTURE, PICTURE, domain, example_id)

    def relabel(self, domain: str, ids: Collection[int], label: str | None, *, is_confirmed: bool | None = None) -> int:
        """Label examples, or remove their label; all or none. Another label ends an earlier confirmation.

        Args:
            domain: the domain.
            ids: its examples.
            label: None removes the label.
            is_confirmed: confirm the label, or end that; None leaves the confirmation of an unchanged label.

        Returns:
            the number of examples that had another label.

        Raises:
            ExampleNotFoundError: names the ids that the domain does not have; nothing was changed.
        """
        if not ids:
            return 0
        if not self._connections.exists():
            raise _unknown(ids)
        with self._connections.changing() as connection:
            if unknown := set(ids) - known_ids(connection, domain, ids):
                raise _unknown(unknown)
            changed = connection.execute(
                "UPDATE examples SET label = :label "
                "WHERE id IN (SELECT value FROM json_each(:ids)) AND label IS NOT :label",
                {"label": label, "ids": json.dumps(list(ids))},
            )
            put_row_checksums(connection, json.dumps(list(ids)))
            if is_confirmed is not None:
                connection.execute(_CONFIRM if is_confirmed else _UNCONFIRM, (json.dumps(list(ids)),))
            return changed.rowcount

    def confirmed(self, domain: str) -> frozenset[int]:
        """Return the examples whose label a person confirmed."""
        with self._connections.reading() as connection:
            rows = connection.execute(_CONFIRMED, (domain,)) if connection else ()
            return frozenset(number for (number,) in rows)

    def names(self, domain: str, ids: Collection[int]) -> dict[int, str]:
        """Return the file names of those of a domain's examples that have one."""
        with self._connections.reading() as connection:
            found = known_ids(connection, domain, ids) if connection else set()
            rows = connection.execute(_NAMES, (json.dumps(list(found)),)).fetchall() if connection else []
        return dict(rows)

    def remove(self, domain: str, ids: Collection[int] | None) -> int:
        """Remove examples, or all of the domain if `ids` is None; unknown ids are ignored.

        Their space is used again; `caspl store gc` returns it to the disk.

        Returns:
            the number of removed examples.
        """
        if not self._connections.exists():
            return 0
        with self._connections.changing() as connection:
            removed = connection.execute(
                "DELETE FROM examples WHERE domain = (SELECT id FROM domains WHERE name = :name) "
                "AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))",
                {"name": domain, "ids": None if ids is None else json.dumps(list(ids))},
            )
            return removed.rowcount

    def put_features(self, domain: str, key: str, features: Mapping[int, bytes]) -> None:
        """Store features that were computed again, by id; examples that were removed meanwhile are ignored."""
        if not features or not self._connections.exists():
            return
        with self._connections.changing() as connection:
            for example_id in sorted(known_ids(connection, domain, features)):
                add_feature(connection, example_id, key, features[example_id])

    def revision(self, domain: str) -> int:
        """Return a number that rises with every change of a domain's examples, made by any process.

        `put_features` leaves it as it is.
        """
        with self._connections.reading() as connection:
            return read_revision(connection, domain) if connection else 0

    def features(self, domain: str, key: str) -> tuple[FeatureSet, FeatureSet]:
        """Return the features of all labelled and of all unlabelled examples; raises what `labelled` raises."""
        with self._connections.reading() as connection:
            return read_features(connection, domain, key)

    def labelled(self, domain: str, key: str) -> FeatureSet:
        """Return the features of all labelled examples for one feature key; all examples are verified.

        Raises:
            ExamplesDamagedError: examples do not match their checksums.
        """
        with self._connections.reading() as connection:
            return read_features(connection, domain, key, is_labelled=True)[0]

    def unlabelled(self, domain: str, key: str) -> FeatureSet:
        """Return the features of all unlabelled examples for one feature key; raises what `labelled` raises."""
        with self._connections.reading() as connection:
            return read_features(connection, domain, key, is_labelled=False)[1]

    def counts(self, domain: str) -> Counts:
        """Return the numbers of a domain's examples."""
        with self._connections.reading() as connection:
            if connection is None:
                return Counts(0, 0, {}, 0)
            rows = connection.execute(
                "SELECT e.label, count(*) FROM examples AS e JOIN domains AS d ON d.id = e.domain WHERE d.name = ? "
                "GROUP BY e.label ORDER BY e.label",
                (domain,),
            )
            by_label: dict[str | None, int] = dict(rows.fetchall())
            n_bytes = connection.execute("SELECT n_bytes FROM domains WHERE name = ?", (domain,)).fetchone()
        unlabelled = by_label.pop(None, 0)
        named = {label: n for label, n in by_label.items() if label is not None}
        return Counts(sum(named.values()), unlabelled, named, n_bytes[0] if n_bytes else 0)

    def close(self) -> None:
        """Close all connections that no thread uses."""
        self._connections.close()

    def _content(self, query: str, part: int, domain: str, example_id: int) -> bytes | None:
        """The content of one part of an example, verified; None if it has none."""
        with self._connections.reading() as connection:
            row: tuple[Any, str, int | None] | None = None
            if connection and example_id <= MAX_ID:
                row = connection.execute(query, (part, example_id, domain)).fetchone()
        if row is None:
            raise _unknown([example_id])
        content, sha256, checksum = row
        if checksum is not None and content_checksum(sha256, content) != checksum:
            raise ExamplesDamagedError(damaged_message(domain, [example_id]), ids=[example_id])
        return None if content is None else bytes(content)


def open_examples(store: Path, settings: Settings) -> ExampleDatabase:
    """The examples in a store's directory, which must be resolved."""
    path, limits = store / EXAMPLES, settings
    return ExampleDatabase(path, max_per_domain=limits.max_examples, max_bytes=limits.max_example_bytes)


def _unknown(ids: Collection[int]) -> ExampleNotFoundError:
    shown = sorted(ids)
    more = f" and {len(shown) - MAX_SHOWN_IDS} more" if len(shown) > MAX_SHOWN_IDS else ""
    listed = ", ".join(map(str, shown[:MAX_SHOWN_IDS]))
    return ExampleNotFoundError(f"The domain has no examples with these ids: {listed}{more}.", ids=shown)
