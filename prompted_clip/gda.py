"""Gaussian discriminant analysis in closed form, with exact leave-one-out scores. float64 throughout.

Legend: N examples, U images with soft labels, K classes, E joint width, M nodes of an interpolation.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from prompted_clip.features import (
    Bools,
    Eigen,
    Features,
    Floats,
    Ints,
    LinearTerm,
    Nearby,
    RowProducts,
    class_sums,
    eigen_of,
)
from prompted_clip.interpolation import Nodes, nodes_for

MIN_DAMPING: Final = 1e-6
"""Keeps the covariance invertible if all examples of each class are the same image."""


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
        width, found = features_NE.shape[1], self._moments(*class_sums(features_NE, labels_N, n_classes))
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
        found = self._moments(*features.class_sums(labels_N, n_classes)).rotated(eigen.rotated)
        total, own_N = found.counts_K.sum(), found.counts_K[labels_N]
        trace = max(eigen.values_E.sum() - found.between, 0.0)
        term = _term(eigen.values_E, found, trace)
        factor_N = own_N / (own_N - 1)
        spread_NE = eigen.features_NE - found.means_KE[labels_N]
        squares_N = np.einsum("ne,ne->n", spread_NE, spread_NE)
        damping_N = np.maximum((trace - factor_N * squares_N) / (total - 2), MIN_DAMPING)
        scores_NK = np.empty((len(labels_N), n_classes))
        for nodes in nodes_for(damping_N):
            rows = nodes.rows
            products = _products(eigen, found, labels_N[rows], nodes)
            scores_NK[rows] = width * _without_own(products, found, labels_N[rows], damping_N[rows], width)
        return LinearTerm(term.weight_KE @ eigen.basis_EE.T, term.bias_K), scores_NK

    def fit_some(self, features: Features, is_used_N: Bools, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`."""
        if self.soft is not None:
            return self.fit(features.values_NE[is_used_N], labels_N, n_classes)
        near, used_N = features.near(is_used_N), np.full(len(is_used_N), -1)
        used_N[is_used_N] = labels_N
        found = self._moments(*near.class_sums(used_N, n_classes)).rotated(near.rotated)
        moved = float(near.signs_J @ (near.moved_JE**2).sum(axis=1))
        term = _term(near.values_E, found, max(near.values_E.sum() + moved - found.between, 0.0), near)
        return LinearTerm(term.weight_KE @ near.basis_EE.T, term.bias_K)

    def _eigen(self, features: Features) -> Eigen:
        if self.soft is None:
            return features.eigen
        soft_UE = self.soft.features_UE
        soft_gram_EE = (soft_UE * self.soft.weights_UK.sum(axis=1, keepdims=True)).T @ soft_UE
        return eigen_of(features.gram + soft_gram_EE, features.values_NE)

    def _moments(self, counts_K: Floats, sums_KE: Floats) -> "_Moments":
        """From the examples' counts and sums."""
        squares_K = counts_K
        if self.soft is not None:
            weights_UK = self.soft.weights_UK
            counts_K = counts_K + weights_UK.sum(axis=0)
            squares_K = squares_K + (weights_UK**2).sum(axis=0)
            sums_KE = sums_KE + weights_UK.T @ self.soft.features_UE
        return _Moments(counts_K, squares_K, sums_KE)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Weighted examples of each class: sums of the weights, of their squares, and of the features."""

    counts_K: Floats
    squares_K: Floats
    sums_KE: Floats

    @cached_property
    def means_KE(self) -> Floats:
        """Mean of each class."""
        means_KE: Floats = self.sums_KE / self.counts_K[:, None]
        return means_KE

    @property
    def noise(self) -> Floats:
        """Variance of each mean in units of the examples' variance: [K]."""
        noise_K: Floats = self.squares_K / self.counts_K**2
        return noise_K

    @property
    def n_free(self) -> float:
        """Degrees of freedom of S."""
        return float(self.counts_K.sum() - (self.squares_K / self.counts_K).sum())

    @property
    def between(self) -> float:
        """Trace of the part of the Gram matrix that the means explain, so that S has the rest."""
        return float((self.counts_K * (self.means_KE**2).sum(axis=1)).sum())

    def rotated(self, rotated: RowProducts) -> "_Moments":
        """The same in another basis."""
        return replace(self, sums_KE=np.ascontiguousarray(rotated(self.sums_KE).T))

    def term(self, weight_KE: Floats, explained: float) -> LinearTerm:
        """W and b from W and tr(P S)/E."""
        noise = weight_KE.shape[1] * explained / self.n_free
        return LinearTerm(weight_KE, (noise * self.noise - (weight_KE * self.means_KE).sum(axis=1)) / 2)


