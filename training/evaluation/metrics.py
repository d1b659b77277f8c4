"""Metrics: accuracy, harmonic mean, mean and deviation over seeds, confusion matrix. Rates are in per cent.

Legend: N images, K classes.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spread:
    """Statistics of one measure over seeds.

    Attributes:
        mean: mean.
        sd: sample standard deviation (n - 1); None for a single value.
        n: number of values.
    """

    mean: float
    sd: float | None
    n: int


def accuracy(labels_N: NDArray[np.int64], named_N: NDArray[np.int64]) -> float:
    """Correctly classified images in per cent.

    Args:
        labels_N: true classes.
        named_N: predicted classes.

    Raises:
        ValueError: no images, or different lengths.
    """
    if not len(labels_N) or labels_N.shape != named_N.shape:
        raise ValueError(f"{len(named_N)} predictions for {len(labels_N)} images")
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
        raise ValueError("at least one value is required")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def spreads(rows: Iterable[object], measures: Iterable[str]) -> dict[str, Spread]:
    """Statistics of the measures that all rows have; empty without rows.

    Args:
        rows: objects with the measures as attributes, None if missing.
        measures: names of attributes.
    """
    listed = list(rows)
    values = {name: [getattr(row, name) for row in listed] for name in measures}
    return {name: spread(found) for name, found in values.items() if found and None not in found}


def confusion_matrix(labels_N: NDArray[np.int64], named_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Confusion matrix.

    Returns:
        [K, K] counts; rows are true classes, columns predicted classes.

    Raises:
        ValueError: a label is out of range.
    """
    both = np.concatenate([labels_N, named_N])
    if len(both) and not 0 <= both.min() <= both.max() < n_classes:
        raise ValueError(f"labels {both.min()} to {both.max()} are out of range for {n_classes} classes")
    counts = np.bincount(labels_N * n_classes + named_N, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def class_accuracies(confusion_KK: NDArray[np.int64]) -> list[float | None]:
    """Accuracy of each class in per cent; None for a class without images."""
    right, images = np.diagonal(confusion_KK), confusion_KK.sum(axis=1)
    return [100 * float(r / n) if n else None for r, n in zip(right, images, strict=True)]
