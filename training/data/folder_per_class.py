"""Data sets with one folder per class, optionally inside a folder per split.

    <root>/<class>/*.jpg                     one split
    <root>/{train,val,test}/<class>/*.jpg    up to three splits

`classes.txt` in the root gives the label order; without it, classes are sorted by folder name.
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
    comparison_key,
    normalize_names,
    shorten,
)
from training.data.listing import SUFFIXES, has_images, list_folders, list_images
from training.errors import DatasetError

CLASS_LIST_NAME: Final = "classes.txt"


def read_class_folders(root: Path, *, single_split: Split = "train", template: str = DEFAULT_TEMPLATE) -> Dataset:
    """Read a folder of class folders; images may be nested inside a class folder.

    A split folder with images but without class folders is unlabelled and ignored, if another split is labelled.

    Args:
        root: contains class folders, or `train`, `val` and `test` with class folders.
        single_split: the split of class folders directly in `root`.
        template: hand-written prompt, `{}` for the class name.

    Raises:
        DatasetError: no such folder, no class folders, images next to class folders, split folders next to others, a
            class missing from the class list or from the train split, or duplicate class names.
        ClassListError: `classes.txt` is empty or ambiguous.
    """
    if not root.is_dir():
        msg = f"No such folder: {root}."
        raise DatasetError(msg)
    name = root.resolve().name
    folders = {split: _class_folders(folder) for split, folder in _split_folders(root, single_split).items()}
    spelled = sorted({path.name for paths in folders.values() for path in paths})
    if not spelled:
        msg = f"{name}: no class folders in {root} or its {', '.join(SPLITS)}. A flat folder of images has no labels."
        raise DatasetError(msg)
    class_names = _label_order(root, spelled, name)
    labels = {comparison_key(class_name): label for label, class_name in enumerate(class_names)}
    splits: dict[Split, tuple[LabelledImage, ...]] = {
        split: tuple(
            LabelledImage(path, label)
            for label, folder in sorted((labels[comparison_key(folder.name)], folder) for folder in paths)
            for path in list_images(folder)
        )
        for split, paths in folders.items()
    }
    return Dataset(name, root, class_names, splits, template)


def _split_folders(root: Path, single_split: Split) -> Mapping[Split, Path]:
    """The folder of each split."""
    found = list_folders(root)
    splits: dict[Split, Path] = {split: root / split for split in SPLITS if split in found}
    if not splits:
        return {single_split: root}
    others = [name for name in found if name not in SPLITS and list_images(root / name)]
    if others:
        # Ambiguous: a class may be named "train" (the vehicle).
        msg = (
            f"{root} contains the split folders {', '.join(splits)} and other folders with images ({shorten(others)}). "
            f"Use either class folders only or {', '.join(SPLITS)} only."
        )
        raise DatasetError(msg)
    return splits


def _class_folders(folder: Path) -> list[Path]:
    """The class folders of one split; empty if the split is unlabelled."""
    names = list_folders(folder)
    if names and has_images(folder):
        kinds = ", ".join(sorted(SUFFIXES))
        msg = (
            f"{folder} contains images ({kinds}) next to class folders ({shorten(names)}). "
            "Move them into a class folder, or out of this folder."
        )
        raise DatasetError(msg)
    return [folder / name for name in names]


def _label_order(root: Path, spelled: list[str], name: str) -> tuple[str, ...]:
    """Class names in label order, from the class list if it exists."""
    sorted_names = normalize_names(spelled, of=name)
    path = root / CLASS_LIST_NAME
    if not path.is_file():
        return sorted_names
    listed = normalize_names(read_classes(path), of=name)
    known = {comparison_key(class_name) for class_name in listed}
    unlisted = [folder for folder in spelled if comparison_key(folder) not in known]
    if unlisted:
        msg = f"{name}: {path} does not list the class folders {shorten(unlisted)}. Add them or remove the folders."
        raise DatasetError(msg)
    return listed
