"""Readers for CoOp's folder layout, which later prompt-learning repositories share.

The data folder contains one folder per data set with its images and a published split: `split_zhou_*.json`, or
FGVC-Aircraft's own lists. Source: KaiyangZhou/CoOp, DATASETS.md and `datasets/`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from prompt_store.manifest import DEFAULT_TEMPLATE
from training.data.dataset import SPLITS, Dataset, LabelledImage, Split, shorten
from training.data.listing import require_files, suggest_root
from training.errors import DatasetError


class Layout(Protocol):
    """The layout of one published data set in the data folder."""

    @property
    def folder(self) -> str:
        """Folder name."""
        ...

    @property
    def template(self) -> str:
        """Hand-written prompt."""
        ...

    def read(self, name: str, data_root: Path) -> Dataset:
        """Read the data set; raises `DatasetError`."""
        ...


@dataclass(frozen=True)
class Part:
    """A required file of a layout, or a folder if the name ends in `/`; `note` describes it in messages."""

    name: str
    note: str = ""


def require_parts(name: str, data_root: Path, folder: str, parts: Sequence[Part]) -> Path:
    """Check that all parts of a layout exist, and return the data set's folder.

    Raises:
        DatasetError: a part is missing; the message shows the expected layout.
    """
    home = data_root / folder
    missing = {part for part in parts if not _exists(home / part.name, is_folder=part.name.endswith("/"))}
    if not missing:
        return home
    width = max(len(part.name) for part in parts)
    lines = [f"{data_root}/", f"└── {folder}/"]
    for part in parts:
        branch = "└──" if part is parts[-1] else "├──"
        remark = "  ".join(text for text in (part.note, "<- missing" if part in missing else "") if text)
        lines.append(f"    {branch} {part.name:<{width}}  {remark}".rstrip())
    listed = shorten(f"{folder}/{part.name}" for part in parts if part in missing)
    hint = suggest_root(data_root, folder)
    msg = f"{name}: {listed} is missing in {data_root}.{hint} Expected layout:\n" + "\n".join(lines)
    raise DatasetError(msg)


def _exists(path: Path, *, is_folder: bool) -> bool:
    return path.is_dir() if is_folder else path.is_file()


@dataclass(frozen=True)
class SplitFile:
    """A data set with its splits in a JSON file: `{"train": [[path, label, class name], …], "val": …, "test": …}`.

    Attributes:
        folder: the data set's folder in the data folder.
        images: folder inside `folder` that the file's paths are relative to; empty for `folder` itself.
        split_file: the JSON file, in `folder`.
        template: the hand-written prompt.
        new_names: replacements for class names.
        parts: other required folders.
    """

    folder: str
    images: str
    split_file: str
    template: str = DEFAULT_TEMPLATE
    new_names: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def read(self, name: str, data_root: Path) -> Dataset:
        """Read the split file, keeping the order of its images.

        Raises:
            DatasetError: a missing file, an invalid split file, a path outside the image folder, a label with several
                names or none, or an invalid `Dataset`.
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
                    msg = f"{source}, {split}[{index}]: label {label} is both {names[label]!r} and {spelled!r}."
                    raise DatasetError(msg)
                images.append(LabelledImage(image_root / relative, label))
            splits[split] = tuple(images)
        unnamed = [label for label in range(max(names, default=-1) + 1) if label not in names]
        if unnamed:
            msg = f"{source}: labels 0 to {max(names)} must all have images; {shorten(unnamed)} have none."
            raise DatasetError(msg)
        require_files(name, source, [image.path for images in splits.values() for image in images])
        class_names = tuple(self.new_names.get(names[label], names[label]) for label in range(len(names)))
        return Dataset(name, image_root, class_names, splits, self.template)


def _load_lists(source: Path) -> dict[str, list[Any]]:
    """Parse a split file."""
    try:
        lists = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"Cannot read the splits from {source}: {error}."
        raise DatasetError(msg) from error
    if not isinstance(lists, dict) or any(not isinstance(lists.get(split), list) for split in SPLITS):
        msg = f"{source} must be a JSON object with the lists {', '.join(SPLITS)}."
        raise DatasetError(msg)
    return lists


def _parse_entry(entry: object, where: str) -> tuple[str, int, str]:
    """Parse one `[path, label, class name]` entry."""
    match entry:
        case [str(path), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                msg = f"{where}: {path!r} is outside the image folder."
                raise DatasetError(msg)
            return path, label, name
    msg = f"{where}: expected [path, label, class name], found {str(entry)[:80]}."
    raise DatasetError(msg)


_VARIANTS: Final = "variants.txt"


@dataclass(frozen=True)
class AircraftLists:
    """FGVC-Aircraft as published: `variants.txt` in label order, `<image> <variant>` lines per split.

    Attributes:
        folder: the data set's folder in the data folder (the archive's `data/`, renamed).
        template: the hand-written prompt.
    """

    folder: str
    template: str

    def read(self, name: str, data_root: Path) -> Dataset:
        """Read the three lists.

        Raises:
            DatasetError: a missing file, an unknown variant, or an invalid `Dataset`.
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
                        f"{home / file_name}, line {number}: expected an image and a variant from {_VARIANTS}, "
                        f"found {line!r}."
                    )
                    raise DatasetError(msg)
                images.append(LabelledImage(home / "images" / f"{image}.jpg", labels[variant]))
            splits[split] = tuple(images)
            require_files(name, home / file_name, [image.path for image in images])
        return Dataset(name, home / "images", tuple(variants), splits, self.template)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers and stripped lines of a text file, without blank lines.

    Raises:
        DatasetError: unreadable, or not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Cannot read {path} as UTF-8 text: {error}."
        raise DatasetError(msg) from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
