"""ImageNet and its test-only variants in CoOp's layout: folders named by WordNet id, and `classnames.txt`.

`classnames.txt` has one line per class, `<WordNet id> <class name>`, in ImageNet's label order; all variants use the
same file. Source: KaiyangZhou/CoOp, DATASETS.md and `datasets/imagenet*.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prompt_store.manifest import DEFAULT_TEMPLATE
from training.data.coop_layout import Part, read_lines, require_parts
from training.data.dataset import Dataset, LabelledImage, Split, shorten
from training.data.listing import describe_left_out, list_folders, list_images
from training.errors import DatasetError

_CLASS_NAMES: Final = "classnames.txt"

# Differs from CoOp: CLIP's class names contain two duplicates ("missile", "sunglasses"). A bundle requires distinct
# names, so the second of each pair uses WordNet's name.
_OWN_NAMES: Final[Mapping[tuple[str, str], str]] = {
    ("n04008634", "missile"): "projectile",
    ("n04355933", "sunglasses"): "sunglass",
}


@dataclass(frozen=True)
class WordNetFolders:
    """One image folder per class and split, named by WordNet id; labels follow the sorted ids.

    Variants with fewer classes (A and R have 200) number their classes from 0.

    Attributes:
        folder: the data set's folder in the data folder.
        splits: folder of class folders by split, inside `folder`.
        template: hand-written prompt.
    """

    folder: str
    splits: Mapping[Split, str]
    template: str = DEFAULT_TEMPLATE

    def read(self, name: str, data_root: Path) -> Dataset:
        """List the class folders; images are sorted by path.

        Raises:
            DatasetError: a missing part, a folder that is not in `classnames.txt`, or an invalid `Dataset`.
        """
        parts = [Part(f"{path}/", "<WordNet id>/*") for path in self.splits.values()]
        home = require_parts(name, data_root, self.folder, [*parts, _CLASS_NAMES_PART])
        names = dict(_read_class_names(home / _CLASS_NAMES))
        folders = {split: list_folders(home / path) for split, path in self.splits.items()}
        ids = sorted({folder for found in folders.values() for folder in found})
        unknown = [folder for folder in ids if folder not in names]
        if unknown:
            msg = f"{name}: {home / _CLASS_NAMES} does not list the class folders {shorten(unknown)}."
            raise DatasetError(msg)
        left_out: Counter[str] = Counter()
        images: dict[Split, tuple[LabelledImage, ...]] = {
            split: _list_labelled(
                [
                    (label, home / self.splits[split] / wordnet_id)
                    for label, wordnet_id in enumerate(ids)
                    if wordnet_id in found
                ],
                left_out,
            )
            for split, found in ((split, frozenset(found)) for split, found in folders.items())
        }
        class_names = tuple(names[wordnet_id] for wordnet_id in ids)
        return Dataset(name, home, class_names, images, self.template, notes=_notes(left_out))


@dataclass(frozen=True)
class NumberedFolders:
    """ImageNetV2: test images in folders named by ImageNet's label, 0 to 999.

    Attributes:
        folder: the data set's folder in the data folder.
        images: folder of class folders, inside `folder`.
        template: hand-written prompt.
    """

    folder: str
    images: str
    template: str = DEFAULT_TEMPLATE

    def read(self, name: str, data_root: Path) -> Dataset:
        """List the class folders in label order; images are sorted by path.

        Raises:
            DatasetError: a missing part, a folder that is not a label, or an invalid `Dataset`.
        """
        parts = (Part(f"{self.images}/", "<label>/*, from 0"), _CLASS_NAMES_PART)
        home = require_parts(name, data_root, self.folder, parts)
        class_names = tuple(class_name for _, class_name in _read_class_names(home / _CLASS_NAMES))
        found, labels = list_folders(home / self.images), {str(label) for label in range(len(class_names))}
        if set(found) != labels:
            odd = sorted(set(found) ^ labels)
            msg = (
                f"{name}: {home / self.images} must contain the folders 0 to {len(class_names) - 1}, one per line of "
                f"{_CLASS_NAMES}; missing or unexpected: {shorten(odd)}."
            )
            raise DatasetError(msg)
        left_out: Counter[str] = Counter()
        class_folders = [(label, home / self.images / str(label)) for label in range(len(class_names))]
        images = _list_labelled(class_folders, left_out)
        return Dataset(name, home, class_names, {"test": images}, self.template, notes=_notes(left_out))


_CLASS_NAMES_PART: Final = Part(_CLASS_NAMES, "ImageNet's: <WordNet id> <class name>")


def _list_labelled(class_folders: Sequence[tuple[int, Path]], left_out: Counter[str]) -> tuple[LabelledImage, ...]:
    """The images of labelled folders, sorted by path within a folder; counts other files in `left_out`."""
    images: list[LabelledImage] = []
    for label, folder in class_folders:
        listing = list_images(folder)
        left_out += listing.left_out
        images += [LabelledImage(path, label) for path in listing.images]
    return tuple(images)


def _notes(left_out: Counter[str]) -> tuple[str, ...]:
    return tuple(filter(None, [describe_left_out(left_out)]))


def _read_class_names(path: Path) -> list[tuple[str, str]]:
    """WordNet ids and class names in file order."""
    names: dict[str, str] = {}
    for number, line in read_lines(path):
        wordnet_id, _, class_name = line.partition(" ")
        if not class_name or wordnet_id in names:
            msg = f"{path}, line {number}: expected a unique WordNet id and a class name, found {line!r}."
            raise DatasetError(msg)
        names[wordnet_id] = _OWN_NAMES.get((wordnet_id, class_name), class_name)
    return list(names.items())
