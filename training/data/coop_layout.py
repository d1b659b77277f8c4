"""The folder layout that CoOp's data sets have, and that prompt-learning repositories after it share.

One data folder holds a folder per data set, with its images and a published split file. Knows how the two kinds of
split description read: `split_zhou_*.json`, and FGVC-Aircraft's own lists. Does not know which data sets there are.
Source: KaiyangZhou/CoOp, DATASETS.md and `datasets/`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from training.data.dataset import DEFAULT_TEMPLATE, SPLITS, Dataset, LabelledImage, Split, shorten
from training.data.listing import require_files
from training.errors import DatasetError


class Layout(Protocol):
    """How one published data set lies below a data folder."""

    @property
    def folder(self) -> str:
        """Its folder's name."""
        ...

    @property
    def template(self) -> str:
        """Its hand-written prompt."""
        ...

    def read(self, name: str, data_root: Path) -> Dataset:
        """Read it under `name`; raises `DatasetError`."""
        ...


@dataclass(frozen=True)
class Part:
    """A file or, if the name ends in `/`, a folder of a layout, and what it holds."""

    name: str
    note: str = ""


def require_parts(name: str, data_root: Path, folder: str, parts: Sequence[Part]) -> Path:
    """The data set's folder, once everything in it is known to be there.

    Raises:
        DatasetError: something is missing; shows the expected layout and marks what is.
    """
    home = data_root / folder
    missing = {part for part in parts if not _is_there(home / part.name, is_folder=part.name.endswith("/"))}
    if not missing:
        return home
    width = max(len(part.name) for part in parts)
    lines = [f"{data_root}/", f"└── {folder}/"]
    for part in parts:
        branch = "└──" if part is parts[-1] else "├──"
        remark = "  ".join(text for text in (part.note, "<- missing" if part in missing else "") if text)
        lines.append(f"    {branch} {part.name:<{width}}  {remark}".rstrip())
    listed = shorten(f"{folder}/{part.name}" for part in parts if part in missing)
    msg = f"{name}: {listed} is missing below {data_root}. Expected this layout:\n" + "\n".join(lines)
    raise DatasetError(msg)


def _is_there(path: Path, *, is_folder: bool) -> bool:
    return path.is_dir() if is_folder else path.is_file()


@dataclass(frozen=True)
class SplitFile:
    """A data set whose splits are in a JSON file: `{"train": [[path, label, class name], …], "val": …, "test": …}`.

    Attributes:
        folder: the data set's folder below the data folder.
        images: folder that the file's paths are relative to, below `folder`; empty for `folder` itself.
        split_file: the JSON file, in `folder`.
        template: the hand-written prompt.
        new_names: class names to replace; names that are not in it stay.
        parts: other folders of the layout to look for.
    """

    folder: str
    images: str
    split_file: str
    template: str = DEFAULT_TEMPLATE
    new_names: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def read(self, name: str, data_root: Path) -> Dataset:
        """Read the split file; the order of its images is kept.

        Raises:
            DatasetError: a file is missing, the JSON is not a split file, a path leaves the image folder, a label has
                two names or none, or what `Dataset` refuses.
        """
        image_part = (Part(f"{self.images}/", "the images"),) if self.images else ()
        parts = (*image_part, *self.parts, Part(self.split_file, "linked in CoOp's DATASETS.md"))
        home = require_parts(name, data_root, self.folder, parts)
        source, image_root = home / self.split_file, home / self.images
        lists = _load_lists(source)
        names: dict[int, str] = {}
        splits: dict[Split, tuple[LabelledImage, ...]] = {}
        for split in SPLITS:
            images = []
            for index, entry in enumerate(lists[split]):
                relative, label, spelled = _parse_entry(entry, f"{source}, {split}[{index}]")
                if names.setdefault(label, spelled) != spelled:
                    msg = f"{source}, {split}[{index}]: label {label} is {spelled!r} here, {names[label]!r} before."
                    raise DatasetError(msg)
                images.append(LabelledImage(image_root / relative, label))
            splits[split] = tuple(images)
        unnamed = [label for label in range(max(names, default=-1) + 1) if label not in names]
        if unnamed:
            msg = f"{source}: expected every label from 0 to {max(names)}, found no image of {shorten(unnamed)}."
            raise DatasetError(msg)
        require_files(name, source, [image.path for images in splits.values() for image in images])
        class_names = tuple(self.new_names.get(names[label], names[label]) for label in range(len(names)))
        return Dataset(name, image_root, class_names, splits, self.template)


def _load_lists(source: Path) -> dict[str, list[Any]]:
    """The three lists of a split file."""
    try:
        lists = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"No splits could be read from {source}: {error}."
        raise DatasetError(msg) from error
    if not isinstance(lists, dict) or any(not isinstance(lists.get(split), list) for split in SPLITS):
        found = ", ".join(map(str, lists)) if isinstance(lists, dict) else type(lists).__name__
        msg = f"{source}: expected a JSON object with the lists {', '.join(SPLITS)}; found {found or 'an empty one'}."
        raise DatasetError(msg)
    return lists


def _parse_entry(entry: object, where: str) -> tuple[str, int, str]:
    """One `[path, label, class name]`."""
    match entry:
        case [str(path), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                msg = f"{where}: expected a path inside the image folder, found {path!r}."
                raise DatasetError(msg)
            return path, label, name
    msg = f"{where}: expected [path, label, class name], found {str(entry)[:80]}."
    raise DatasetError(msg)


_VARIANTS: Final = "variants.txt"


@dataclass(frozen=True)
class AircraftLists:
    """FGVC-Aircraft as its authors publish it: `variants.txt` in label order, `<image> <variant>` lines per split.

    Attributes:
        folder: the data set's folder below the data folder (the archive's `data/`, renamed).
        template: the hand-written prompt.
    """

    folder: str
    template: str

    def read(self, name: str, data_root: Path) -> Dataset:
        """Read the three lists.

        Raises:
            DatasetError: a file is missing, a line names an unknown variant, or what `Dataset` refuses.
        """
        lists = {split: f"images_variant_{split}.txt" for split in SPLITS}
        parts = (Part("images/", "<number>.jpg"), Part(_VARIANTS, "class names"), *map(Part, lists.values()))
        home = require_parts(name, data_root, self.folder, parts)
        variants = [line for _, line in read_lines(home / _VARIANTS)]
        labels = {variant: label for label, variant in enumerate(variants)}
        splits: dict[Split, tuple[LabelledImage, ...]] = {}
        for split, file_name in lists.items():
            images = []
            for number, line in read_lines(home / file_name):
                image, _, variant = line.partition(" ")
                if variant not in labels:
                    msg = (
                        f"{home / file_name}, line {number}: expected an image and a variant that {_VARIANTS} names, "
                        f"found {line!r}."
                    )
                    raise DatasetError(msg)
                images.append(LabelledImage(home / "images" / f"{image}.jpg", labels[variant]))
            splits[split] = tuple(images)
            require_files(name, home / file_name, [image.path for image in images])
        return Dataset(name, home / "images", tuple(variants), splits, self.template)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers and stripped lines of a text file, blank lines left out.

    Raises:
        DatasetError: the file is not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Expected UTF-8 text in {path}: {error}."
        raise DatasetError(msg) from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
