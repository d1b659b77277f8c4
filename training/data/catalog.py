"""Open a labelled data set: a published one by name, or a folder or table by path.

Names, folders and prompts of the published data sets are CoOp's (DATASETS.md, `datasets/`, `trainers/zsclip.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from prompt_store.manifest import DEFAULT_TEMPLATE
from training.data.class_rewrites import CALTECH_NAMES, EUROSAT_NAMES
from training.data.coop_layout import AircraftLists, Layout, Part, SplitFile
from training.data.dataset import Dataset, Split
from training.data.folder_per_class import read_class_folders
from training.data.imagenet_layout import NumberedFolders, WordNetFolders
from training.data.table import read_table
from training.data.torchvision_sets import PREFIX, TORCHVISION_NAMES, read_torchvision
from training.errors import DatasetError

CATALOG: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "imagenet": WordNetFolders("imagenet", {"train": "images/train", "test": "images/val"}),
        "caltech101": SplitFile(
            "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", new_names=CALTECH_NAMES
        ),
        "oxford_pets": SplitFile(
            "oxford_pets", "images", "split_zhou_OxfordPets.json", "a photo of a {}, a type of pet."
        ),
        "stanford_cars": SplitFile(
            "stanford_cars", "", "split_zhou_StanfordCars.json", parts=(Part("cars_train/"), Part("cars_test/"))
        ),
        "oxford_flowers": SplitFile(
            "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "a photo of a {}, a type of flower."
        ),
        "food101": SplitFile("food-101", "images", "split_zhou_Food101.json", "a photo of {}, a type of food."),
        "fgvc_aircraft": AircraftLists("fgvc_aircraft", "a photo of a {}, a type of aircraft."),
        "sun397": SplitFile("sun397", "SUN397", "split_zhou_SUN397.json"),
        "dtd": SplitFile("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture."),
        "eurosat": SplitFile(
            "eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}.", EUROSAT_NAMES
        ),
        "ucf101": SplitFile("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "a photo of a person doing {}."),
        "imagenetv2": NumberedFolders("imagenetv2", "imagenetv2-matched-frequency-format-val"),
        "imagenet_sketch": WordNetFolders("imagenet-sketch", {"test": "images"}),
        "imagenet_a": WordNetFolders("imagenet-adversarial", {"test": "imagenet-a"}),
        "imagenet_r": WordNetFolders("imagenet-rendition", {"test": "imagenet-r"}),
    }
)


def open_dataset(
    name_or_path: str | Path,
    root: Path | None = None,
    *,
    single_split: Split = "train",
    template: str | None = None,
) -> Dataset:
    """Open a data set.

    Args:
        name_or_path: a name of the catalog (`dtd`), `torchvision:<name>`, a folder of class folders, or a `.csv` or
            `.jsonl` table. A catalog name wins over a folder of that name: write `./dtd` for the folder.
        root: the folder with the published data sets; not needed for paths.
        single_split: the split of images without one.
        template: replaces the data set's hand-written prompt.

    Raises:
        DatasetError: unknown name, missing files, or an invalid data set; a data set of one class is invalid.
        ClassListError: a folder's `classes.txt` is empty or ambiguous.
    """
    dataset = _read(str(name_or_path), root, single_split)
    if len(dataset.class_names) == 1:
        msg = f"{dataset.name} has one class only, {dataset.class_names[0]!r}; at least two are needed."
        raise DatasetError(msg)
    return dataset if template is None else replace(dataset, template=template)


def _read(name: str, root: Path | None, single_split: Split) -> Dataset:
    if name in CATALOG:
        return CATALOG[name].read(name, _require_root(name, root))
    if name.startswith(PREFIX):
        return read_torchvision(name.removeprefix(PREFIX), _require_root(name, root), single_split=single_split)
    path = Path(name)
    if path.is_file() and path.suffix.lower() in {".csv", ".jsonl"}:
        return read_table(path, template=DEFAULT_TEMPLATE)
    if path.is_dir():
        return read_class_folders(path, single_split=single_split)
    msg = (
        f"No data set, folder or table named {name!r}. Use one of {', '.join(CATALOG)}; "
        f"{PREFIX} and one of {', '.join(TORCHVISION_NAMES)}; or the path of a folder or of a .csv or .jsonl file."
    )
    raise DatasetError(msg)


def _require_root(name: str, root: Path | None) -> Path:
    if root is None:
        msg = f"{name}: pass the folder that contains the published data sets."
        raise DatasetError(msg)
    return root
