"""Few-shot sampling and base-to-new splits.

The base-to-new protocol samples the shots over all classes first and splits the classes afterwards
(`base_and_new(few_shot(dataset, 16, seed=1))`), which reproduces the samples of the reference repositories.
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
    """Sample at most `shots` train images per class without replacement; the test split is unchanged.

    One `random.Random(seed)` samples train and then val (at most 4 images per class), with classes in the order of
    their first image. Classes with fewer images keep all of them.
    Source: Dassl, `generate_fewshot_dataset`, called as in CoOp's data sets after `random.seed(seed)`.

    Args:
        dataset: has train images.
        shots: images per class, at least 1.
        seed: deterministic for the same order of images.

    Raises:
        DatasetError: there are no train images.
        ValueError: `shots` is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    rng = random.Random(seed)  # noqa: S311  # not security-relevant: the reference's generator
    splits = dict(dataset.splits)
    splits["train"] = _sample(dataset.split("train"), shots, rng)
    if "val" in splits:
        splits["val"] = _sample(splits["val"], min(shots, MAX_VAL_SHOTS), rng)
    return replace(dataset, splits=splits)


def _sample(images: Sequence[LabelledImage], shots: int, rng: random.Random) -> tuple[LabelledImage, ...]:
    by_label: dict[int, list[LabelledImage]] = defaultdict(list)
    for image in images:
        by_label[image.label].append(image)
    drawn: list[LabelledImage] = []
    for group in by_label.values():
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return tuple(drawn)


def base_and_new(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Split the classes: base, the first ⌈K/2⌉ in label order, and new, the rest with labels from 0.

    All splits are divided; images keep their order.
    Source: CoCoOp (arXiv 2203.05557) section 4.1; CoOp's repository, `subsample_classes`.

    Raises:
        DatasetError: fewer than two classes, or a half without images.
    """
    n_classes = len(dataset.class_names)
    if n_classes < 2:
        msg = f"{dataset.name}: a base-to-new split requires at least 2 classes."
        raise DatasetError(msg)
    n_base = math.ceil(n_classes / 2)
    return _class_range(dataset, "base", 0, n_base), _class_range(dataset, "new", n_base, n_classes)


def _class_range(dataset: Dataset, half: str, start: int, stop: int) -> Dataset:
    """The data set with the classes `start`…`stop - 1` only."""
    splits: dict[Split, tuple[LabelledImage, ...]] = {
        split: tuple(LabelledImage(image.path, image.label - start) for image in images if start <= image.label < stop)
        for split, images in dataset.splits.items()
    }
    return replace(dataset, name=f"{dataset.name} ({half})", class_names=dataset.class_names[start:stop], splits=splits)
