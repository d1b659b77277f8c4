"""Numbers made from answers: accuracy, harmonic mean, spread over seeds, and confusion.

Knows arrays only. Does not know models, data sets or protocols. Rates are in per cent throughout.

Legend: N images, K classes.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spread:
    """Values of one measure over seeds.

    Attributes:
        mean: their mean.
        sd: sample standard deviation (n - 1); None for a single value, which has none.
        n: how many.
    """

    mean: float
    sd: float | None
    n: int


def accuracy(labels_N: NDArray[np.int64], named_N: NDArray[np.int64]) -> float:
    """Images whose class was named, in per cent.

    Args:
        labels_N: true class of each image.
        named_N: class that was named for it.

    Raises:
        ValueError: no image, or as many answers as images were not given.
    """
    if not len(labels_N) or labels_N.shape != named_N.shape:
        raise ValueError(f"expected one answer for each of at least 1 image, found {len(named_N)} for {len(labels_N)}")
    return 100 * float(np.mean(labels_N == named_N))


def harmonic_mean(base: float, new: float) -> float:
    """H = 2·B·N / (B + N), 0 when both are 0. Source: CoCoOp (arXiv 2203.05557), section 4.1, after Xian et al."""
    return 2 * base * new / (base + new) if base + new else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("expected at least one value, found none")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def confusion_matrix(labels_N: NDArray[np.int64], named_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """How often each class was named for each class.

    Returns:
        [K, K] counts; rows are true classes, columns named ones.

    Raises:
        ValueError: a label lies outside 0 to `n_classes` - 1.
    """
    both = np.concatenate([labels_N, named_N])
    if len(both) and not 0 <= both.min() <= both.max() < n_classes:
        raise ValueError(f"expected labels from 0 to {n_classes - 1}, found {both.min()} to {both.max()}")
    counts = np.bincount(labels_N * n_classes + named_N, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def class_accuracies(confusion_KK: NDArray[np.int64]) -> list[float | None]:
    """Accuracy among the images of each class, in per cent; None for a class without images."""
    right, images = np.diagonal(confusion_KK), confusion_KK.sum(axis=1)
    return [100 * float(r / n) if n else None for r, n in zip(right, images, strict=True)]
