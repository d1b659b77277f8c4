"""A folder of pictures to teach a domain with: class folders, and pictures without a label.

    <root>/<class>/*.jpg                      labelled
    <root>/*.jpg, <root>/unlabelled/*.jpg     without a label

Formats are those of the service. `classes.txt` in the root lists the class names in order, as in `folder_per_class`.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_store.class_names import UNLABELLED, comparison_key
from training.data.class_list import check_class_names, read_classes
from training.data.dataset import shorten
from training.data.folder_per_class import CLASS_LIST_NAME, ClassFolder, check_level, label_order, listed_classes
from training.data.listing import CONVERTIBLE_SUFFIXES, SERVED_SUFFIXES, describe_left_out, list_images, scan_folder
from training.data.split_names import split_of
from training.errors import DatasetError

MAX_PAIRS: Final = 20
"""Pairs of files in an error message."""


@dataclass(frozen=True)
class TeachingFolder:
    """Pictures to teach with.

    Attributes:
        pictures: labels (None for pictures without one) and files.
        class_names: of the class list or, without one, of the class folders.
        notes: lines for the user: files that are not read, and how to convert pictures among them.
    """

    pictures: tuple[tuple[str | None, Path], ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def read_teaching_folder(root: Path, class_list: Path | None = None) -> TeachingFolder:
    """Read a folder of class folders and pictures without a label.

    Args:
        root: contains them.
        class_list: one class name per line; by default `classes.txt` in `root`, if it exists.

    Raises:
        DatasetError: no such folder, no pictures, split folders, class folders that look like a level of another
            layout, a class folder that the class list lacks, duplicate class names, or the same picture in two classes.
        ClassListError: the class list cannot be read, or a class name is invalid.
        OSError: a folder, or one of two pictures of equal size, cannot be read.
    """
    if not root.is_dir():
        msg = f"No such folder: {root}."
        raise DatasetError(msg)
    name, list_path = root.resolve().name, class_list or root / CLASS_LIST_NAME
    listed = tuple(read_classes(class_list)) if class_list else listed_classes(list_path, name)
    top = scan_folder(root, SERVED_SUFFIXES)
    left_out, unlabelled, folders = Counter(top.left_out), [root / image for image in top.images], []
    for folder in top.folders:
        listing = list_images(root / folder, SERVED_SUFFIXES)
        left_out += listing.left_out
        if comparison_key(folder) == UNLABELLED:
            unlabelled += listing.images
        else:
            folders.append(ClassFolder(root / folder, listing.images))
    left_out -= Counter([Path(CLASS_LIST_NAME).suffix] if (root / CLASS_LIST_NAME).is_file() else [])
    _check_layout(root, folders, listed)
    notes = [describe_left_out(left_out)]
    if CONVERTIBLE_SUFFIXES & left_out.keys():
        notes[0] += ". Convert pictures in other formats first, for example with ImageMagick: mogrify -format jpg FILE"
    if empty := [each.path.name for each in folders if not each.images]:
        notes.append(f"class folders without pictures: {shorten(empty)}")
    spelled = [each.path.name for each in folders if each.images]
    class_names = label_order(list_path, spelled, listed, name) if spelled or listed else ()
    check_class_names(class_names, name)
    label_of = {comparison_key(class_name): class_name for class_name in class_names}
    labelled = [(label_of[comparison_key(each.path.name)], image) for each in folders for image in each.images]
    if not labelled and not unlabelled:
        kinds = ", ".join(sorted(SERVED_SUFFIXES))
        msg = f"{root}: expected {root}/<class>/*.jpg, found no pictures ({kinds}). {notes[0]}".strip()
        raise DatasetError(msg)
    _check_labels(root, labelled)
    pictures = (*labelled, *((None, image) for image in unlabelled))
    return TeachingFolder(pictures, class_names, tuple(filter(None, notes)))


def _check_labels(root: Path, labelled: Iterable[tuple[str, Path]]) -> None:
    """Reject the same picture, byte for byte, in two classes: the domain would have it as one example with one label.

    Raises:
        DatasetError: names the files.
    """
    by_size = defaultdict(list)
    for label, file in labelled:
        by_size[file.stat().st_size].append((label, file))
    first: dict[bytes, tuple[str, Path]] = {}
    pairs = []
    for size, same in by_size.items():
        if not size or len({label for label, _ in same}) == 1:  # empty files are no pictures
            continue
        for label, file in same:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
            known_label, known = first.setdefault(digest, (label, file))
            if label != known_label:
                pairs.append(f"{known} and {file}")
    if pairs:
        more = [f"and {len(pairs) - MAX_PAIRS} more"] if len(pairs) > MAX_PAIRS else []
        listed = "; ".join([*pairs[:MAX_PAIRS], *more])
        msg = (
            f"{root}: expected each picture in one class, found the same picture in two: {listed}. Keep one of the two."
        )
        raise DatasetError(msg)


def _check_layout(root: Path, folders: list[ClassFolder], listed: tuple[str, ...]) -> None:
    """Reject folders that are not classes, unless the class list has them.

    Raises:
        DatasetError: see `read_teaching_folder`.
    """
    if not listed:
        check_level(root, folders)
    known = {comparison_key(class_name) for class_name in listed}
    splits = [each.path.name for each in folders if split_of(each.path.name)]
    if unknown := [split for split in splits if comparison_key(split) not in known]:
        chosen = next((split for split in unknown if split_of(split) == "train"), unknown[0])
        msg = (
            f"{root}: expected class folders, found the split folders {shorten(unknown)}. Pass one of them, such as "
            f"{root / chosen}; if they are classes, list all classes in {root / CLASS_LIST_NAME}."
        )
        raise DatasetError(msg)
