"""Unlabelled images: the input of boosting and of label-free methods with class names, and of a few-shot fit."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from training.data.catalog import open_dataset
from training.data.class_list import read_classes
from training.data.dataset import Dataset, shorten
from training.data.images import ImageFolder, find_images, hash_readable, read_in_threads
from training.data.readable import drop_unreadable
from training.errors import NoImagesError
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
    return UnlabelledData(read_images(images, console), names)


def read_images(root: Path, console: Console) -> ImageFolder:
    """Find all readable images in a folder and its subfolders, and print which other files are not read.

    Raises:
        NoImagesError: no readable image.
    """
    with progress_bars(console) as progress:
        task = progress.add_task("reading images", total=None, note="")
        folder = find_images(root, lambda done, total: progress.update(task, completed=done, total=total))
    print_notes(folder.notes, console)
    return folder


def read_further_images(root: Path, labelled: Sequence[Path], console: Console, *, strict: bool) -> ImageFolder:
    """Find the images of a folder whose content is not among the labelled ones; prints the number of others.

    Args:
        root: searched recursively.
        labelled: readable files.
        console: shows progress.
        strict: raise for unreadable images instead of leaving them out.

    Raises:
        NoImagesError: no such folder, no further images in it, or `strict` and an image is unreadable.
    """
    folder = read_images(root, console)
    report_folder(folder, console)
    if strict and folder.unreadable:
        msg = f"{len(folder.unreadable)} images in {root} are unreadable. Replace or remove them."
        raise NoImagesError(msg)
    known = set(read_in_threads(_hash, labelled))
    hashes = read_in_threads(_hash, folder.files)
    files = tuple(path for path, found in zip(folder.files, hashes, strict=True) if found not in known)
    if not files:
        msg = f"All images in {root} are among the labelled images. Pass a folder of other images."
        raise NoImagesError(msg)
    if n_known := len(folder.files) - len(files):
        line = f"{n_known} of these are among the labelled images and are not used again"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return replace(folder, files=files, digest=_digest(root, files))


def report_folder(folder: ImageFolder, console: Console) -> None:
    """Print the number of images and the unreadable ones."""
    # markup=False: rich would interpret brackets in file names as styles.
    console.print(f"{len(folder.files)} images in {folder.root}", markup=False, highlight=False, soft_wrap=True)
    if folder.unreadable:
        skipped = shorten(path.relative_to(folder.root) for path in folder.unreadable)
        line = f"Skipped unreadable images ({len(folder.unreadable)}): {skipped}"
        console.print(line, style="yellow", markup=False, soft_wrap=True)


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
    return ImageFolder(root, files, unreadable, _digest(root, files))


def train_images_without_labels(dataset: Dataset, console: Console) -> ImageFolder:
    """The readable train images of a data set, ordered as in `by_content`, and the paths of unreadable ones.

    No label is read, so that a class may have no readable image.

    Raises:
        DatasetError: the data set has no train split.
        NoImagesError: no readable image.
    """
    paths = sorted({image.path for image in dataset.split("train")})
    with progress_bars(console) as progress:
        task = progress.add_task("reading images", total=len(paths), note="")
        hashes = read_in_threads(hash_readable, paths, lambda done, _: progress.update(task, completed=done))
    unreadable = tuple(path for path, found in zip(paths, hashes, strict=True) if found is None)
    if len(unreadable) == len(paths):
        msg = f"{dataset.name}: none of {len(paths)} train images is readable."
        raise NoImagesError(msg)
    files, digest = _order_by_content((found, path) for path, found in zip(paths, hashes, strict=True) if found)
    return ImageFolder(dataset.root, files, unreadable, digest)


def by_content(folder: ImageFolder) -> ImageFolder:
    """The same images in the order of the SHA-256 of their contents, with a digest over contents alone.

    File names then have no effect on a run: they may contain labels.
    """
    hashes = read_in_threads(_hash, folder.files)
    files, digest = _order_by_content(zip(hashes, folder.files, strict=True))
    return replace(folder, files=files, digest=digest)


def _order_by_content(hashed: Iterable[tuple[str, Path]]) -> tuple[tuple[Path, ...], str]:
    """Files in the order of their hashes, and a digest over the hashes."""
    ordered = sorted(hashed)
    digest = hashlib.sha256("".join(f"{found}\n" for found, _ in ordered).encode())
    return tuple(path for _, path in ordered), f"sha256:{digest.hexdigest()}"


def _digest(root: Path, files: Sequence[Path]) -> str:
    """As in `ImageFolder`."""
    digest = hashlib.sha256()
    for path, file_digest in zip(files, read_in_threads(_hash, files), strict=True):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_digest}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{digest.hexdigest()}"


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
