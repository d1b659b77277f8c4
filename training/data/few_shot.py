"""Which part of a data set a run sees: a few images per class, or one half of the classes.

The base-to-new protocol draws the shots over all classes first and takes the halves afterwards
(`base_and_new(few_shot(dataset, 16, seed=1))`): that order gives the draws of the reference repositories.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from training.data.dataset import Dataset, LabelledImage, Split
from training.errors import DatasetError

MAX_VAL_SHOTS: Final = 4  # CoOp validates on at most four images per class


def few_shot(dataset: Dataset, shots: int, *, seed: int) -> Dataset:
    """Keep at most `shots` train images per class, drawn without replacement; the test split stays whole.

    One stream of Python's Mersenne Twister, seeded once, serves train and then val (at most 4 images per class); in
    each, classes are drawn in the order of their first image. Classes with fewer images keep all they have.
    Source: Dassl, `generate_fewshot_dataset`, called as in CoOp's data sets after `random.seed(seed)`.

    Args:
        dataset: has train images.
        shots: images per class, at least 1.
        seed: same seed and same order of images, same draw.

    Raises:
        DatasetError: there are no train images.
        ValueError: `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"expected at least 1 shot, found {shots}")
    rng = random.Random(seed)  # noqa: S311  # not a secret: the reference's generator
    splits = dict(dataset.splits)
    splits["train"] = _draw(dataset.split("train"), shots, rng)
    if "val" in splits:
        splits["val"] = _draw(splits["val"], min(shots, MAX_VAL_SHOTS), rng)
    return replace(dataset, splits=splits)


def _draw(images: Sequence[LabelledImage], shots: int, rng: random.Random) -> tuple[LabelledImage, ...]:
    by_label: dict[int, list[LabelledImage]] = defaultdict(list)
    for image in images:
        by_label[image.label].append(image)
    drawn: list[LabelledImage] = []
    for group in by_label.values():
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return tuple(drawn)


def base_and_new(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Split the classes in two: base, the first ⌈K/2⌉ in label order, and new, the rest, relabelled from 0.

    Every split is divided; images keep their order.
    Source: CoCoOp (arXiv 2203.05557) section 4.1; CoOp's repository, `subsample_classes`.

    Raises:
        DatasetError: there are fewer than two classes, or a half has no image at all.
    """
    n_classes = len(dataset.class_names)
    if n_classes < 2:
        msg = f"{dataset.name}: expected at least 2 classes to divide into base and new, found {n_classes}."
        raise DatasetError(msg)
    n_base = math.ceil(n_classes / 2)
    return _take(dataset, "base", 0, n_base), _take(dataset, "new", n_base, n_classes)


def _take(dataset: Dataset, half: str, start: int, stop: int) -> Dataset:
    """The classes `start`…`stop - 1`."""
    splits: dict[Split, tuple[LabelledImage, ...]] = {
        split: tuple(LabelledImage(image.path, image.label - start) for image in images if start <= image.label < stop)
        for split, images in dataset.splits.items()
    }
    return replace(dataset, name=f"{dataset.name} ({half})", class_names=dataset.class_names[start:stop], splits=splits)
