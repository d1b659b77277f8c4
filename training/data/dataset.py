"""A labelled data set: its classes, its images and which split each one is in.

Knows what every data set must satisfy, wherever it came from, and a digest of what was chosen. Does not know folders,
tables or published layouts, and opens no image.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from training.errors import DatasetError

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
DEFAULT_TEMPLATE: Final = "a photo of a {}."
_MAX_NAMED: Final = 5  # how many of a long list an error message shows


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file and the position of its class in `Dataset.class_names`."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """Images with labels, in up to three splits; checked when it is made.

    Class names are stored tidied (`tidy_name`). Splits without images are left out. The order of the images is part of
    the data set: it decides what few-shot sampling draws.

    Attributes:
        name: for messages and records.
        root: folder that the digest's paths are relative to.
        class_names: in label order.
        splits: images by split, in the order train, val, test.
        template: the hand-written prompt for these classes; `{}` takes the class name.
        unreadable: files that were set aside because they do not decode.

    Raises:
        DatasetError: no class, two names that are equal to a reader, an unknown split, no image, a label without a
            class, a class without a train image although there are train images, or a template without `{}`.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    splits: Mapping[Split, tuple[LabelledImage, ...]]
    template: str = DEFAULT_TEMPLATE
    unreadable: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown:
            msg = f"{self.name}: expected the splits {', '.join(SPLITS)}, found {unknown[0]!r}."
            raise DatasetError(msg)
        if "{}" not in self.template:
            msg = f"{self.name}: expected a template with {{}} for the class name, found {self.template!r}."
            raise DatasetError(msg)
        object.__setattr__(self, "class_names", tidy_names(self.class_names, of=self.name))
        filled = {split: tuple(self.splits[split]) for split in SPLITS if self.splits.get(split)}
        object.__setattr__(self, "splits", filled)
        if not filled:
            msg = f"{self.name}: expected images in at least one of {', '.join(SPLITS)}, found none below {self.root}."
            raise DatasetError(msg)
        self._check_labels()

    def _check_labels(self) -> None:
        n_classes = len(self.class_names)
        for split, images in self.splits.items():
            for image in images:
                if not 0 <= image.label < n_classes:
                    msg = (
                        f"{self.name}: expected labels 0 to {n_classes - 1}, "
                        f"found {image.label} for {image.path} in {split}."
                    )
                    raise DatasetError(msg)
        if "train" in self.splits:
            filled = {image.label for image in self.splits["train"]}
            empty = [repr(name) for label, name in enumerate(self.class_names) if label not in filled]
            if empty:
                msg = (
                    f"{self.name}: expected at least one train image for each of {n_classes} classes, "
                    f"found none for {shorten(empty)}. Add images or take the class out."
                )
                raise DatasetError(msg)

    def split(self, name: Split) -> tuple[LabelledImage, ...]:
        """The images of one split.

        Raises:
            DatasetError: the split has no image; says which have.
        """
        if name not in self.splits:
            msg = f"{self.name}: expected {name} images, found none; there are images in {', '.join(self.splits)}."
            raise DatasetError(msg)
        return self.splits[name]

    @cached_property
    def digest(self) -> str:
        """`sha256:…` over class names and, in order, each split's labels, file sizes and paths relative to `root`.

        Another order of images is another data set: few-shot sampling would draw other images. Contents are not read,
        which would take as long as a copy of the data; an image replaced by one of other size is noticed.
        """
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for split, images in self.splits.items():
            digest.update(f"\n{split} {len(images)}\n".encode())
            for image in images:
                # surrogateescape: a file name need not be text, and must not stop the digest
                line = f"{image.label} {_n_bytes(image.path)} {_relative(image.path, self.root)}\0"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return f"sha256:{digest.hexdigest()}"


def _n_bytes(path: Path) -> int | None:
    """A file's size; None where there is none, which is for the one that opens it to complain about."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _relative(path: Path, root: Path) -> str:
    """`path` as seen from `root`, with `/` between its parts; may start with `..`."""
    text, prefix = str(path), f"{root}{os.sep}"
    # A million paths are common: pathlib and relpath are only asked for what lies elsewhere.
    inside = text[len(prefix) :] if text.startswith(prefix) and ".." not in text else os.path.relpath(path, root)
    return inside.replace(os.sep, "/")


def tidy_name(name: str) -> str:
    """A class name as a text tower reads it: `_` is a space, white space is folded, Unicode is composed (NFC)."""
    return unicodedata.normalize("NFC", " ".join(name.replace("_", " ").split()))


def reading_key(name: str) -> str:
    """What two names share that a reader takes for the same: `tidy_name` without case and width."""
    return unicodedata.normalize("NFKC", tidy_name(name)).casefold()


def tidy_names(names: Sequence[str], *, of: str) -> tuple[str, ...]:
    """Tidy class names, keeping their order.

    Args:
        names: as folders, tables or split files spell them.
        of: what they belong to, for messages.

    Raises:
        DatasetError: no name, an empty name, or two names that read the same; names both.
    """
    if not names:
        msg = f"{of}: expected at least one class, found none."
        raise DatasetError(msg)
    first_by_key: dict[str, str] = {}
    for name in names:
        key = reading_key(name)
        if not key:
            msg = f"{of}: expected a class name, found {name!r}."
            raise DatasetError(msg)
        if key in first_by_key:
            msg = f"{of}: the classes {first_by_key[key]!r} and {name!r} read the same. Rename or merge one of them."
            raise DatasetError(msg)
        first_by_key[key] = name
    return tuple(tidy_name(name) for name in names)


def shorten(items: Iterable[object]) -> str:
    """The first few items, and how many more there are."""
    listed = [str(item) for item in items]
    rest = len(listed) - _MAX_NAMED
    return ", ".join(listed[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
