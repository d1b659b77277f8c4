"""Data sets with one folder per class, optionally inside a folder per split.

    <root>/<class>/*.jpg                     one split
    <root>/{train,val,test}/<class>/*.jpg    up to three splits, spelled as in `split_names`

`classes.txt` in the root gives the label order; without it, classes are sorted by folder name. Other layouts, such as a
root one level too high, are errors, because their folders would be read as classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_store.class_names import comparison_key
from prompt_store.manifest import DEFAULT_TEMPLATE
from training.data.class_list import read_classes
from training.data.dataset import (
    SPLITS,
    Dataset,
    LabelledImage,
    Split,
    normalize_names,
    shorten,
)
from training.data.listing import SUFFIXES, describe_left_out, list_folders, list_images, scan_folder
from training.data.split_names import describe_spellings, split_of
from training.errors import DatasetError

CLASS_LIST_NAME: Final = "classes.txt"
_MAX_SIBLINGS: Final = 100  # folders opened for a hint in an error message


@dataclass(frozen=True)
class ClassFolder:
    """A class folder and the images in it, at any depth."""

    path: Path
    images: tuple[Path, ...]

    @property
    def subfolders(self) -> list[str]:
        """Names of the direct subfolders that contain images, at any depth."""
        inner = (path.relative_to(self.path).parts for path in self.images)
        return sorted({parts[0] for parts in inner if len(parts) > 1})

    @property
    def n_nested(self) -> int:
        """Number of images in subfolders."""
        return sum(image.parent != self.path for image in self.images)

    @property
    def has_only_subfolders(self) -> bool:
        """Whether all images are in subfolders."""
        return 0 < len(self.images) == self.n_nested


def read_class_folders(root: Path, *, single_split: Split = "train", template: str = DEFAULT_TEMPLATE) -> Dataset:
    """Read a folder of class folders; images may be nested inside a class folder.

    A split folder with images but without class folders is unlabelled and left out, if another split is labelled.
    `Dataset.notes` lists it, and counts the files that are not read.

    Args:
        root: contains class folders, or split folders with class folders.
        single_split: the split of class folders directly in `root`.
        template: hand-written prompt, `{}` for the class name.

    Raises:
        DatasetError: no such folder, no class folders or one only, images next to class folders, split folders next to
            others, class folders that look like a level of another layout, a class missing from the class list or from
            the train split, or duplicate class names.
        ClassListError: `classes.txt` is empty or ambiguous.
        OSError: a folder cannot be read.
    """
    if not root.is_dir():
        msg = f"No such folder: {root}."
        raise DatasetError(msg)
    name, left_out, notes = root.resolve().name, Counter[str](), list[str]()
    listed = listed_classes(root / CLASS_LIST_NAME, name)
    classes: dict[Split, list[ClassFolder]] = {}
    for split, folder in _split_folders(root, single_split, listed, left_out, notes).items():
        classes[split] = _class_folders(folder, left_out, notes)
        if not listed:
            check_level(folder, classes[split])
    spelled = sorted({each.path.name for folders in classes.values() for each in folders})
    if not spelled:
        msg = f"{name}: no class folders in {root} or its {', '.join(SPLITS)}. A flat folder of images has no labels."
        raise DatasetError(msg + _suggest_parent(root))
    class_names = label_order(root / CLASS_LIST_NAME, spelled, listed, name)
    if len(class_names) == 1:
        msg = f"{name}: {root} has one class folder only, {spelled[0]}; at least two classes are needed."
        raise DatasetError(msg + _suggest_parent(root))
    labels = {comparison_key(class_name): label for label, class_name in enumerate(class_names)}
    splits: dict[Split, tuple[LabelledImage, ...]] = {
        split: tuple(
            LabelledImage(path, labels[comparison_key(each.path.name)])
            for each in sorted(folders, key=lambda each: labels[comparison_key(each.path.name)])
            for path in each.images
        )
        for split, folders in classes.items()
    }
    if listed:
        left_out -= Counter([Path(CLASS_LIST_NAME).suffix])
    not_read = describe_left_out(left_out)
    if empty := [each.path.relative_to(root) for folders in classes.values() for each in folders if not each.images]:
        notes.append(f"class folders without images: {shorten(empty)}")
    try:
        return Dataset(name, root, class_names, splits, template, notes=(*notes, *filter(None, [not_read])))
    except DatasetError as error:
        msg = f"{error} {not_read}." if not_read else str(error)
        raise DatasetError(msg) from error


def _split_folders(
    root: Path, single_split: Split, listed: Sequence[str], left_out: Counter[str], notes: list[str]
) -> Mapping[Split, Path]:
    """The folder of each split; counts files left out next to them, and notes unusual spellings."""
    top = scan_folder(root)
    spelled = {name: split for name in top.folders if (split := split_of(name))}
    if not spelled or {comparison_key(name) for name in spelled} <= {comparison_key(name) for name in listed}:
        return {single_split: root}
    left_out += top.left_out
    names: dict[Split, str] = {split: name for name, split in spelled.items()}
    if len(names) < len(spelled):
        msg = f"{root} contains several folders for one split: {', '.join(spelled)}. Merge or rename them."
        raise DatasetError(msg)
    others = []
    for other in (other for other in top.folders if other not in spelled):
        listing = list_images(root / other)
        left_out += listing.left_out
        others += [other] if listing.images else []
    if others:
        # Ambiguous: a class may be named "train" (the vehicle).
        msg = (
            f"{root} contains the split folders {', '.join(spelled)} and other folders with images "
            f"({shorten(others)}). Use either class folders only or {', '.join(SPLITS)} only; if all of them are "
            f"classes, list them in {root / CLASS_LIST_NAME}."
        )
        raise DatasetError(msg)
    notes += filter(None, [describe_spellings(spelled)])
    return {split: root / names[split] for split in SPLITS if split in names}


def _class_folders(folder: Path, left_out: Counter[str], notes: list[str]) -> list[ClassFolder]:
    """The class folders of one split, none if it is unlabelled; counts files left out, and notes unusual images."""
    top = scan_folder(folder)
    if top.folders and top.images:
        kinds = ", ".join(sorted(SUFFIXES))
        msg = (
            f"{folder} contains images ({kinds}) next to class folders ({shorten(top.folders)}). "
            "Move them into a class folder, or out of this folder."
        )
        raise DatasetError(msg)
    if top.images:
        notes.append(f"images in {folder} are not read, because they are in no class folder ({len(top.images)})")
    left_out += top.left_out
    classes = []
    for name in top.folders:
        listing = list_images(folder / name)
        left_out += listing.left_out
        classes.append(ClassFolder(folder / name, listing.images))
    if n_nested := sum(each.n_nested for each in classes):
        names = shorten(sorted({name for each in classes for name in each.subfolders}))
        notes.append(f"images in subfolders of class folders are read as images of the class ({n_nested}, in {names})")
    return classes


def check_level(folder: Path, classes: Sequence[ClassFolder]) -> None:
    """Reject folders that are not classes but a level of another layout.

    Raises:
        DatasetError: no class folder contains images of its own, or several share the names of their subfolders.
    """
    filled = [each for each in classes if each.images]
    outer = [each for each in filled if each.has_only_subfolders]
    inner = Counter(name for each in outer for name in each.subfolders)
    if not outer or (len(outer) < len(filled) and max(inner.values()) == 1):
        return
    found = (
        f"{folder}: expected {folder}/<class>/*.jpg, found no images in {shorten(each.path.name for each in outer)} "
        f"but the folders {shorten(inner)}."
    )
    splits = [name for name in inner if split_of(name)]
    if len(outer) == 1 or not all(split_of(name) for each in outer for name in each.subfolders):
        largest = max(outer, key=lambda each: len(each.images))
        advice = f"Pass {_descend(largest.path)} if that is the data set"
    else:
        example = f"{folder / splits[0] / outer[0].path.name}"
        advice = f"Pass one of them, such as {outer[0].path}, or move the split folders above the classes ({example})"
    if len(filled) > 1:
        names = ", ".join(each.path.name for each in filled) if len(filled) <= 3 else "these folders"
        advice += (
            f"; if {names} are splits, name them {', '.join(SPLITS)}; if they are the classes, list them in "
            f"{CLASS_LIST_NAME} in the data set's folder"
        )
    msg = f"{found} {advice}."
    raise DatasetError(msg)


def _descend(folder: Path) -> Path:
    """The first folder, from here down, with images or several subfolders, or a split folder."""
    contents = scan_folder(folder)
    while not contents.images and len(contents.folders) == 1 and not split_of(contents.folders[0]):
        folder = folder / contents.folders[0]
        contents = scan_folder(folder)
    return folder


def _suggest_parent(root: Path) -> str:
    """A hint at the data set's folder, if `root` looks like one class folder among others."""
    parent = root.resolve().parent
    try:
        siblings = [name for name in list_folders(parent)[:_MAX_SIBLINGS] if scan_folder(parent / name).images]
    except OSError:
        return ""
    if not set(siblings) - {root.resolve().name}:
        return ""
    whole = parent.parent if split_of(parent.name) else parent
    return f" If {root} is one class of several ({shorten(siblings)}), pass {whole}."


def listed_classes(path: Path, name: str) -> tuple[str, ...]:
    """The class list's names, in label order; none without a class list."""
    return normalize_names(read_classes(path), of=name) if path.is_file() else ()


def label_order(class_list: Path, spelled: list[str], listed: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Class names in label order, those of the class list if there are any.

    Raises:
        DatasetError: duplicate names, or a folder that the list lacks.
    """
    sorted_names = normalize_names(spelled, of=name)
    if not listed:
        return sorted_names
    known = {comparison_key(class_name) for class_name in listed}
    unlisted = [folder for folder in spelled if comparison_key(folder) not in known]
    if unlisted:
        msg = (
            f"{name}: {class_list} does not list the class folders {shorten(unlisted)}. Add them or remove the folders."
        )
        raise DatasetError(msg)
    return listed
