"""Data sets of a few coloured pictures: in memory, and in the published layout of the textures data set."""

import json

import numpy as np
from PIL import Image

from training.data.dataset import Dataset, LabelledImage

CLASS_NAMES = ("banded", "dotted", "grid", "woven")


def paint(path, label, number):
    """A noisy picture whose colours follow its class, so that there is something to learn."""
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 60, (32, 32, 3))
    pixels[..., label % 3] += 120
    pixels[: 8 * (label + 1), :, (label + 1) % 3] += 60
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def painted(root, *, name="four", class_names=CLASS_NAMES, train=3, test=2):
    """A data set with that many pictures per class in each split."""
    splits = {
        split: tuple(
            LabelledImage(paint(root / split / f"{label}-{number}.png", label, number + offset), label)
            for label in range(len(class_names))
            for number in range(n_images)
        )
        for split, n_images, offset in (("train", train, 0), ("test", test, 100))
        if n_images
    }
    return Dataset(name, root, tuple(class_names), splits)


def write_textures(root, *, class_names=CLASS_NAMES, train=2, test=1):
    """An imitation of the textures data set below a data folder: `dtd/`, with its split file."""
    lists = {"train": [], "val": [], "test": []}
    for label, name in enumerate(class_names):
        for split, n_images, offset in (("train", train, 0), ("test", test, 100)):
            for number in range(n_images):
                file = f"{name}/{name}_{offset + number}.jpg"
                paint(root / "dtd" / "images" / file, label, offset + number)
                lists[split].append([file, label, name])
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(lists))
    return root


def files_below(folder):
    """Every file with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}
