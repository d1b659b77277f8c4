"""Image features of labelled examples, with everything about them that no label changes.

Legend: N examples, K classes, E joint width.
"""

from collections import deque
from dataclasses import dataclass, field, replace
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
MAX_KEPT_DAMPINGS: Final = 5
MAX_KEPT_SIZE: Final = 1_000_000
"""Number of values of a product that is kept (8 bytes each)."""


@dataclass(frozen=True, eq=False)
class LinearTerm:
    """W f + b."""

    weight_KE: Floats
    bias_K: Floats

    def __call__(self, features_NE: Floats) -> Floats:
        """[N, K]."""
        scores_NK: Floats = features_NE @ self.weight_KE.T + self.bias_K
        return scores_NK


class RowProducts:
    """Products of a fixed matrix with matrices of which only a few rows change from one to the next.

    The result is that of a plain product: rows that differ in a single bit are multiplied again.

    Args:
        matrix_NE: the fixed matrix.
    """

    def __init__(self, matrix_NE: Floats) -> None:
        self._matrix_NE = matrix_NE
        self._last = np.empty((0, 0)), np.empty((0, 0))

    def __call__(self, rows_KE: Floats) -> Floats:
        """The fixed matrix times the transposed rows: [N, K], read-only."""
        last_KE, product_NK = self._last
        is_new_K = (last_KE != rows_KE).any(axis=1) if last_KE.shape == rows_KE.shape else np.ones(len(rows_KE), bool)
        if 2 * is_new_K.sum() < len(rows_KE):
            product_NK = product_NK.copy()
            product_NK[:, is_new_K] = self._matrix_NE @ rows_KE[is_new_K].T
        else:
            product_NK = self._matrix_NE @ rows_KE.T
        product_NK.flags.writeable = False
        if product_NK.size <= MAX_KEPT_SIZE:
            self._last = rows_KE, product_NK
        return product_NK


class ClassSums:
    """Sums of the features of each class; those of classes whose examples are the same as last time are kept.

    Args:
        values_NE: features.
    """

    def __init__(self, values_NE: Floats) -> None:
        self._values_NE = values_NE
        self._last: tuple[Ints, Floats] | None = None

    def __call__(self, labels_N: Ints, n_classes: int) -> tuple[Floats, Floats]:
        """Number of examples of each class, and the sum of their features: [K], [K, E]; examples below 0 are unused."""
        counts_K = np.bincount(labels_N[labels_N >= 0], minlength=n_classes)
        if self._last is not None and self._last[1].shape[0] == n_classes:
            moved = np.flatnonzero(self._last[0] != labels_N)
            changed, sums_KE = np.union1d(self._last[0][moved], labels_N[moved]), self._last[1].copy()
        else:
            changed, sums_KE = np.flatnonzero(counts_K), np.zeros((n_classes, self._values_NE.shape[1]))
        order_N, ends_K = np.argsort(labels_N, kind="stable"), np.cumsum(counts_K) + (labels_N < 0).sum()
        for index in changed[changed >= 0]:  # much faster than np.add.reduceat
            rows = order_N[ends_K[index] - counts_K[index] : ends_K[index]]
            self._values_NE[rows].sum(axis=0, out=sums_KE[index])
        self._last = labels_N.copy(), sums_KE
        return counts_K.astype(np.float64), sums_KE


