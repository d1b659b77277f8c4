"""What a domain is boosted on: images without labels, and the names of all its classes."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from training.data.catalog import open_dataset
from training.data.class_list import read_classes
from training.data.dataset import Dataset
from training.data.images import ImageFolder, find_images, read_in_threads
from training.data.readable import drop_unreadable
from training.progress import progress_bars


@dataclass(frozen=True)
class UnlabelledData:
    """Images and classes of one domain.

    Attributes:
        images: the readable ones; damaged ones are counted and named.
        class_names: base and new.
        template: the data set's hand-written prompt for the teacher; None where there is no data set.
    """

    images: ImageFolder
    class_names: Sequence[str]
    template: str | None = None


def read_folder(images: Path, classes: Path, console: Console) -> UnlabelledData:
    """A folder of images, subfolders included, and a class list; the list is read first.

    Raises:
        ClassListError: the class list cannot be used.
        NoImagesError: no readable image.
    """
    names = read_classes(classes)
    with progress_bars(console) as progress:
        task = progress.add_task("reading images", total=None, note="")
        folder = find_images(images, lambda done, total: progress.update(task, completed=done, total=total))
    return UnlabelledData(folder, names)


def read_data_set(name_or_path: str, root: Path | None, console: Console) -> UnlabelledData:
    """The train images of a labelled data set, without their labels.

    Raises:
        DatasetError: no such data set, or it has no train images that can be read.
    """
    dataset = open_dataset(name_or_path, root)
    console.print(f"reading {len(dataset.split('train'))} train images of {dataset.name}", markup=False)
    return UnlabelledData(train_images_of(dataset), dataset.class_names, dataset.template)


def train_images_of(dataset: Dataset) -> ImageFolder:
    """The train images of a data set without their labels; damaged ones are set aside.

    Raises:
        DatasetError: there are none, or none of some class that can be read.
    """
    kept = drop_unreadable(dataset, ("train",))
    files = tuple(sorted({image.path for image in kept.split("train")}))
    unreadable = tuple(sorted(set(kept.unreadable) - set(dataset.unreadable)))
    root = Path(os.path.commonpath([path.parent for path in (*files, *unreadable)]))
    digest = hashlib.sha256()
    for path, found in zip(files, read_in_threads(_hash, files), strict=True):
        digest.update(f"{path.relative_to(root).as_posix()}\0{found}\n".encode("utf-8", "surrogateescape"))
    return ImageFolder(root, files, unreadable, f"sha256:{digest.hexdigest()}")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
