"""Closed-form few-shot heads: GDA, ridge regression and Tip-Adapter, without training steps.

A head adds a linear term to the logits of the text features: z + alpha (W f + b), with z = s <f, g_k>. Every method
gives W and b, and its scores for each example as if that example had not been seen (leave-one-out), in closed form.
`fit.py` chooses method and alpha by the latter. float64 throughout.

Legend: N examples, U images with soft labels, K classes, E joint width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RIDGE: Final = 1.0
SHARPNESS: Final = 5.5
"""Tip-Adapter's beta (arXiv 2207.09519, section 3)."""
MIN_DAMPING: Final = 1e-6
"""Keeps GDA's covariance invertible if all examples of each class are the same image."""


@dataclass(frozen=True, eq=False)
class LinearTerm:
    """W f + b."""

    weight_KE: Floats
    bias_K: Floats

    def __call__(self, features_NE: Floats) -> Floats:
        """[N, K]."""
        scores_NK: Floats = features_NE @ self.weight_KE.T + self.bias_K
        return scores_NK


class FewShotMethod(Protocol):
    """A closed form for W and b; labels are 0 to K - 1, K >= 2, and every class has at least two examples."""

    def fit(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> LinearTerm:
        """The linear term for unit-norm features."""
        ...

    def leave_one_out(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> Floats:
        """Scores of each example by the term that `fit` gives without it: [N, K]."""
        ...


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
        """See `FewShotMethod`."""
        width = features_NE.shape[1]
        found = self._moments(features_NE, labels_N, n_classes)
        damping = max(np.trace(found.scatter_EE) / (found.counts_K.sum() - 1), MIN_DAMPING)
        precision_EE = width * np.linalg.inv(found.scatter_EE + damping * np.eye(width))
        noise = float((precision_EE * found.scatter_EE).sum()) / found.n_free
        weight_KE = found.means_KE @ precision_EE
        return LinearTerm(weight_KE, (noise * found.noise() - (weight_KE * found.means_KE).sum(axis=1)) / 2)

    def leave_one_out(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> Floats:
        """See `FewShotMethod`.

        Without example i of class c, S loses n_c/(n_c - 1) u u^T with u = f - mu_c (a rank-one downdate, inverted with
        Sherman and Morrison), its trace and hence the damping r change, and mu_c becomes mu_c - u/(n_c - 1). In the
        basis of S's eigenvectors the damped inverse is diagonal for every r.
        """
        n, width = features_NE.shape
        found = self._moments(features_NE, labels_N, n_classes)
        values_E, basis_EE = np.linalg.eigh(found.scatter_EE)
        f_NE, mu_KE = features_NE @ basis_EE, found.means_KE @ basis_EE
        u_NE = (features_NE - found.means_KE[labels_N]) @ basis_EE
        own_N, total = found.counts_K[labels_N], found.counts_K.sum()
        factor_N = own_N / (own_N - 1)
        damping_N = np.maximum((values_E.sum() - factor_N * (u_NE**2).sum(axis=1)) / (total - 2), MIN_DAMPING)
        inverse_NE = 1 / (np.maximum(values_E, 0) + damping_N[:, None])
        du_NE = inverse_NE * u_NE
        gain_N = factor_N / (1 - factor_N * (du_NE * u_NE).sum(axis=1))

        def product(left_NE: Floats, right_NE: Floats) -> Floats:
            """left^T P right / E, row by row."""
            plain_N = (left_NE * inverse_NE * right_NE).sum(axis=1)
            downdate_N: Floats = gain_N * (left_NE * du_NE).sum(axis=1) * (du_NE * right_NE).sum(axis=1)
            result_N: Floats = plain_N + downdate_N
            return result_N

        along_NK = du_NE @ mu_KE.T
        inner_NK = (inverse_NE * f_NE) @ mu_KE.T + (gain_N * (du_NE * f_NE).sum(axis=1))[:, None] * along_NK
        norm_NK = inverse_NE @ (mu_KE**2).T + gain_N[:, None] * along_NK**2
        mean_NE = mu_KE[labels_N] - u_NE / (own_N - 1)[:, None]
        rows = np.arange(n)
        inner_NK[rows, labels_N] = product(mean_NE, f_NE)
        norm_NK[rows, labels_N] = product(mean_NE, mean_NE)
        # tr(P S) = E (E - r tr (S + r I)^-1), with S and r without the example
        trace_N = inverse_NE.sum(axis=1) + gain_N * (du_NE**2).sum(axis=1)
        squares_N = found.squares_K[labels_N]
        n_free_N = found.n_free - 1 + squares_N / own_N - (squares_N - 1) / (own_N - 1)
        noise_N = (width - damping_N * trace_N) / n_free_N
        norm_NK -= noise_N[:, None] * found.noise()
        norm_NK[rows, labels_N] -= noise_N * ((squares_N - 1) / (own_N - 1) ** 2 - found.noise()[labels_N])
        scores_NK: Floats = width * (inner_NK - norm_NK / 2)
        return scores_NK

    def _moments(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> "_Moments":
        counts_K, sums_KE = _sums(features_NE, labels_N, n_classes)
        squares_K = counts_K
        if self.soft is not None:
            soft_UE, weights_UK = self.soft.features_UE, self.soft.weights_UK
            counts_K = counts_K + weights_UK.sum(axis=0)
            squares_K = squares_K + (weights_UK**2).sum(axis=0)
            sums_KE = sums_KE + weights_UK.T @ soft_UE
        means_KE = sums_KE / counts_K[:, None]
        spread_NE = features_NE - means_KE[labels_N]
        scatter_EE = spread_NE.T @ spread_NE
        if self.soft is not None:
            scatter_EE += _soft_scatter(self.soft, means_KE)
        return _Moments(counts_K, squares_K, means_KE, scatter_EE)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Weighted examples of each class: sum of the weights and of their squares, means, and S of all classes."""

    counts_K: Floats
    squares_K: Floats
    means_KE: Floats
    scatter_EE: Floats

    def noise(self) -> Floats:
        """Variance of each mean in units of the examples' variance: [K]."""
        result: Floats = self.squares_K / self.counts_K**2
        return result

    @property
    def n_free(self) -> float:
        """Degrees of freedom of S."""
        return float(self.counts_K.sum() - (self.squares_K / self.counts_K).sum())


class Ridge:
    """Ridge regression on one-hot targets: W = Y^T F (F^T F + lambda I)^-1, with a constant feature for the bias."""

    def fit(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`."""
        inputs_NE, targets_NK = _with_constant(features_NE), _one_hot(labels_N, n_classes)
        weight_EK = np.asarray(np.linalg.solve(_damped_gram(inputs_NE), inputs_NE.T @ targets_NK), dtype=np.float64)
        return LinearTerm(weight_EK[:-1].T, weight_EK[-1])

    def leave_one_out(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> Floats:
        """See `FewShotMethod`; the residual without an example is its residual over 1 - h, h its leverage."""
        inputs_NE, targets_NK = _with_constant(features_NE), _one_hot(labels_N, n_classes)
        solved_EN = np.linalg.solve(_damped_gram(inputs_NE), inputs_NE.T)
        leverage_N = (inputs_NE * solved_EN.T).sum(axis=1)
        residuals_NK = targets_NK - inputs_NE @ (solved_EN @ targets_NK)
        scores_NK: Floats = targets_NK - residuals_NK / (1 - leverage_N)[:, None]
        return scores_NK


class TipAdapter:
    """Tip-Adapter without training (arXiv 2207.09519), its cache folded into a linear term.

    The cache adds sum_i exp(-beta (1 - <f, f_i>)) over the examples of a class. To first order around <f, f_i> = 1
    that is 1 - beta + beta <f, f_i>, which a class head can express.
    """

    def fit(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`."""
        counts_K, sums_KE = _sums(features_NE, labels_N, n_classes)
        return LinearTerm(SHARPNESS * sums_KE, (1 - SHARPNESS) * counts_K)

    def leave_one_out(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> Floats:
        """See `FewShotMethod`."""
        scores_NK = self.fit(features_NE, labels_N, n_classes)(features_NE)
        squares_N = (features_NE**2).sum(axis=1)
        scores_NK[np.arange(len(labels_N)), labels_N] -= 1 - SHARPNESS + SHARPNESS * squares_N
        return scores_NK


FEW_SHOT_METHODS: Final[Mapping[str, FewShotMethod]] = MappingProxyType(
    {"gda": Gda(), "ridge": Ridge(), "tip-adapter": TipAdapter()}
)

AUTO_METHODS: Final = MappingProxyType({name: FEW_SHOT_METHODS[name] for name in ("gda", "ridge")})
"""The candidates of `auto`. With few examples, Tip-Adapter's leave-one-out loss does not predict its accuracy."""


def _sums(features_NE: Floats, labels_N: Ints, n_classes: int) -> tuple[Floats, Floats]:
    """Number of examples of each class, and the sum of their features."""
    counts_K = np.bincount(labels_N, minlength=n_classes).astype(np.float64)
    sums_KE = np.zeros((n_classes, features_NE.shape[1]))
    np.add.at(sums_KE, labels_N, features_NE)
    return counts_K, sums_KE


def _soft_scatter(soft: SoftLabelled, means_KE: Floats) -> Floats:
    """Sum of v_k (f - mu_k)(f - mu_k)^T over images and classes, multiplied out: [E, E]."""
    features_UE, weights_UK = soft.features_UE, soft.weights_UK
    cross_EE = features_UE.T @ (weights_UK @ means_KE)
    plain_EE = (features_UE * weights_UK.sum(axis=1, keepdims=True)).T @ features_UE
    means_EE = (means_KE * weights_UK.sum(axis=0)[:, None]).T @ means_KE
    scatter_EE: Floats = plain_EE - cross_EE - cross_EE.T + means_EE
    return scatter_EE


def _one_hot(labels_N: Ints, n_classes: int) -> Floats:
    return np.eye(n_classes, dtype=np.float64)[labels_N]


def _with_constant(features_NE: Floats) -> Floats:
    return np.hstack([features_NE, np.ones((len(features_NE), 1))])


def _damped_gram(inputs_NE: Floats) -> Floats:
    gram_EE: Floats = inputs_NE.T @ inputs_NE + RIDGE * np.eye(inputs_NE.shape[1])
    return gram_EE
