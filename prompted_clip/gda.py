"""Gaussian discriminant analysis in closed form, with exact leave-one-out scores. float64 throughout.

Legend: N examples, U images with soft labels, K classes, E joint width, M nodes of an interpolation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import Final, NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebder, chebvander

from prompted_clip.features import Eigen, Features, Floats, Ints, LinearTerm, class_sums, eigen_of

MIN_DAMPING: Final = 1e-6
"""Keeps the covariance invertible if all examples of each class are the same image."""
MAX_RATIO: Final = 1.05
"""Of the dampings that one interpolation covers."""
MIN_HALF_WIDTH: Final = 1e-3
"""Of the interval of an interpolation, relative to its middle: the slope needs nodes that differ."""
TOLERANCE: Final = 1e-10
"""Relative error of the interpolation."""


@dataclass(frozen=True, eq=False)
class SoftLabelled:
    """Images with soft labels, added to the examples of a fit.

    Attributes:
        features_UE: unit norm.
        weights_UK: number of examples of each class that an image counts as, at least 0.
    """

    features_UE: Floats
    weights_UK: Floats


class Gda:
    """Gaussian discriminant analysis with one covariance for all classes.

    S = sum_i (f_i - mu_y)(f_i - mu_y)^T,  P = E (S + tr(S)/(N - 1) I)^-1,
    w_k = P mu_k,  b_k = -(mu_k^T P mu_k - tr(P S)/(N - K)/n_k) / 2.
    Source: *A Hard-to-Beat Baseline for Training-Free CLIP-Based Adaptation* (arXiv 2402.04087), equations 4 to 6, to
    which it is equal if all classes have the same number of examples. Differs from it otherwise: the prior is uniform,
    as the number of examples does not show how frequent a class is, and the expected noise of the mean is subtracted
    from mu_k^T P mu_k, which lowers the scores of classes with fewer examples, and of each left-out example's class.

    With soft labels, means and S are weighted, n_k is the sum of a class's weights v, and N the sum of n_k. The noise
    of a weighted mean is sum v^2/n_k^2 instead of 1/n_k, and N - K becomes sum over k of n_k - sum v^2/n_k.
    """

    def __init__(self, soft: SoftLabelled | None = None) -> None:
        self.soft = soft

    def fit(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`; by definition."""
        width, found = features_NE.shape[1], self._moments(features_NE, labels_N, n_classes)
        spread_NE = features_NE - found.means_KE[labels_N]
        scatter_EE = spread_NE.T @ spread_NE
        if self.soft is not None:
            scatter_EE += _soft_scatter(self.soft, found.means_KE)
        damping = max(np.trace(scatter_EE) / (found.counts_K.sum() - 1), MIN_DAMPING)
        inverse_EE = np.linalg.inv(scatter_EE + damping * np.eye(width))
        return found.term(width * found.means_KE @ inverse_EE, width - damping * float(np.trace(inverse_EE)))

    def fit_and_leave_out(self, features: Features, labels_N: Ints, n_classes: int) -> tuple[LinearTerm, Floats]:
        """See `FewShotMethod`.

        S is the features' Gram matrix, which no label changes, minus R^T R with the rows sqrt(n_k) mu_k of R
        (`_Damped`). Without example i of class c, S loses n_c/(n_c - 1) u u^T with u = f - mu_c (a rank-one downdate,
        inverted with Sherman and Morrison), its trace and hence the damping r change, and mu_c becomes
        mu_c - u/(n_c - 1). All products with (S + r I)^-1 are smooth in r, and r hardly differs between examples, so
        they are interpolated from a few values of r.
        """
        eigen, width = self._eigen(features), features.values_NE.shape[1]
        found = self._moments(eigen.features_NE, labels_N, n_classes, eigen.basis_EE)
        total, own_N = found.counts_K.sum(), found.counts_K[labels_N]
        trace = max(eigen.values_E.sum() - (found.counts_K * (found.means_KE**2).sum(axis=1)).sum(), 0.0)

        damping = max(trace / (total - 1), MIN_DAMPING)
        damped = _Damped(eigen.values_E, found, damping)
        term = found.term(width * damped.weights, width - damping * damped.trace)
        factor_N = own_N / (own_N - 1)
        squares_N = ((eigen.features_NE - found.means_KE[labels_N]) ** 2).sum(axis=1)
        damping_N = np.maximum((trace - factor_N * squares_N) / (total - 2), MIN_DAMPING)
        scores_NK = np.empty((len(labels_N), n_classes))
        for nodes in _nodes(damping_N):
            rows = nodes.rows
            products = _products(eigen.values_E, eigen.features_NE[rows], found, labels_N[rows], nodes)
            scores_NK[rows] = width * _without_own(products, found, labels_N[rows], damping_N[rows], width)
        return LinearTerm(term.weight_KE @ eigen.basis_EE.T, term.bias_K), scores_NK

    def _eigen(self, features: Features) -> Eigen:
        if self.soft is None:
            return features.eigen
        soft_UE = self.soft.features_UE
        soft_gram_EE = (soft_UE * self.soft.weights_UK.sum(axis=1, keepdims=True)).T @ soft_UE
        return eigen_of(features.gram + soft_gram_EE, features.values_NE)

    def _moments(
        self, features_NE: Floats, labels_N: Ints, n_classes: int, basis_EE: Floats | None = None
    ) -> "_Moments":
        """Of examples in a basis; by default in that of the soft-labelled images."""
        counts_K, sums_KE = class_sums(features_NE, labels_N, n_classes)
        squares_K = counts_K
        if self.soft is not None:
            weights_UK = self.soft.weights_UK
            counts_K = counts_K + weights_UK.sum(axis=0)
            squares_K = squares_K + (weights_UK**2).sum(axis=0)
            soft_KE = weights_UK.T @ self.soft.features_UE
            sums_KE = sums_KE + (soft_KE if basis_EE is None else soft_KE @ basis_EE)
        return _Moments(counts_K, squares_K, sums_KE / counts_K[:, None])


