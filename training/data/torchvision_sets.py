"""Data sets that torchvision can read, in the folders where torchvision keeps them; nothing is downloaded.

torchvision is imported when such a data set is asked for, never before. Splits are the authors' own, not CoOp's:
numbers from here do not compare with published few-shot or base-to-new tables.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from training.data.class_rewrites import EUROSAT_NAMES
from training.data.dataset import DEFAULT_TEMPLATE, Dataset, LabelledImage, Split, shorten
from training.data.listing import require_files
from training.errors import DatasetError

PREFIX: Final = "torchvision:"
_Arguments = Mapping[str, Any]
_Contents = tuple[list[str], list[tuple[Path, int]]]  # class names; path and label of each image

_ALL: Final[Mapping[Split, str]] = {"train": "train", "val": "val", "test": "test"}
_NO_VAL: Final[Mapping[Split, str]] = {"train": "train", "test": "test"}
_JOINT_VAL: Final[Mapping[Split, str]] = {"train": "trainval", "test": "test"}
_NONE: Final[Mapping[Split, str]] = {}


def _list_by_loader(kind: Any, root: Path, arguments: _Arguments) -> _Contents:  # noqa: ANN401  # torchvision is untyped
    """List through the `loader` that these classes call for each path: ours hands the path on."""
    listed = kind(root, download=False, loader=Path, **arguments)
    return list(listed.classes), [listed[index] for index in range(len(listed))]


def _list_pets(kind: Any, root: Path, arguments: _Arguments) -> _Contents:  # noqa: ANN401
    listed = kind(root, download=False, **arguments)
    # Private: this class takes no loader and shows its paths nowhere else.
    return list(listed.classes), list(zip(listed._images, listed._labels, strict=True))


def _list_caltech(kind: Any, root: Path, arguments: _Arguments) -> _Contents:  # noqa: ANN401
    listed = kind(root, download=False, **arguments)
    folders = [Path(listed.root, "101_ObjectCategories", category) for category in listed.categories]
    paths = [folders[label] / f"image_{number:04d}.jpg" for label, number in zip(listed.y, listed.index, strict=True)]
    return list(listed.categories), list(zip(paths, listed.y, strict=True))


def _read_scene(name: str) -> str:
    """`apartment_building/outdoor` is an outdoor apartment building."""
    return " ".join(reversed(name.split("/")))


def _read_land_use(name: str) -> str:
    return EUROSAT_NAMES.get(name, name)


@dataclass(frozen=True)
class _Source:
    """One of torchvision's classes.

    Attributes:
        kind: its name in `torchvision.datasets`.
        folder: what it looks for below the root.
        splits: its own name of each split; none if it has no splits.
        template: the hand-written prompt.
        list_images: class names and labelled paths of one split.
        read_name: a class name as a prompt has it.
    """

    kind: str
    folder: str
    splits: Mapping[Split, str]
    template: str = DEFAULT_TEMPLATE
    list_images: Callable[[Any, Path, _Arguments], _Contents] = _list_by_loader
    read_name: Callable[[str], str] = str


_SOURCES: Final[Mapping[str, _Source]] = MappingProxyType(
    {
        "caltech101": _Source("Caltech101", "caltech101", _NONE, list_images=_list_caltech),
        "dtd": _Source("DTD", "dtd/dtd", _ALL, "{} texture."),
        "eurosat": _Source(
            "EuroSAT", "eurosat/2750", _NONE, "a centered satellite photo of {}.", read_name=_read_land_use
        ),
        "fgvc_aircraft": _Source("FGVCAircraft", "fgvc-aircraft-2013b", _ALL, "a photo of a {}, a type of aircraft."),
        "flowers102": _Source("Flowers102", "flowers-102", _ALL, "a photo of a {}, a type of flower."),
        "food101": _Source("Food101", "food-101", _NO_VAL, "a photo of {}, a type of food."),
        "oxford_iiit_pet": _Source(
            "OxfordIIITPet", "oxford-iiit-pet", _JOINT_VAL, "a photo of a {}, a type of pet.", list_images=_list_pets
        ),
        "stanford_cars": _Source("StanfordCars", "stanford_cars", _NO_VAL),
        "sun397": _Source("SUN397", "SUN397", _NONE, read_name=_read_scene),
    }
)
TORCHVISION_NAMES: Final = tuple(_SOURCES)


def read_torchvision(name: str, root: Path, *, single_split: Split = "train") -> Dataset:
    """Read a data set through torchvision (0.22 or newer), from what is on disk.

    Args:
        name: one of `TORCHVISION_NAMES`.
        root: the folder torchvision calls `root`.
        single_split: what the images of a data set without splits are taken for (Caltech101, EuroSAT, SUN397).

    Raises:
        DatasetError: no such name, torchvision is not installed, it finds nothing or something else below `root`, or
            what `Dataset` refuses.
    """
    source = _SOURCES.get(name)
    if source is None:
        msg = f"torchvision reads no data set called {name!r} here; expected one of {', '.join(TORCHVISION_NAMES)}."
        raise DatasetError(msg)
    try:
        kind = getattr(importlib.import_module("torchvision.datasets"), source.kind)
    except ImportError as error:
        msg = (
            f"{PREFIX}{name} needs torchvision, which cannot be imported ({error}); install it: pip install torchvision"
        )
        raise DatasetError(msg) from error
    # Looked up first: some of the classes create their folder before they find it empty.
    if not (root / source.folder).is_dir():
        msg = f"{PREFIX}{name}: expected torchvision's folder {source.folder} below {root}; there is none."
        raise DatasetError(msg)
    arguments: dict[Split, _Arguments] = {split: {"split": own} for split, own in source.splits.items()}
    try:
        contents = {
            split: source.list_images(kind, root, own) for split, own in (arguments or {single_split: {}}).items()
        }
    except (RuntimeError, OSError, LookupError, ValueError, TypeError, ImportError) as error:
        msg = f"{PREFIX}{name}: torchvision cannot read {root / source.folder}: {error}"
        raise DatasetError(msg) from error
    return _join(source, f"{PREFIX}{name}", root / source.folder, contents)


def _join(source: _Source, name: str, root: Path, contents: Mapping[Split, _Contents]) -> Dataset:
    """One data set from what was listed per split."""
    class_names, _ = next(iter(contents.values()))
    for split, (others, _) in contents.items():
        if others != class_names:
            odd = shorten(sorted(set(others) ^ set(class_names)))
            msg = f"{name}: expected the same classes in every split; {split} differs in {odd}."
            raise DatasetError(msg)
    splits: dict[Split, tuple[LabelledImage, ...]] = {}
    for split, (_, pairs) in contents.items():
        images = [LabelledImage(Path(path), int(label)) for path, label in pairs]
        require_files(name, root, [image.path for image in images])
        # Without official splits the order is that of the file system.
        splits[split] = tuple(images if source.splits else sorted(images, key=lambda image: (image.label, image.path)))
    return Dataset(name, root, tuple(source.read_name(spelled) for spelled in class_names), splits, source.template)
