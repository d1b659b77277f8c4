"""Small data sets: images, split files, published layouts in miniature."""

import json
import zlib

import numpy as np
import torch
from PIL import Image

from prompted_clip.preprocess import to_pixels
from training.data.dataset import Dataset, LabelledImage


def draw(path, size=8):
    """Save a small image of noise; its pixels follow from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path)
    return path


def draw_all(root, *names):
    """Save an image under each of these names below `root`."""
    for name in names:
        draw(root / name)
    return root


def draw_pets(root, n_images):
    """Three class folders with noise of different brightness, which a tiny backbone can tell apart."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "striped_circle", "dog")):
        (root / name).mkdir()
        for index in range(n_images):
            pixels = (rng.integers(0, 60, (36, 40, 3)) + 60 * label).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def pixels_of(paths, preprocess):
    """Images preprocessed for a backbone of side 32, uint8 [N, 3, 32, 32]."""
    images = [Image.open(path).convert("RGB") for path in paths]
    return torch.from_numpy(np.stack([to_pixels(image, 32, preprocess) for image in images]))


def write(path, text):
    """Write text, making the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_split_layout(root, images, split_file, lists):
    """A data set in CoOp's layout: the images that the lists name, and the split file."""
    for entries in lists.values():
        for name, _, _ in entries:
            draw(root / images / name)
    write(root / split_file, json.dumps(lists))
    return root


def imagined(root, splits, n_classes, **fields):
    """A data set of files that need not exist; `splits` maps a split to labels in order."""
    images = {
        split: tuple(LabelledImage(root / split / f"{index}.jpg", label) for index, label in enumerate(labels))
        for split, labels in splits.items()
    }
    return Dataset("imagined", root, tuple(f"class {label}" for label in range(n_classes)), images, **fields)


def relative(dataset, split):
    """(path below the root, class name) of each image of a split."""
    return [
        (image.path.relative_to(dataset.root).as_posix(), dataset.class_names[image.label])
        for image in dataset.split(split)
    ]
