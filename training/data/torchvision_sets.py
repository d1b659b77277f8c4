"""Data sets in torchvision's folder layout; nothing is downloaded.

The splits are the authors', not CoOp's, so results are not comparable with published few-shot or base-to-new tables.
torchvision is imported on first use.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from prompt_store.manifest import DEFAULT_TEMPLATE
from training.data.class_rewrites import EUROSAT_NAMES
from training.data.dataset import Dataset, LabelledImage, Split, shorten
from training.data.listing import require_files, suggest_root
from training.errors import DatasetError

PREFIX: Final = "torchvision:"
_Arguments = Mapping[str, Any]
_Contents = tuple[list[str], list[tuple[Path, int]]]  # class names; path and label of each image

_ALL: Final[Mapping[Split, str]] = {"train": "train", "val": "val", "test": "test"}
_NO_VAL: Final[Mapping[Split, str]] = {"train": "train", "test": "test"}
_JOINT_VAL: Final[Mapping[Split, str]] = {"train": "trainval", "test": "test"}
_NONE: Final[Mapping[Split, str]] = {}


def _list_by_loader(kind: Any, root: Path, arguments: _Arguments) -> _Contents:  # noqa: ANN401  # torchvision is untyped
    """List paths through the `loader` argument that these classes call for each path."""
    listed = kind(root, download=False, loader=Path, **arguments)
    return list(listed.classes), [listed[index] for index in range(len(listed))]


def _list_pets(kind: Any, root: Path, arguments: _Arguments) -> _Contents:  # noqa: ANN401
    listed = kind(root, download=False, **arguments)
    # Private attributes: this class has no loader argument and no public paths.
    return list(listed.classes), list(zip(listed._images, listed._labels, strict=True))


def _list_caltech(kind: Any, root: Path, arguments: _Arguments) -> _Contents:  # noqa: ANN401
    listed = kind(root, download=False, **arguments)
    folders = [Path(listed.root, "101_ObjectCategories", category) for category in listed.categories]
    paths = [folders[label] / f"image_{number:04d}.jpg" for label, number in zip(listed.y, listed.index, strict=True)]
    return list(listed.categories), list(zip(paths, listed.y, strict=True))


def _read_scene(name: str) -> str:
    """`apartment_building/outdoor` becomes `outdoor apartment_building`."""
    return " ".join(reversed(name.split("/")))


def _read_land_use(name: str) -> str:
    return EUROSAT_NAMES.get(name, name)


@dataclass(frozen=True)
class _TorchvisionSet:
    """One of torchvision's data sets.

    Attributes:
        kind: class name in `torchvision.datasets`.
        folder: its folder inside the root.
        splits: torchvision's name of each split; empty if it has no splits.
        template: hand-written prompt.
        list_images: lists class names and labelled paths of one split.
        read_name: converts a class name for prompts.
    """

    kind: str
    folder: str
    splits: Mapping[Split, str]
    template: str = DEFAULT_TEMPLATE
    list_images: Callable[[Any, Path, _Arguments], _Contents] = _list_by_loader
    read_name: Callable[[str], str] = str


_SOURCES: Final[Mapping[str, _TorchvisionSet]] = MappingProxyType(
    {
        "caltech101": _TorchvisionSet("Caltech101", "caltech101", _NONE, list_images=_list_caltech),
        "dtd": _TorchvisionSet("DTD", "dtd/dtd", _ALL, "{} texture."),
        "eurosat": _TorchvisionSet(
            "EuroSAT", "eurosat/2750", _NONE, "a centered satellite photo of {}.", read_name=_read_land_use
        ),
        "fgvc_aircraft": _TorchvisionSet(
            "FGVCAircraft", "fgvc-aircraft-2013b", _ALL, "a photo of a {}, a type of aircraft."
        ),
        "flowers102": _TorchvisionSet("Flowers102", "flowers-102", _ALL, "a photo of a {}, a type of flower."),
        "food101": _TorchvisionSet("Food101", "food-101", _NO_VAL, "a photo of {}, a type of food."),
        "oxford_iiit_pet": _TorchvisionSet(
            "OxfordIIITPet", "oxford-iiit-pet", _JOINT_VAL, "a photo of a {}, a type of pet.", list_images=_list_pets
        ),
        "stanford_cars": _TorchvisionSet("StanfordCars", "stanford_cars", _NO_VAL),
        "sun397": _TorchvisionSet("SUN397", "SUN397", _NONE, read_name=_read_scene),
    }
)
TORCHVISION_NAMES: Final = tuple(_SOURCES)


def read_torchvision(name: str, root: Path, *, single_split: Split = "train") -> Dataset:
    """Read a data set from disk through torchvision (0.22 or newer).

    Args:
        name: one of `TORCHVISION_NAMES`.
        root: torchvision's `root`.
        single_split: the split of data sets without official splits (Caltech101, EuroSAT, SUN397).

    Raises:
        DatasetError: unknown name, torchvision is not installed, missing or invalid files, or an invalid `Dataset`.
    """
    source = _SOURCES.get(name)
    if source is None:
        msg = f"Unknown torchvision data set {name!r}; use one of {', '.join(TORCHVISION_NAMES)}."
        raise DatasetError(msg)
    try:
        kind = getattr(importlib.import_module("torchvision.datasets"), source.kind)
    except ImportError as error:
        msg = f"{PREFIX}{name} requires torchvision, which cannot be imported ({error}): pip install torchvision"
        raise DatasetError(msg) from error
    # Checked first: some of the classes create their folder.
    if not (root / source.folder).is_dir():
        msg = f"{PREFIX}{name}: no folder {source.folder} in {root}.{suggest_root(root, source.folder)}"
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


def _join(source: _TorchvisionSet, name: str, root: Path, contents: Mapping[Split, _Contents]) -> Dataset:
    """Combine the splits into one data set."""
    class_names, _ = next(iter(contents.values()))
    for split, (others, _) in contents.items():
        if others != class_names:
            odd = shorten(sorted(set(others) ^ set(class_names)))
            msg = f"{name}: all splits must have the same classes; {split} differs in {odd}."
            raise DatasetError(msg)
    splits: dict[Split, tuple[LabelledImage, ...]] = {}
    for split, (_, pairs) in contents.items():
        images = [LabelledImage(Path(path), int(label)) for path, label in pairs]
        require_files(name, root, [image.path for image in images])
        # Data sets without official splits are listed in file-system order.
        splits[split] = tuple(images if source.splits else sorted(images, key=lambda image: (image.label, image.path)))
    return Dataset(name, root, tuple(source.read_name(spelled) for spelled in class_names), splits, source.template)
