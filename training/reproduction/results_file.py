"""The results file of a reproduction, `results.json`, which `caspl reproduce --check` compares with the paper.

It has one row per method, seed and data set, the models, the overrides of recipes, and digests of the data. Means are
not stored, but computed from the rows.
"""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import DatasetError
from training.evaluation.metrics import harmonic_mean
from training.evaluation.rows import Protocol, Row
from training.files import write_atomic

RESULTS_NAME: Final = "results.json"
FORMAT: Final = "caspl-results-1"
_H_TOLERANCE: Final = 0.01


class Cell(NamedTuple):
    """What a row measures, apart from the seed."""

    protocol: Protocol
    dataset: str
    target: str
    method: str
    boosted: bool
    shots: int


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelFacts(_Part):
    """A backbone: open_clip's names and the digest of its weights."""

    arch: str
    pretrained: str
    fingerprint: str


class DataFacts(_Part):
    """A data set: digest of its file list, and counts."""

    digest: str
    n_train: int = Field(ge=0)
    n_test: int = Field(ge=0)
    notes: list[str] = []


class ResultRow(_Part):
    """One measured row, as in `training.evaluation.rows.Row`; rates in per cent."""

    protocol: Protocol
    dataset: str
    target: str
    method: str
    boosted: bool
    shots: int = Field(ge=0)
    seed: int | None
    n_images: int = Field(ge=0)
    accuracy: float | None = Field(default=None, ge=0, le=100)
    base: float | None = Field(default=None, ge=0, le=100)
    new: float | None = Field(default=None, ge=0, le=100)
    h: float | None = Field(default=None, ge=0, le=100)

    @property
    def cell(self) -> Cell:
        """What the row measures."""
        return Cell(self.protocol, self.dataset, self.target, self.method, self.boosted, self.shots)

    @model_validator(mode="after")
    def _check_h(self) -> Self:
        if self.base is not None and self.new is not None:
            expected = harmonic_mean(self.base, self.new)
            if self.h is None or abs(self.h - expected) > _H_TOLERANCE:
                raise ValueError(f"h is {self.h}, but base {self.base} and new {self.new} give {expected:.2f}")
        return self


class ResultsFile(_Part):
    """The file."""

    format: Literal["caspl-results-1"]
    code_version: str
    student: ModelFacts
    teacher: ModelFacts
    device: str
    overrides: list[str]
    boost_overrides: list[str]
    data: dict[str, DataFacts]
    rows: list[ResultRow]

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        counts = Counter((*row.cell, row.seed) for row in self.rows)
        if twice := next((key for key, count in counts.items() if count > 1), None):
            raise ValueError(f"two rows for {', '.join(map(str, twice))}")
        names = {name for row in self.rows for name in (row.dataset, row.target)}
        if unknown := sorted(names - self.data.keys()):
            raise ValueError(f"rows of data sets that `data` does not list: {', '.join(unknown)}")
        return self


def write_results(
    path: Path,
    rows: Sequence[Row],
    *,
    student: dict[str, str],
    teacher: dict[str, str],
    device: str,
    data: dict[str, dict[str, Any]],
    overrides: Sequence[str],
    boost_overrides: Sequence[str],
) -> ResultsFile:
    """Write a results file atomically."""
    names = tuple(ResultRow.model_fields)
    content = ResultsFile.model_validate(
        {
            "format": FORMAT,
            "code_version": version("caspl-serve"),
            "student": student,
            "teacher": teacher,
            "device": device,
            "overrides": list(overrides),
            "boost_overrides": list(boost_overrides),
            "data": data,
            "rows": [{name: getattr(row, name) for name in names} for row in rows],
        }
    )
    write_atomic(path, (content.model_dump_json(indent=1) + "\n").encode())
    return content


def read_results(path: Path) -> ResultsFile:
    """Read and validate a results file.

    Raises:
        DatasetError: unreadable, not JSON, or a field is missing or inconsistent; names it.
    """
    try:
        return ResultsFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        msg = f"Cannot read the results {path}: {error.strerror}."
        raise DatasetError(msg) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        reason = first["msg"].removeprefix("Value error, ")
        msg = f"{path} is not a results file of `caspl reproduce`: {where}: {reason} ({error.error_count()} errors)."
        raise DatasetError(msg) from error
    except ValueError as error:
        msg = f"{path} is not a results file of `caspl reproduce`: {error}."
        raise DatasetError(msg) from error