@dataclass(frozen=True, eq=False)
class _Moments:
    """Weighted examples of each class: sum of the weights and of their squares, and means."""

    counts_K: Floats
    squares_K: Floats
    means_KE: Floats

    @property
    def noise(self) -> Floats:
        """Variance of each mean in units of the examples' variance: [K]."""
        noise_K: Floats = self.squares_K / self.counts_K**2
        return noise_K

    @property
    def n_free(self) -> float:
        """Degrees of freedom of S."""
        return float(self.counts_K.sum() - (self.squares_K / self.counts_K).sum())

    def term(self, weight_KE: Floats, explained: float) -> LinearTerm:
        """W and b from W and tr(P S)/E."""
        noise = weight_KE.shape[1] * explained / self.n_free
        return LinearTerm(weight_KE, (noise * self.noise - (weight_KE * self.means_KE).sum(axis=1)) / 2)


class _Damped:
    """P = (S + r I)^-1 in the eigenvectors of the Gram matrix G = S + R^T R, R with the rows sqrt(n_k) mu_k.

    With D = (G + r I)^-1, which is diagonal, P = D + D R^T C R D, C = (I - R D R^T)^-1 (Woodbury), and R P = C R D.

    Attributes:
        inverse_E: D.
        roots_K: sqrt(n_k).
        scaled_KE: R D.
        inner_KK: C.
    """

    def __init__(self, values_E: Floats, moments: _Moments, damping: float) -> None:
        self.inverse_E: Floats = 1 / (values_E + damping)
        self.roots_K: Floats = np.sqrt(moments.counts_K)
        rows_KE = self.roots_K[:, None] * moments.means_KE
        self.scaled_KE: Floats = rows_KE * self.inverse_E
        self.inner_KK = np.linalg.inv(np.eye(len(rows_KE)) - self.scaled_KE @ rows_KE.T)

    @property
    def weights(self) -> Floats:
        """mu_k^T P: [K, E]."""
        weights_KE: Floats = self.inner_KK @ self.scaled_KE / self.roots_K[:, None]
        return weights_KE

    @property
    def trace(self) -> float:
        """Of P."""
        return float(self.inverse_E.sum() + (self.inner_KK * (self.scaled_KE @ self.scaled_KE.T)).sum())


class _Nodes(NamedTuple):
    """Dampings from which a smooth function is interpolated at the dampings of some examples.

    Attributes:
        rows: the examples.
        dampings_M: Chebyshev nodes.
        weights_NM: of the function's values at the nodes, for its value.
        slopes_NM: of the same, for its derivative.
    """

    rows: Ints | slice
    dampings_M: Floats
    weights_NM: Floats
    slopes_NM: Floats


def _nodes(damping_N: Floats) -> Iterator[_Nodes]:
    """Groups of examples with similar dampings; one of all examples, unless there are few or very unequal ones.

    The functions are rational with poles at r <= 0, so the error falls by the factor rho per node (Trefethen,
    *Approximation Theory and Approximation Practice*, theorem 8.2).
    """
    group_N = np.floor(np.log(damping_N / damping_N.min()) / log(MAX_RATIO))
    for group in np.unique(group_N):
        rows = np.flatnonzero(group_N == group)
        low, high = damping_N[rows].min(), damping_N[rows].max()
        middle = (low + high) / 2
        half_width = max((high - low) / 2, MIN_HALF_WIDTH * middle)
        ratio = middle / half_width
        n_nodes = ceil(-log(TOLERANCE) / log(ratio + sqrt(ratio**2 - 1)))
        nodes_M = np.cos(np.pi * (np.arange(n_nodes) + 0.5) / n_nodes)
        to_coefficients_MM = np.linalg.inv(chebvander(nodes_M, n_nodes - 1))
        place_N = (damping_N[rows] - middle) / half_width
        yield _Nodes(
            rows if len(rows) < len(damping_N) else slice(None),
            middle + half_width * nodes_M,
            chebvander(place_N, n_nodes - 1) @ to_coefficients_MM,
            chebvander(place_N, n_nodes - 2) @ chebder(to_coefficients_MM) / half_width,
        )


