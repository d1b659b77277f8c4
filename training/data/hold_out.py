"""Images held out of training, to measure whether it helped."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from training.data.dataset import Dataset, shorten

MAX_HELD_OUT: Final = 1000
"""Limit of `hold_out`: more images take longer to score and hardly change the result."""


def hold_out(n_images: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split image indices at random into training and held-out ones, each in ascending order.

    Holds out `fraction` of the images, at least one and at most `MAX_HELD_OUT`; nothing if the fraction is 0 or there
    is a single image.
    """
    n_held_out = min(max(1, round(n_images * fraction)), MAX_HELD_OUT, n_images - 1) if fraction else 0
    held_out = set(random.Random(seed).sample(range(n_images), n_held_out))  # noqa: S311  not security-relevant
    return [index for index in range(n_images) if index not in held_out], sorted(held_out)


def hold_out_per_class(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Move `fraction` of each class's train images, at least one, to the `val` split.

    Classes with a single train image keep it. A data set that has a `val` split is returned as it is. With `fraction` 0
    the `val` split is dropped.
    """
    if not fraction:
        return replace(dataset, splits={name: images for name, images in dataset.splits.items() if name != "val"})
    if "val" in dataset.splits:
        return dataset
    images = dataset.split("train")
    by_label: dict[int, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_label[image.label].append(index)
    rng = random.Random(seed)  # noqa: S311  not security-relevant
    held_out = set[int]()
    for indices in by_label.values():
        if len(indices) > 1:
            held_out.update(rng.sample(indices, max(1, round(len(indices) * fraction))))
    kept = tuple(image for index, image in enumerate(images) if index not in held_out)
    return replace(dataset, splits={**dataset.splits, "train": kept, "val": tuple(images[i] for i in sorted(held_out))})


def describe_held_out(n_held_out: int, n_train: int, empty_classes: Sequence[str] = ()) -> str:
    """One line about the held-out images: how many, how coarse their score is, and classes without any."""
    if not n_held_out:
        return (
            "No images are held out: the last step is written, and nothing checks whether it is better than the model "
            "was before."
        )
    text = f"{n_held_out} images held out, {n_train} to train on."
    if n_held_out < 50:
        text += f" These are few: one image is {1 / n_held_out:.1%} of the score."
    if empty_classes:
        text += f" No image to hold out in {len(empty_classes)} classes: {shorten(empty_classes)}."
    return text