class _Damped:
    """P = (S + r I)^-1 in the eigenvectors of a matrix G, where S = G + Q^T s Q with s diagonal, 1 and -1.

    The rows of Q are sqrt(n_k) mu_k with s = -1, as G is the Gram matrix of the examples, and single examples if it is
    that of nearly the same ones. With D = (G + r I)^-1, which is diagonal, P = D + D Q^T C Q D and
    C = -(s + Q D Q^T)^-1 (Woodbury). The rows of Q with s = -1, times P, are those of C Q D.

    Attributes:
        inverse_E: D.
        roots_K: sqrt(n_k).
        scaled_QE: Q D.
        gram_QQ: Q D Q^T.
        inner_QQ: C.
    """

    def __init__(self, values_E: Floats, moments: _Moments, damping: float, near: Nearby | None = None) -> None:
        self.inverse_E: Floats = 1 / (values_E + damping)
        self.roots_K: Floats = np.sqrt(moments.counts_K)
        rows_QE, signs_Q = self.roots_K[:, None] * moments.means_KE, -np.ones(len(self.roots_K))
        if near is not None:
            rows_QE, signs_Q = np.vstack([rows_QE, near.moved_JE]), np.concatenate([signs_Q, near.signs_J])
        self.scaled_QE: Floats = rows_QE * self.inverse_E
        self.gram_QQ: Floats = self.scaled_QE @ rows_QE.T
        self.inner_QQ = -np.linalg.inv(np.diag(signs_Q) + self.gram_QQ)

    @property
    def weights(self) -> Floats:
        """mu_k^T P: [K, E]."""
        n_classes = len(self.roots_K)
        weights_KE: Floats = self.inner_QQ[:n_classes] @ self.scaled_QE / self.roots_K[:, None]
        return weights_KE

    @property
    def trace(self) -> float:
        """Of P."""
        return float(self.inverse_E.sum() + (self.inner_QQ * (self.scaled_QE @ self.scaled_QE.T)).sum())


def _term(values_E: Floats, moments: _Moments, trace: float, near: Nearby | None = None) -> LinearTerm:
    """W and b in a basis; `trace` is that of S."""
    width, damping = len(values_E), max(trace / (moments.counts_K.sum() - 1), MIN_DAMPING)
    damped = _Damped(values_E, moments, damping, near)
    return moments.term(width * damped.weights, width - damping * damped.trace)


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


def _products(eigen: Eigen, moments: _Moments, labels_N: Ints, nodes: Nodes) -> _Products:
    """Interpolate the products of the examples of some nodes."""
    n, n_classes = len(labels_N), len(moments.counts_K)
    rows = np.arange(n)
    found = _Products(*np.zeros((3, n, n_classes)), *np.zeros((4, n)))
    norms_MK = np.empty((len(nodes.dampings_M), n_classes))
    for node, damping in enumerate(nodes.dampings_M):
        weight_N, slope_N = nodes.weights_NM[:, node], nodes.slopes_NM[:, node]
        damped = _Damped(eigen.values_E, moments, damping)
        if isinstance(nodes.rows, slice):  # after another change of labels the nodes are the same
            kept = eigen.damped(float(damping))
            scaled_NK, plain_N = kept.products(damped.scaled_QE), kept.squares_N
        else:
            own_NE = eigen.features_NE[nodes.rows]
            scaled_NK, plain_N = own_NE @ damped.scaled_QE.T, own_NE**2 @ damped.inverse_E
        inner_NK = scaled_NK @ damped.inner_QQ
        square_N = plain_N + np.einsum("nk,nk->n", scaled_NK, inner_NK)
        inner_NK /= damped.roots_K
        means_KK = damped.inner_QQ @ damped.gram_QQ / np.outer(damped.roots_K, damped.roots_K)
        spread_N = square_N - 2 * inner_NK[rows, labels_N] + means_KK.diagonal()[labels_N]
        inner_NK *= weight_N[:, None]
        found.inner_NK += inner_NK
        np.multiply(means_KK[labels_N], weight_N[:, None], out=inner_NK)
        found.own_NK += inner_NK
        norms_MK[node] = means_KK.diagonal()
        found.square_N += weight_N * square_N
        found.spread_N += weight_N * spread_N
        found.spread_squared_N -= slope_N * spread_N  # dP/dr = -P^2
        found.trace_N += weight_N * damped.trace
    found.norms_NK = nodes.weights_NM @ norms_MK
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
