"""Data sets as a table: CSV with a header, or JSON lines, one image per row.

Columns: `path`, `label` (the class name) and optionally `split` (default train; spelled as in `split_names`). Other
columns are ignored. Paths are relative to the table's folder; absolute paths and `..` are allowed. Classes are sorted
by name.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_store.manifest import DEFAULT_TEMPLATE
from training.data.dataset import SPLITS, Dataset, LabelledImage, Split, normalize_names
from training.data.listing import find_missing
from training.data.split_names import describe_spellings, split_of
from training.errors import DatasetError


@dataclass(frozen=True)
class _Row:
    line: int
    path: Path
    label: str
    split: Split
    spelled: str


def read_table(path: Path, *, template: str = DEFAULT_TEMPLATE) -> Dataset:
    """Read a `.csv` or `.jsonl` table of labelled images.

    Args:
        path: the table; UTF-8.
        template: hand-written prompt, `{}` for the class name.

    Raises:
        DatasetError: an unreadable table, a missing column or value, an unknown split, a missing or duplicate file, or
            an invalid `Dataset`; the message gives the line.
    """
    read_fields = _READERS.get(path.suffix.lower())
    if read_fields is None:
        msg = f"{path.name} is not a table; use *{' or *'.join(_READERS)}."
        raise DatasetError(msg)
    try:
        rows = [_parse_row(path, line, fields) for line, fields in read_fields(path)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"Cannot read the table {path}: {error}."
        raise DatasetError(msg) from error
    if not rows:
        msg = f"The table {path} is empty. Each row needs {_expected()}."
        raise DatasetError(msg)
    _check_files(path, rows)
    spelled = sorted({row.label for row in rows})
    class_names = normalize_names(spelled, of=path.stem)
    if all(split_of(label) for label in spelled):
        msg = f"{path}: the labels {', '.join(spelled)} are names of splits. Each row needs {_expected()}."
        raise DatasetError(msg)
    labels = {label: index for index, label in enumerate(spelled)}
    splits: dict[Split, tuple[LabelledImage, ...]] = {
        split: tuple(LabelledImage(row.path, labels[row.label]) for row in rows if row.split == split)
        for split in SPLITS
    }
    notes = filter(None, [describe_spellings({row.spelled: row.split for row in rows})])
    return Dataset(path.stem, path.parent, class_names, splits, template, notes=tuple(notes))


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets may write a byte order mark
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        for column in ("path", "label"):
            if column not in columns:
                found = ", ".join(columns) or "an empty file"
                msg = f"{path}, line 1: the columns must be {_expected()}; found {found}."
                raise DatasetError(msg)
        for fields in reader:
            yield reader.line_num, fields


def _read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                fields = json.loads(text)
            except json.JSONDecodeError as error:
                msg = f"{path}, line {line}: not a JSON object; {error}."
                raise DatasetError(msg) from error
            if not isinstance(fields, dict):
                msg = f"{path}, line {line}: not a JSON object: {text.strip()[:40]!r}."
                raise DatasetError(msg)
            yield line, fields


_READERS: Final[Mapping[str, Callable[[Path], Iterator[tuple[int, Mapping[str, object]]]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}


def _expected() -> str:
    return f"path, label and optionally split ({', '.join(SPLITS)})"


def _parse_row(table: Path, line: int, fields: Mapping[str, object]) -> _Row:
    values = {}
    for key in ("path", "label"):
        value = fields.get(key)
        if not isinstance(value, str) or not value.strip():
            msg = f"{table}, line {line}: invalid {key} {value!r}; each row needs {_expected()}."
            raise DatasetError(msg)
        values[key] = value.strip()
    wanted = fields.get("split") or "train"
    if isinstance(wanted, str) and (split := split_of(wanted)):
        return _Row(line, table.parent / values["path"], values["label"], split, wanted)
    msg = f"{table}, line {line}: unknown split {wanted!r}; use {', '.join(SPLITS)}."
    raise DatasetError(msg)


def _check_files(table: Path, rows: list[_Row]) -> None:
    """Check that every file exists and is listed once; a duplicate could leak between splits."""
    first_by_path: dict[Path, _Row] = {}
    for row in rows:
        first = first_by_path.setdefault(row.path, row)
        if first is not row:
            msg = f"{table}, line {row.line}: {row.path} is already listed in line {first.line}."
            raise DatasetError(msg)
    missing = find_missing(first_by_path)
    if missing:
        first = first_by_path[missing[0]]
        msg = (
            f"{table}, line {first.line}: {first.path} does not exist; {len(missing)} of {len(rows)} files are "
            f"missing. Paths are relative to {table.parent}."
        )
        raise DatasetError(msg)
