"""Writes a domain's images as image folders for `caspl boost`, `adapt` and `evaluate`.

`train/` contains unlabelled images, `test/` one folder per class, `classes.txt` the class names in label order. A
labelled data set also has class folders in `train/`. All splits use different series.
"""

import shutil
from pathlib import Path
from typing import Final, Literal

from PIL import Image

from training.data.images import ImageFolder, find_images
from training.demo.render import BLOCK, Pictures, draw_series
from training.demo.shifts import DOMAINS, UNSEEN
from training.demo.styles import synthesise
from training.demo.world import CLASS_NAMES, PAIRS

FOLDER_TRAIN_SEED: Final = 500
FOLDER_TEST_SEED: Final = 600
LABELLED_SEED: Final = 800
STYLES: Final = "styles"
"""Clean images, each in a synthesised style of its own."""
DRAWN: Final = DOMAINS | UNSEEN | {STYLES: synthesise}
_JPEG_QUALITY: Final = 95

Suffix = Literal["png", "jpg"]


def class_folder(name: str) -> str:
    """Folder name of a class: words joined by underscores."""
    return name.replace(" ", "_")


def save_picture(pictures: Pictures, index: int, path: Path) -> None:
    """Write one image; the suffix selects the format."""
    pixels_HWC = pictures.pixels[index].permute(1, 2, 0).contiguous().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_HWC).save(path, quality=_JPEG_QUALITY)


def _save_by_class(pictures: Pictures, folder: Path, suffix: Suffix = "png") -> None:
    for index, label in enumerate(pictures.labels.tolist()):
        save_picture(pictures, index, folder / class_folder(CLASS_NAMES[label]) / f"{index:05d}.{suffix}")


def write_folders(
    domain: str, out_dir: Path, *, n_train: int = 4000, n_test: int = 1600, suffix: Suffix = "png", seed: int = 0
) -> None:
    """Write a domain's images to `out_dir`.

    Args:
        domain: a name of `DRAWN`.
        out_dir: an empty or missing folder.
        n_train: unlabelled images in `train/`.
        n_test: labelled images in `test/<class>/`.
        suffix: "png" (lossless) or "jpg" (quality 95).
        seed: added to the seeds of both series.

    Raises:
        ValueError: no such domain.
        FileExistsError: the folder is not empty.
    """
    _begin(domain, out_dir)
    if n_train:
        pictures = draw_series(FOLDER_TRAIN_SEED + seed, n_train, restyle=DRAWN[domain])
        for index in range(n_train):
            save_picture(pictures, index, out_dir / "train" / f"{index:05d}.{suffix}")
    if n_test:
        pictures = draw_series(FOLDER_TEST_SEED + seed, n_test, restyle=DRAWN[domain])
        _save_by_class(pictures, out_dir / "test", suffix)


def write_labelled(
    domain: str, out_dir: Path, *, shots: int, n_test: int, test_seed: int, n_classes: int = len(CLASS_NAMES)
) -> None:
    """Write a domain as a few-shot data set: `train/<class>/` and `test/<class>/`.

    Args:
        domain: a name of `DRAWN`.
        out_dir: an empty or missing folder.
        shots: train images per class, the first ones of their series.
        n_test: total number of test images.
        test_seed: series of the test images.
        n_classes: the first classes; all by default.

    Raises:
        ValueError: no such domain.
        FileExistsError: the folder is not empty.
    """
    _begin(domain, out_dir, n_classes)
    pairs = PAIRS[:n_classes]
    n_left = dict.fromkeys(range(n_classes), shots)
    start = 0
    while any(n_left.values()):
        pictures = draw_series(LABELLED_SEED, BLOCK, pairs=pairs, restyle=DRAWN[domain], start=start)
        for index, label in enumerate(pictures.labels.tolist()):
            if n_left[label]:
                n_left[label] -= 1
                folder = out_dir / "train" / class_folder(CLASS_NAMES[label])
                save_picture(pictures, index, folder / f"{start + index:05d}.png")
        start += BLOCK
    _save_by_class(draw_series(test_seed, n_test, pairs=pairs, restyle=DRAWN[domain]), out_dir / "test")


def write_class_folders(domain: str, out_dir: Path, *, n_train: int, n_test: int, n_classes: int) -> None:
    """Write `train/<class>/` and `test/<class>/` with images of the first `n_classes` classes.

    Raises:
        ValueError: no such domain.
        FileExistsError: the folder is not empty.
    """
    _begin(domain, out_dir, n_classes)
    for split, n_images, seed in (("train", n_train, FOLDER_TRAIN_SEED), ("test", n_test, FOLDER_TEST_SEED)):
        if n_images:
            pictures = draw_series(seed, n_images, pairs=PAIRS[:n_classes], restyle=DRAWN[domain])
            _save_by_class(pictures, out_dir / split)


def cached_images(domain: str, parent: Path, n_images: int, seed: int = 0) -> ImageFolder:
    """The unlabelled images of `write_folders` in a folder below `parent`, drawn unless an earlier call finished."""
    folder = parent / f"{domain}-{n_images}-{seed}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_folders(domain, folder, n_train=n_images, n_test=0, seed=seed)
        (folder / "done").touch()
    return find_images(folder / "train")


def _begin(domain: str, out_dir: Path, n_classes: int = len(CLASS_NAMES)) -> None:
    """Create the folder and its class list."""
    if domain not in DRAWN:
        raise ValueError(f"unknown domain {domain!r}; use one of {', '.join(DRAWN)}")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise FileExistsError(f"the folder {out_dir} is not empty")
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES[:n_classes]))
