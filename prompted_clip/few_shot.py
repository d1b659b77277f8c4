"""Closed-form few-shot heads: GDA, ridge regression and Tip-Adapter, without training steps.

A head adds a linear term to the logits of the text features: z + alpha (W f + b), with z = s <f, g_k>. Every method
gives W and b, and its scores for each example as if that example had not been seen (leave-one-out), in closed form.
`fit.py` chooses method and alpha by the latter. float64 throughout.

Legend: N examples, K classes, E joint width.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np

from prompted_clip.features import Bools, Features, Floats, Ints, LinearTerm, class_sums
from prompted_clip.gda import Gda

RIDGE: Final = 1.0
SHARPNESS: Final = 5.5
"""Tip-Adapter's beta (arXiv 2207.09519, section 3)."""


class FewShotMethod(Protocol):
    """A closed form for W and b; labels are 0 to K - 1, K >= 2, and every class has at least two examples."""

    def fit(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> LinearTerm:
        """The linear term for unit-norm features."""
        ...

    def fit_and_leave_out(self, features: Features, labels_N: Ints, n_classes: int) -> tuple[LinearTerm, Floats]:
        """The same term, and the scores of each example by the term that `fit` gives without it: [N, K]."""
        ...

    def fit_some(self, features: Features, is_used_N: Bools, labels_N: Ints, n_classes: int) -> LinearTerm:
        """The term for some examples, with the labels of these; fast if it was computed for nearly the same ones."""
        ...


class Ridge:
    """Ridge regression on one-hot targets: W = Y^T F (F^T F + lambda I)^-1, with a constant feature for the bias."""

    def fit(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`; by definition."""
        inputs_NE = np.hstack([features_NE, np.ones((len(features_NE), 1))])
        targets_NK = np.eye(n_classes, dtype=np.float64)[labels_N]
        gram_EE = inputs_NE.T @ inputs_NE + RIDGE * np.eye(inputs_NE.shape[1])
        weight_EK = np.asarray(np.linalg.solve(gram_EE, inputs_NE.T @ targets_NK), dtype=np.float64)
        return LinearTerm(weight_EK[:-1].T, weight_EK[-1])

    def fit_and_leave_out(self, features: Features, labels_N: Ints, n_classes: int) -> tuple[LinearTerm, Floats]:
        """See `FewShotMethod`; the residual without an example is its residual over 1 - h, h its leverage.

        In the eigenvectors of F^T F, with the bias eliminated: A = F^T F + lambda I is diagonal, s = F^T 1, and
        t = N + lambda - s^T A^-1 s is the Schur complement of the constant feature.
        """
        eigen, n = features.eigen, len(labels_N)
        rotated_NE, inverse_E = eigen.features_NE, 1 / (eigen.values_E + RIDGE)
        counts_K, own_KE = features.class_sums(labels_N, n_classes)
        sums_KE = np.ascontiguousarray(eigen.rotated(own_KE).T)
        solved_E = sums_KE.sum(axis=0) * inverse_E
        schur = n + RIDGE - float(solved_E @ sums_KE.sum(axis=0))
        bias_K = (counts_K - sums_KE @ solved_E) / schur
        damped, scaled_KE = eigen.damped(RIDGE), sums_KE * inverse_E
        constant_N = 1 - rotated_NE @ solved_E
        leverage_N = damped.squares_N + constant_N**2 / schur
        scores_NK = (damped.products(scaled_KE) + np.outer(constant_N, bias_K)) / (1 - leverage_N)[:, None]
        scores_NK[np.arange(n), labels_N] -= leverage_N / (1 - leverage_N)
        weight_KE = scaled_KE - np.outer(bias_K, solved_E)
        return LinearTerm(weight_KE @ eigen.basis_EE.T, bias_K), scores_NK

    def fit_some(self, features: Features, is_used_N: Bools, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`."""
        return self.fit(features.values_NE[is_used_N], labels_N, n_classes)


class TipAdapter:
    """Tip-Adapter without training (arXiv 2207.09519), its cache folded into a linear term.

    The cache adds sum_i exp(-beta (1 - <f, f_i>)) over the examples of a class. To first order around <f, f_i> = 1
    that is 1 - beta + beta <f, f_i>, which a class head can express.
    """

    def fit(self, features_NE: Floats, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`."""
        counts_K, sums_KE = class_sums(features_NE, labels_N, n_classes)
        return LinearTerm(SHARPNESS * sums_KE, (1 - SHARPNESS) * counts_K)

    def fit_and_leave_out(self, features: Features, labels_N: Ints, n_classes: int) -> tuple[LinearTerm, Floats]:
        """See `FewShotMethod`."""
        term = self.fit(features.values_NE, labels_N, n_classes)
        scores_NK = term(features.values_NE)
        squares_N = (features.values_NE**2).sum(axis=1)
        scores_NK[np.arange(len(labels_N)), labels_N] -= 1 - SHARPNESS + SHARPNESS * squares_N
        return term, scores_NK

    def fit_some(self, features: Features, is_used_N: Bools, labels_N: Ints, n_classes: int) -> LinearTerm:
        """See `FewShotMethod`."""
        return self.fit(features.values_NE[is_used_N], labels_N, n_classes)


FEW_SHOT_METHODS: Final[Mapping[str, FewShotMethod]] = MappingProxyType(
    {"gda": Gda(), "ridge": Ridge(), "tip-adapter": TipAdapter()}
)

AUTO_METHODS: Final = MappingProxyType({name: FEW_SHOT_METHODS[name] for name in ("gda", "ridge")})
"""The candidates of `auto`. With few examples, Tip-Adapter's leave-one-out loss does not predict its accuracy."""