class Features:
    """Features of the labelled examples of a fit, unit norm.

    Their Gram matrix, its eigenvectors and the features in that basis are computed on first use and kept: after a
    change of labels they are the same.

    Attributes:
        values_NE: the features.
        class_sums: sums of the features of each class.
        searches: the last search for the alpha of each method; the next one starts where it ended.
    """

    def __init__(self, values_NE: Floats) -> None:
        self.values_NE = values_NE
        self.class_sums = ClassSums(values_NE)
        self.searches: dict[str, AlphaSearch] = {}
        self._part: tuple[Bools, Features] | None = None
        self._near: deque[tuple[Bools, Nearby]] = deque(maxlen=2)
        self._text_logits: tuple[NDArray[Any], float, Floats] | None = None

    @staticmethod
    def of(features: "Floats | Features") -> "Features":
        """The features themselves, or those of an array."""
        return features if isinstance(features, Features) else Features(features)

    def equals(self, values_NE: NDArray[Any]) -> bool:
        """Whether these are the features of an array of any floating-point type."""
        return np.array_equal(self.values_NE, values_NE)

    def start(self, name: str) -> float:
        """1/T at the end of the search of this name, or 1."""
        search = self.searches.get(name)
        return search.inverses[search.best] if search else 1.0

    def rows(self, is_used_N: Bools) -> "Features":
        """Some of the examples; the last part is kept."""
        if is_used_N.all():
            return self
        if self._part is None or not np.array_equal(self._part[0], is_used_N):
            self._part = is_used_N, Features(self.values_NE[is_used_N])
        return self._part[1]

    def near(self, is_used_N: Bools) -> "Nearby":
        """A decomposition for some of the examples: one of the last two, if it was for nearly the same ones."""
        for is_own_N, near in self._near:
            moved = np.flatnonzero(is_own_N != is_used_N)
            if len(moved) * MAX_MOVED < self.values_NE.shape[1]:
                signs_J = np.where(is_used_N[moved], 1.0, -1.0)
                return replace(near, moved_JE=self.values_NE[moved] @ near.basis_EE, signs_J=signs_J)
        used_NE = self.values_NE[is_used_N]
        values_E, basis_EE = np.linalg.eigh(used_NE.T @ used_NE)
        none_JE, none_J = np.zeros((0, len(values_E))), np.zeros(0)
        sums = ClassSums(self.values_NE)
        near = Nearby(np.maximum(values_E, 0), basis_EE, RowProducts(basis_EE.T), sums, none_JE, none_J)
        self._near.append((is_used_N, near))
        return near

    def text_logits(self, text_KE: NDArray[Any], logit_scale: float) -> Floats:
        """See the function of this name; the last logits are kept."""
        last = self._text_logits
        if last is None or last[1] != logit_scale or not np.array_equal(last[0], text_KE):
            last = self._text_logits = text_KE.copy(), logit_scale, text_logits(self.values_NE, text_KE, logit_scale)
        return last[2]

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
        rotated: the transposed basis times rows.
    """

    values_E: Floats
    basis_EE: Floats
    features_NE: Floats
    rotated: RowProducts
    _damped: "dict[float, DampedFeatures]" = field(default_factory=dict)

    def damped(self, damping: float) -> "DampedFeatures":
        """The products of the features with (G + r I)^-1, G their Gram matrix; those of the last r are kept."""
        if damping not in self._damped:
            if len(self._damped) == MAX_KEPT_DAMPINGS:
                del self._damped[next(iter(self._damped))]
            inverse_E = 1 / (self.values_E + damping)
            self._damped[damping] = DampedFeatures(self.features_NE**2 @ inverse_E, RowProducts(self.features_NE))
        kept = self._damped[damping] = self._damped.pop(damping)  # to the end, as the first is the next to be dropped
        return kept


@dataclass(frozen=True, eq=False)
class DampedFeatures:
    """Products of features with a damped inverse D in a basis where that is diagonal.

    Attributes:
        squares_N: f^T D f.
        products: the features times rows, which are those of a matrix times D.
    """

    squares_N: Floats
    products: RowProducts


@dataclass(frozen=True, eq=False)
class Nearby:
    """Eigenvectors of the Gram matrix of nearly the same examples.

    Attributes:
        values_E, basis_EE, rotated: as in `Eigen`.
        class_sums: of all features, not only of these examples.
        moved_JE: the examples by which they differ, in that basis.
        signs_J: 1 for an example that the Gram matrix lacks, -1 for one that it should lack.
    """

    values_E: Floats
    basis_EE: Floats
    rotated: RowProducts
    class_sums: ClassSums
    moved_JE: Floats
    signs_J: Floats


def text_logits(features_NE: Floats, text_KE: NDArray[Any], logit_scale: float) -> Floats:
    """The logits of the text features, z = s <f, g_k>, for unit features: [N, K]."""
    result: Floats = features_NE @ (logit_scale * text_KE.T.astype(np.float64))
    return result


def eigen_of(gram_EE: Floats, features_NE: Floats) -> Eigen:
    """Decompose a Gram matrix, and express features in its eigenvectors."""
    values_E, basis_EE = np.linalg.eigh(gram_EE)
    return Eigen(np.maximum(values_E, 0), basis_EE, features_NE @ basis_EE, RowProducts(basis_EE.T))


@dataclass(frozen=True)
class AlphaSearch:
    """The end of a search for an alpha.

    Attributes:
        best: index of the alpha.
        inverses: 1/T by the index of each alpha that was tried.
    """

    best: int
    inverses: dict[int, float]


def class_sums(features_NE: Floats, labels_N: Ints, n_classes: int) -> tuple[Floats, Floats]:
    """Number of examples of each class, and the sum of their features."""
    return ClassSums(features_NE)(labels_N, n_classes)
