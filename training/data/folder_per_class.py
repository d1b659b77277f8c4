"""Labelled images as folders: one folder per class, with or without a folder per split above.

    <root>/<class>/*.jpg                     one split
    <root>/{train,val,test}/<class>/*.jpg    up to three splits

A `classes.txt` in the root gives the order of the labels; without one, classes are sorted by folder name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from training.data.class_list import read_classes
from training.data.dataset import (
    DEFAULT_TEMPLATE,
    SPLITS,
    Dataset,
    LabelledImage,
    Split,
    reading_key,
    shorten,
    tidy_names,
)
from training.data.listing import SUFFIXES, has_images, list_folders, list_images
from training.errors import DatasetError

CLASS_LIST_NAME: Final = "classes.txt"


def read_class_folders(root: Path, *, single_split: Split = "train", template: str = DEFAULT_TEMPLATE) -> Dataset:
    """Read a folder of class folders.

    A split folder that holds images side by side and no class folders is unlabelled and left out, as long as another
    split is labelled. Images may lie deeper than the class folder.

    Args:
        root: holds class folders, or `train`, `val` and `test` with class folders in them.
        single_split: the split that class folders directly in `root` make up.
        template: the hand-written prompt, `{}` for the class name.

    Raises:
        DatasetError: no such folder, no class folder, images beside class folders, split folders beside others, a
            class that the class list does not name, a train split that misses a class, or names that read the same.
        ClassListError: `classes.txt` is empty or ambiguous.
    """
    if not root.is_dir():
        msg = f"Expected a folder with one folder per class at {root}; there is none."
        raise DatasetError(msg)
    name = root.resolve().name
    folders = {split: _class_folders(folder) for split, folder in _split_folders(root, single_split).items()}
    spelled = sorted({path.name for paths in folders.values() for path in paths})
    if not spelled:
        msg = (
            f"{name}: expected one folder per class in {root}, or in {', '.join(SPLITS)} there; found no class folder. "
            "A flat folder of images has no labels."
        )
        raise DatasetError(msg)
    class_names = _label_order(root, spelled, name)
    labels = {reading_key(class_name): label for label, class_name in enumerate(class_names)}
    splits: dict[Split, tuple[LabelledImage, ...]] = {
        split: tuple(
            LabelledImage(path, label)
            for label, folder in sorted((labels[reading_key(folder.name)], folder) for folder in paths)
            for path in list_images(folder)
        )
        for split, paths in folders.items()
    }
    return Dataset(name, root, class_names, splits, template)


def _split_folders(root: Path, single_split: Split) -> Mapping[Split, Path]:
    """Where each split's class folders are."""
    found = list_folders(root)
    splits: dict[Split, Path] = {split: root / split for split in SPLITS if split in found}
    if not splits:
        return {single_split: root}
    others = [name for name in found if name not in SPLITS and list_images(root / name)]
    if others:
        # A class may be called "train" (the vehicle), so this is never guessed.
        msg = (
            f"{root} holds the split folders {', '.join(splits)} beside other folders with images ({shorten(others)}). "
            f"Expected class folders only, or {', '.join(SPLITS)} only: move or rename the others."
        )
        raise DatasetError(msg)
    return splits


def _class_folders(folder: Path) -> list[Path]:
    """The class folders of one split; none if the split is unlabelled."""
    names = list_folders(folder)
    if names and has_images(folder):
        kinds = ", ".join(sorted(SUFFIXES))
        msg = (
            f"{folder} holds images ({kinds}) beside class folders ({shorten(names)}): they belong to no class. "
            "Move them into a class folder or out of this one."
        )
        raise DatasetError(msg)
    return [folder / name for name in names]


def _label_order(root: Path, spelled: list[str], name: str) -> tuple[str, ...]:
    """Class names in label order, from the class list if there is one."""
    sorted_names = tidy_names(spelled, of=name)
    path = root / CLASS_LIST_NAME
    if not path.is_file():
        return sorted_names
    listed = tidy_names(read_classes(path), of=name)
    known = {reading_key(class_name) for class_name in listed}
    unlisted = [folder for folder in spelled if reading_key(folder) not in known]
    if unlisted:
        msg = f"{name}: {path} does not name the class folders {shorten(unlisted)}. Add them or take the folders out."
        raise DatasetError(msg)
    return listed
