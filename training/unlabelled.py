"""Input of boosting: unlabelled images and the names of all classes."""

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
from training.terminal import print_notes


@dataclass(frozen=True)
class UnlabelledData:
    """Images and class names of one domain.

    Attributes:
        images: readable images, and the paths of unreadable ones.
        class_names: base and new classes.
        template: the data set's hand-written prompt template for the teacher; None for a plain folder.
        labels: class index of each image, to measure accuracy; None for a plain folder.
    """

    images: ImageFolder
    class_names: Sequence[str]
    template: str | None = None
    labels: Sequence[int] | None = None


def read_folder(images: Path, classes: Path, console: Console) -> UnlabelledData:
    """Read a class list, then all images in a folder and its subfolders.

    Raises:
        ClassListError: invalid class list.
        NoImagesError: no readable image.
    """
    names = read_classes(classes)
    with progress_bars(console) as progress:
        task = progress.add_task("reading images", total=None, note="")
        folder = find_images(images, lambda done, total: progress.update(task, completed=done, total=total))
    print_notes(folder.notes, console)
    return UnlabelledData(folder, names)


def read_data_set(name_or_path: str, root: Path | None, console: Console) -> UnlabelledData:
    """Read the train images of a labelled data set; their labels only serve to measure accuracy.

    Raises:
        DatasetError: unknown data set, or no readable train image.
    """
    dataset = open_dataset(name_or_path, root)
    print_notes(dataset.notes, console)
    console.print(f"Reading {len(dataset.split('train'))} train images of {dataset.name}", markup=False)
    return unlabelled_data(dataset)


def unlabelled_data(dataset: Dataset) -> UnlabelledData:
    """The train images of a data set; their labels only serve to measure accuracy.

    Raises:
        DatasetError: no readable train image.
    """
    images = train_images_of(dataset)
    label_of = {image.path: image.label for image in dataset.split("train")}
    labels = [label_of[path] for path in images.files]
    return UnlabelledData(images, dataset.class_names, dataset.template, labels)


def train_images_of(dataset: Dataset) -> ImageFolder:
    """The readable train images of a data set, without labels, and the paths of unreadable ones.

    Raises:
        DatasetError: no train images, or a class without a readable one.
    """
    kept = drop_unreadable(dataset, ("train",))
    files = tuple(sorted({image.path for image in kept.split("train")}))
    unreadable = tuple(sorted(set(kept.unreadable) - set(dataset.unreadable)))
    root = Path(os.path.commonpath([path.parent for path in (*files, *unreadable)]))
    digest = hashlib.sha256()
    for path, file_digest in zip(files, read_in_threads(_hash, files), strict=True):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_digest}\n".encode("utf-8", "surrogateescape"))
    return ImageFolder(root, files, unreadable, f"sha256:{digest.hexdigest()}")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