@dataclass(eq=False)
class _Products:
    """Products with P at the damping of each example; c is its class, u = f - mu_c.

    Attributes:
        inner_NK: f^T P mu_k.
        own_NK: mu_c^T P mu_k.
        norms_NK: mu_k^T P mu_k.
        square_N: f^T P f.
        spread_N: u^T P u.
        spread_squared_N: u^T P^2 u.
        trace_N: tr P.
    """

    inner_NK: Floats
    own_NK: Floats
    norms_NK: Floats
    square_N: Floats
    spread_N: Floats
    spread_squared_N: Floats
    trace_N: Floats


def _products(values_E: Floats, features_NE: Floats, moments: _Moments, labels_N: Ints, nodes: _Nodes) -> _Products:
    """Interpolate the products of some examples."""
    n, n_classes = len(labels_N), len(moments.counts_K)
    rows, squares_NE = np.arange(n), features_NE**2
    found = _Products(*np.zeros((3, n, n_classes)), *np.zeros((4, n)))
    for damping, weight_N, slope_N in zip(nodes.dampings_M, nodes.weights_NM.T, nodes.slopes_NM.T, strict=True):
        damped = _Damped(values_E, moments, damping)
        scaled_NK = features_NE @ damped.scaled_KE.T
        inner_NK = scaled_NK @ damped.inner_KK
        square_N = squares_NE @ damped.inverse_E + np.einsum("nk,nk->n", scaled_NK, inner_NK)
        inner_NK /= damped.roots_K
        means_KK = damped.weights @ moments.means_KE.T
        spread_N = square_N - 2 * inner_NK[rows, labels_N] + means_KK.diagonal()[labels_N]
        found.inner_NK += weight_N[:, None] * inner_NK
        found.own_NK += weight_N[:, None] * means_KK[labels_N]
        found.norms_NK += np.outer(weight_N, means_KK.diagonal())
        found.square_N += weight_N * square_N
        found.spread_N += weight_N * spread_N
        found.spread_squared_N -= slope_N * spread_N  # dP/dr = -P^2
        found.trace_N += weight_N * damped.trace
    return found


def _without_own(products: _Products, moments: _Moments, labels_N: Ints, damping_N: Floats, width: int) -> Floats:
    """Scores of each example by the term without it, over E: [N, K]."""
    own_N, squares_N = moments.counts_K[labels_N], moments.squares_K[labels_N]
    rows, factor_N, step_N = np.arange(len(labels_N)), own_N / (own_N - 1), 1 / (own_N - 1)
    gain_N = factor_N / (1 - factor_N * products.spread_N)
    along_NK = products.inner_NK - products.own_NK  # u^T P mu_k
    along_N = along_NK[rows, labels_N]
    spread_f_N = products.square_N - products.inner_NK[rows, labels_N]  # u^T P f
    mean_u_N = along_N - step_N * products.spread_N  # with the mean without the example, mu_c - u/(n_c - 1)
    mean_f_N = products.inner_NK[rows, labels_N] - step_N * spread_f_N
    mean_mean_N = products.own_NK[rows, labels_N] - step_N * (along_N + mean_u_N)
    inner_NK = products.inner_NK + (gain_N * spread_f_N)[:, None] * along_NK
    norms_NK = products.norms_NK + gain_N[:, None] * along_NK**2
    inner_NK[rows, labels_N] = mean_f_N + gain_N * mean_u_N * spread_f_N
    norms_NK[rows, labels_N] = mean_mean_N + gain_N * mean_u_N**2
    # tr(P S) = E (E - r tr (S + r I)^-1), with S and r without the example
    trace_N = products.trace_N + gain_N * products.spread_squared_N
    n_free_N = moments.n_free - 1 + squares_N / own_N - (squares_N - 1) / (own_N - 1)
    noise_N = (width - damping_N * trace_N) / n_free_N
    norms_NK -= noise_N[:, None] * moments.noise
    norms_NK[rows, labels_N] -= noise_N * ((squares_N - 1) / (own_N - 1) ** 2 - moments.noise[labels_N])
    scores_NK: Floats = inner_NK - norms_NK / 2
    return scores_NK


def _soft_scatter(soft: SoftLabelled, means_KE: Floats) -> Floats:
    """Sum of v_k (f - mu_k)(f - mu_k)^T over images and classes, multiplied out: [E, E]."""
    features_UE, weights_UK = soft.features_UE, soft.weights_UK
    cross_EE = features_UE.T @ (weights_UK @ means_KE)
    plain_EE = (features_UE * weights_UK.sum(axis=1, keepdims=True)).T @ features_UE
    means_EE = (means_KE * weights_UK.sum(axis=0)[:, None]).T @ means_KE
    scatter_EE: Floats = plain_EE - cross_EE - cross_EE.T + means_EE
    return scatter_EE
