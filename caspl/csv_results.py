"""Results of classifications in a CSV file, which a later run continues."""

import csv
import fcntl
import io
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

from caspl.errors import InvalidRequestError
from caspl.results import Classification

DOMAIN: Final = "domain"
ERROR: Final = "error"


class CsvResults:
    """A CSV file with one row per picture: label, most probable classes, domain, version, digest and error.

    Opening an existing file keeps its rows; an incomplete last row, which a killed process may leave, is removed. File
    names are written as they are, also if they are not UTF-8.

    Args:
        path: created if missing. Two processes cannot write it at the same time.
        domain: domain of the results.
        top_k: number of classes per row.

    Attributes:
        files: files that have a row, as they were given.
        n_errors: how many of these rows have an error.

    Raises:
        InvalidRequestError: the file has other columns, a damaged row or another domain, or is being written.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, domain: str, top_k: int) -> None:
        classes = [column for rank in range(1, top_k + 1) for column in (f"class_{rank}", f"probability_{rank}")]
        self._columns = ["file", "label", "abstained", *classes, DOMAIN, "version", "digest", ERROR]
        self._domain = domain
        self._n_classes = top_k
        self._path = path
        self._file: TextIO = path.open("a+", encoding="utf-8", errors="surrogateescape", newline="")
        try:
            self._lock()
            rows = self._read()
        except BaseException:
            self._file.close()
            raise
        self.files = frozenset(row["file"] for row in rows)
        self.n_errors = sum(row[ERROR] != "" for row in rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def append(self, results: Iterable[tuple[Path, Classification]]) -> None:
        """Write rows; they are in the file when this returns.

        Raises:
            OSError: the file cannot be written.
        """
        self._write([self._row(path, result) for path, result in results])

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._error("another process is writing it", "Wait for it, or name another file.") from None

    def _read(self) -> list[dict[str, str]]:
        """The rows of the file; writes the header of a new one."""
        self._file.seek(0)
        text, header = self._file.read(), _as_csv([self._columns])
        if header.startswith(text):
            self._file.truncate(0)
            self._write([self._columns])
            return []
        lines = list(io.StringIO(text, newline=""))
        reader = csv.reader(lines)
        if (found := next(reader)) != self._columns:
            expected = f"expected the columns {','.join(self._columns)}; found {','.join(found)}"
            raise self._error(expected, "Use the same --top-k as before, or name another file.")
        rows, n_complete = [], reader.line_num
        for row in reader:
            is_last = reader.line_num == len(lines)
            if is_last and (len(row) != len(self._columns) or not text.endswith("\n")):
                self._file.truncate(len("".join(lines[:n_complete]).encode("utf-8", "surrogateescape")))
                break
            if len(row) != len(self._columns):
                raise self._error(f"line {reader.line_num} has {len(row)} columns", "Correct it, or name another file.")
            n_complete = reader.line_num
            rows.append(dict(zip(self._columns, row, strict=True)))
        if others := {row[DOMAIN] for row in rows} - {self._domain}:
            raise self._error(f"its results are of the domain {min(others)}", "Name another file for this domain.")
        return rows

    def _write(self, rows: Iterable[Iterable[object]]) -> None:
        self._file.write(_as_csv(rows))
        self._file.flush()

    def _row(self, path: Path, result: Classification) -> list[object]:
        found = result.predictions[: self._n_classes]
        classes = [cell for one in found for cell in (one.label, f"{one.probability:.6f}")]
        error = " ".join(str(result.error).split()) if result.error else ""
        label = "" if error else result.label
        return [
            path,
            label,
            str(result.abstained).lower(),
            *classes,
            *[""] * (2 * (self._n_classes - len(found))),
            self._domain,
            result.version,
            result.digest,
            error,
        ]

    def _error(self, found: str, advice: str) -> InvalidRequestError:
        return InvalidRequestError(f"Cannot continue {self._path}", f"{found}. {advice}", code="csv_mismatch")


def _as_csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()
