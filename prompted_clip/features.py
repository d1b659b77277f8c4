"""Image features of labelled examples, with everything about them that no label changes.

Legend: N examples, K classes, E joint width.
"""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ORDER_SCALE: Final = 1000
"""Projections of two different images differ by far more than 1/1000, those of one image in two batches by far less."""
MAX_MOVED: Final = 4
"""A kept decomposition is used again for other examples if less than the width over this number differ."""


@dataclass(frozen=True, eq=False)
class LinearTerm:
    """W f + b."""

    weight_KE: Floats
    bias_K: Floats

    def __call__(self, features_NE: Floats) -> Floats:
        """[N, K]."""
        scores_NK: Floats = features_NE @ self.weight_KE.T + self.bias_K
        return scores_NK


class Features:
    """Features of the labelled examples of a fit, unit norm.

    Their Gram matrix, its eigenvectors and the features in that basis are computed on first use and kept: after a
    change of labels they are the same.

    Attributes:
        values_NE: the features.
        starts: where the last search for the alpha of a method ended, as its index and 1/T; the next one starts there.
    """

    def __init__(self, values_NE: Floats) -> None:
        self.values_NE = values_NE
        self.starts: dict[str, tuple[int, float]] = {}
        self._part: tuple[Bools, Features] | None = None
        self._near: deque[tuple[Bools, Floats, Floats]] = deque(maxlen=2)

    @staticmethod
    def of(features: "Floats | Features") -> "Features":
        """The features themselves, or those of an array."""
        return features if isinstance(features, Features) else Features(features)

    def equals(self, values_NE: NDArray[Any]) -> bool:
        """Whether these are the features of an array of any floating-point type."""
        return np.array_equal(self.values_NE, values_NE)

    def rows(self, is_used_N: Bools) -> "Features":
        """Some of the examples; the last part is kept."""
        if is_used_N.all():
            return self
        if self._part is None or not np.array_equal(self._part[0], is_used_N):
            self._part = is_used_N, Features(self.values_NE[is_used_N])
        return self._part[1]

    def near(self, is_used_N: Bools) -> "Nearby":
        """A decomposition for some of the examples: one of the last two, if it was for nearly the same ones."""
        for is_own_N, values_E, basis_EE in self._near:
            moved = np.flatnonzero(is_own_N != is_used_N)
            if len(moved) * MAX_MOVED < self.values_NE.shape[1]:
                signs_J = np.where(is_used_N[moved], 1.0, -1.0)
                return Nearby(values_E, basis_EE, self.values_NE[moved] @ basis_EE, signs_J)
        used_NE = self.values_NE[is_used_N]
        values_E, basis_EE = np.linalg.eigh(used_NE.T @ used_NE)
        self._near.append((is_used_N, np.maximum(values_E, 0), basis_EE))
        return self.near(is_used_N)

    @cached_property
    def order_N(self) -> Floats:
        """A pseudo-random number in [0, 1) for each example, from its features alone, not from its place."""
        direction_E = np.random.default_rng(0).standard_normal(self.values_NE.shape[1])
        order_N: Floats = ORDER_SCALE * (self.values_NE @ direction_E) % 1
        return order_N

    @cached_property
    def gram(self) -> Floats:
        """F^T F: [E, E]."""
        gram_EE: Floats = self.values_NE.T @ self.values_NE
        return gram_EE

    @cached_property
    def eigen(self) -> "Eigen":
        """The eigenvectors of the Gram matrix."""
        return eigen_of(self.gram, self.values_NE)


@dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenvectors of a Gram matrix, and examples in that basis.

    Attributes:
        values_E: eigenvalues, at least 0.
        basis_EE: eigenvectors in columns.
        features_NE: the examples' features times `basis_EE`.
    """

    values_E: Floats
    basis_EE: Floats
    features_NE: Floats


@dataclass(frozen=True, eq=False)
class Nearby:
    """Eigenvectors of the Gram matrix of nearly the same examples.

    Attributes:
        values_E, basis_EE: as in `Eigen`.
        moved_JE: the examples by which they differ, in that basis.
        signs_J: 1 for an example that the Gram matrix lacks, -1 for one that it should lack.
    """

    values_E: Floats
    basis_EE: Floats
    moved_JE: Floats
    signs_J: Floats


def eigen_of(gram_EE: Floats, features_NE: Floats) -> Eigen:
    """Decompose a Gram matrix, and express features in its eigenvectors."""
    values_E, basis_EE = np.linalg.eigh(gram_EE)
    return Eigen(np.maximum(values_E, 0), basis_EE, features_NE @ basis_EE)


def class_sums(features_NE: Floats, labels_N: Ints, n_classes: int) -> tuple[Floats, Floats]:
    """Number of examples of each class, and the sum of their features."""
    counts_K = np.bincount(labels_N, minlength=n_classes)
    sums_KE = np.zeros((n_classes, features_NE.shape[1]))
    present = np.flatnonzero(counts_K)
    starts = (np.cumsum(counts_K) - counts_K)[present]
    sums_KE[present] = np.add.reduceat(features_NE[np.argsort(labels_N, kind="stable")], starts)
    return counts_K.astype(np.float64), sums_KE
