"""Checks every file of the data sets before a run, and collects all problems."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.catalog import open_dataset
from training.data.dataset import Dataset, shorten
from training.errors import ClassListError, DatasetError
from training.reproduction.tables import IMAGE_COUNTS


@dataclass(frozen=True)
class DatasetCheck:
    """Result of checking one data set.

    Attributes:
        name: catalog name or path.
        dataset: the data set; None with a `problem`.
        problem: error message; empty if the data set is usable.
        notes: files that are not read, and counts that differ from the published splits.
        n_train, n_test: images.
        n_bytes: size of these images.
    """

    name: str
    dataset: Dataset | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()
    n_train: int = 0
    n_test: int = 0
    n_bytes: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """The results file's entry for the data set."""
        digest = self.dataset.digest if self.dataset is not None else ""
        return {"digest": digest, "n_train": self.n_train, "n_test": self.n_test, "notes": list(self.notes)}


def check_datasets(
    names: Sequence[str], root: Path | None, on_check: Callable[[str], None] = lambda _: None
) -> list[DatasetCheck]:
    """Open every data set: layout, split files, existence and size of every image. Nothing is decoded.

    Args:
        names: catalog names or paths.
        root: folder with the published data sets.
        on_check: called with each name before it is opened.
    """
    found = []
    for name in names:
        on_check(name)
        try:
            found.append(_check(name, open_dataset(name, root)))
        except (DatasetError, ClassListError, OSError) as error:
            found.append(DatasetCheck(name, problem=str(error)))
    return found


def _check(name: str, dataset: Dataset) -> DatasetCheck:
    counts = {split: len(images) for split, images in dataset.splits.items()}
    sizes = [(image.path, image.path.stat().st_size) for images in dataset.splits.values() for image in images]
    if empty := [path for path, size in sizes if size == 0]:
        return DatasetCheck(name, problem=f"{name}: empty image files ({len(empty)}): {shorten(empty)}.")
    n_train, n_test = counts.get("train", 0), counts.get("test", 0)
    if not n_test:
        return DatasetCheck(name, problem=f"{name} has no test images.")
    notes = [*dataset.notes]
    if name in IMAGE_COUNTS and (n_train, n_test) != IMAGE_COUNTS[name]:
        train, test = IMAGE_COUNTS[name]
        notes.append(
            f"{name}: {n_train:,} train and {n_test:,} test images, but {train:,} and {test:,} in the published "
            "split: results are not comparable with the paper's"
        )
    return DatasetCheck(name, dataset, "", tuple(notes), n_train, n_test, sum(size for _, size in sizes))


def report_problems(checks: Sequence[DatasetCheck]) -> str:
    """All problems in one message, numbered."""
    problems = [check.problem for check in checks if check.problem]
    lines = [f"{len(problems)} of the data sets cannot be used:"]
    return "\n".join([*lines, *(f"{number}. {problem}" for number, problem in enumerate(problems, 1))])
