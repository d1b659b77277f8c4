"""A labelled data set: classes, and image paths per split.

Images are not opened here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from prompt_store.class_names import comparison_key, normalize_name
from prompt_store.manifest import DEFAULT_TEMPLATE
from training.errors import DatasetError

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
_MAX_LISTED: Final = 5  # entries of a long list in an error message


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file; `label` is an index into `Dataset.class_names`."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """Labelled images in up to three splits, validated on construction.

    Class names are normalized, empty splits are dropped. The order of the images is part of the data set, because
    few-shot sampling depends on it.

    Attributes:
        name: for messages and records.
        root: the digest uses paths relative to it.
        class_names: in label order.
        splits: images by split, in the order train, val, test.
        template: hand-written prompt; `{}` stands for the class name.
        unreadable: files that were dropped because they cannot be decoded.
        notes: lines for the user: files that are not read, and names that are read as others.

    Raises:
        DatasetError: no classes, duplicate class names, an unknown split, no images, a label out of range, a train
            split without images of some class, or a template without `{}`.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    splits: Mapping[Split, tuple[LabelledImage, ...]]
    template: str = DEFAULT_TEMPLATE
    unreadable: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown:
            msg = f"{self.name}: unknown split {unknown[0]!r}; use {', '.join(SPLITS)}."
            raise DatasetError(msg)
        if "{}" not in self.template:
            msg = f"{self.name}: the template {self.template!r} must contain {{}} for the class name."
            raise DatasetError(msg)
        object.__setattr__(self, "class_names", normalize_names(self.class_names, of=self.name))
        filled = {split: tuple(self.splits[split]) for split in SPLITS if self.splits.get(split)}
        object.__setattr__(self, "splits", filled)
        if not filled:
            msg = f"{self.name}: no images in {self.root}."
            raise DatasetError(msg)
        self._check_labels()

    def _check_labels(self) -> None:
        n_classes = len(self.class_names)
        for split, images in self.splits.items():
            for image in images:
                if not 0 <= image.label < n_classes:
                    msg = (
                        f"{self.name}: label {image.label} of {image.path} ({split}) is out of range; "
                        f"there are {n_classes} classes."
                    )
                    raise DatasetError(msg)
        if "train" in self.splits:
            filled = {image.label for image in self.splits["train"]}
            empty = [repr(name) for label, name in enumerate(self.class_names) if label not in filled]
            if empty:
                msg = (
                    f"{self.name}: every class needs at least one train image; {shorten(empty)} have none. "
                    "Add images or remove the class."
                )
                raise DatasetError(msg)

    def split(self, name: Split) -> tuple[LabelledImage, ...]:
        """The images of one split.

        Raises:
            DatasetError: the split has no images.
        """
        if name not in self.splits:
            msg = f"{self.name} has no {name} images, only {', '.join(self.splits)}."
            raise DatasetError(msg)
        return self.splits[name]

    @cached_property
    def digest(self) -> str:
        """`sha256:…` over class names and, in order, labels, file sizes and relative paths of each split.

        The order matters because few-shot sampling depends on it. File contents are not read, which would be slow; a
        replaced image is detected if its size differs.
        """
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for split, images in self.splits.items():
            digest.update(f"\n{split} {len(images)}\n".encode())
            for image in images:
                # surrogateescape: file names need not be valid UTF-8
                line = f"{image.label} {_n_bytes(image.path)} {_relative(image.path, self.root)}\0"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return f"sha256:{digest.hexdigest()}"


def _n_bytes(path: Path) -> int | None:
    """A file's size; None if it does not exist, which is reported when it is opened."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _relative(path: Path, root: Path) -> str:
    """`path` relative to `root` with `/` separators; may start with `..`."""
    text, prefix = str(path), f"{root}{os.sep}"
    # Fast path for data sets with a million files: relpath only for paths outside `root`.
    inside = text[len(prefix) :] if text.startswith(prefix) and ".." not in text else os.path.relpath(path, root)
    return inside.replace(os.sep, "/")


def normalize_names(names: Sequence[str], *, of: str) -> tuple[str, ...]:
    """Normalize class names, keeping their order.

    Args:
        names: as spelled in folders, tables or split files.
        of: the data set's name, for messages.

    Raises:
        DatasetError: no names, an empty name, or duplicate names.
    """
    if not names:
        msg = f"{of} has no classes."
        raise DatasetError(msg)
    first_by_key: dict[str, str] = {}
    for name in names:
        key = comparison_key(name)
        if not key:
            msg = f"{of}: {name!r} is not a class name."
            raise DatasetError(msg)
        if key in first_by_key:
            msg = f"{of}: duplicate class names {first_by_key[key]!r} and {name!r}. Rename or merge one of them."
            raise DatasetError(msg)
        first_by_key[key] = name
    return tuple(normalize_name(name) for name in names)


def shorten(items: Iterable[object]) -> str:
    """Format the first few items and the number of remaining ones."""
    listed = [str(item) for item in items]
    rest = len(listed) - _MAX_LISTED
    return ", ".join(listed[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
