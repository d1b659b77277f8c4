"""Labelled images as a table: a CSV file with a header, or JSON lines, one image per row.

Columns or keys: `path`, `label` (the class name) and, if wanted, `split` (train, val or test; train where it is absent
or empty). Others are ignored. Paths are relative to the table's folder. Absolute paths and `..` are allowed, since
images often lie on another drive than the table made for them; every file must be there. Classes are sorted by name.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from training.data.dataset import DEFAULT_TEMPLATE, SPLITS, Dataset, LabelledImage, Split, tidy_names
from training.data.listing import find_missing
from training.errors import DatasetError


@dataclass(frozen=True)
class _Row:
    line: int
    path: Path
    label: str
    split: Split


def read_table(path: Path, *, template: str = DEFAULT_TEMPLATE) -> Dataset:
    """Read a `.csv` or `.jsonl` table of labelled images.

    Args:
        path: the table; UTF-8.
        template: the hand-written prompt, `{}` for the class name.

    Raises:
        DatasetError: the table cannot be read, a column or value is missing, a split is unknown, a file is not there
            or is listed twice, or what `Dataset` refuses. Names the line.
    """
    read_fields = _READERS.get(path.suffix.lower())
    if read_fields is None:
        msg = f"Expected a table called *{' or *'.join(_READERS)}, found {path.name}."
        raise DatasetError(msg)
    try:
        rows = [_parse_row(path, line, fields) for line, fields in read_fields(path)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"No table could be read from {path}: {error}."
        raise DatasetError(msg) from error
    if not rows:
        msg = f"The table {path} lists no image: expected one per row, with {_expected()}."
        raise DatasetError(msg)
    _check_files(path, rows)
    spelled = sorted({row.label for row in rows})
    class_names = tidy_names(spelled, of=path.stem)
    labels = {label: index for index, label in enumerate(spelled)}
    splits: dict[Split, tuple[LabelledImage, ...]] = {
        split: tuple(LabelledImage(row.path, labels[row.label]) for row in rows if row.split == split)
        for split in SPLITS
    }
    return Dataset(path.stem, path.parent, class_names, splits, template)


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets write a byte order mark
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        for column in ("path", "label"):
            if column not in columns:
                found = ", ".join(columns) or "an empty file"
                msg = f"{path}, line 1: expected {_expected()}; found {found}."
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
                msg = f"{path}, line {line}: expected one JSON object per line; {error}."
                raise DatasetError(msg) from error
            if not isinstance(fields, dict):
                msg = f"{path}, line {line}: expected a JSON object, found {text.strip()[:40]!r}."
                raise DatasetError(msg)
            yield line, fields


_READERS: Final[Mapping[str, Callable[[Path], Iterator[tuple[int, Mapping[str, object]]]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}


def _expected() -> str:
    return f"path, label and, if wanted, split ({', '.join(SPLITS)})"


def _parse_row(table: Path, line: int, fields: Mapping[str, object]) -> _Row:
    values = {}
    for key in ("path", "label"):
        value = fields.get(key)
        if not isinstance(value, str) or not value.strip():
            msg = f"{table}, line {line}: expected {_expected()}; found {value!r} as {key}."
            raise DatasetError(msg)
        values[key] = value.strip()
    wanted = fields.get("split") or "train"
    for split in SPLITS:
        if wanted == split:
            return _Row(line, table.parent / values["path"], values["label"], split)
    msg = f"{table}, line {line}: expected a split of {', '.join(SPLITS)}; found {wanted!r}."
    raise DatasetError(msg)


def _check_files(table: Path, rows: list[_Row]) -> None:
    """Every file is there, and listed once: a repeated image would blur splits or contradict its own label."""
    first_by_path: dict[Path, _Row] = {}
    for row in rows:
        first = first_by_path.setdefault(row.path, row)
        if first is not row:
            msg = f"{table}, line {row.line}: {row.path} is listed already in line {first.line}. Keep one of them."
            raise DatasetError(msg)
    missing = find_missing(first_by_path)
    if missing:
        first = first_by_path[missing[0]]
        msg = (
            f"{table}, line {first.line}: there is no file {first.path}; {len(missing)} of {len(rows)} files are "
            f"missing. Relative paths start at {table.parent}."
        )
        raise DatasetError(msg)
