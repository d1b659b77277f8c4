"""Fits a few-shot head to labelled examples: method, weight, temperature, and thresholds for abstaining.

Everything is chosen by leave-one-out scores, so no example is held back. `fit_report.py` reports them.

Legend: N examples, U unlabelled images, K classes, E joint width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prompted_clip.few_shot import AUTO_METHODS, Bools, FewShotMethod, Floats, Ints, LinearTerm
from prompted_clip.semi_supervised import GDA_UNLABELLED, UnlabelledImages, semi_supervised_gda

TEXT: Final = "text"
"""The method of a fit that keeps the text features alone."""
MIN_EXAMPLES: Final = 4
"""A class with fewer keeps its text features alone."""
ALPHAS: Final = np.logspace(-1.5, 1.5, 13)
"""Candidates besides 0, in units of the ratio of the logits' spreads."""
RATES: Final = (0.01, 0.05, 0.1)
"""Abstention rates with a stored threshold."""
MAX_INVERSE_TEMPERATURE: Final = 30.0
MAX_WEIGHT: Final = 1e4
"""Largest value that a bundle may contain."""


@dataclass(frozen=True, eq=False)
class FewShotFit:
    """A fitted head: logits = (z + alpha (W f + b)) / temperature.

    Attributes:
        method: a key of `FEW_SHOT_METHODS`, `gda-unlabelled`, or `text` if none beats the text features.
        alpha: 0 for `text`.
        term: W and b, zero for the classes that it does not cover.
        temperature: minimises the leave-one-out log-loss.
        labels_N: classes of the examples.
        logits_NK: leave-one-out logits, before the temperature.
        text_logits_NK: z of the examples.
        is_fitted_K: classes that the term covers.
    """

    method: str
    alpha: float
    term: LinearTerm
    temperature: float
    labels_N: Ints
    logits_NK: Floats
    text_logits_NK: Floats
    is_fitted_K: Bools

    def logits(self, features_NE: Floats, text_logits_NK: Floats) -> Floats:
        """Calibrated logits of unit-norm features: [N, K]."""
        result: Floats = (text_logits_NK + self.alpha * self.term(features_NE)) / self.temperature
        return result

    def probabilities(self) -> Floats:
        """Calibrated leave-one-out probabilities of the examples: [N, K]."""
        return softmax(self.logits_NK / self.temperature)

    def thresholds(self) -> dict[str, float]:
        """Abstention thresholds by rate, as in a bundle's manifest."""
        return {f"{rate:g}": threshold for rate, threshold in abstention_thresholds(self.probabilities()).items()}


def fit_few_shot(
    features_NE: Floats,
    labels_N: Ints,
    text_logits_NK: Floats,
    methods: Mapping[str, FewShotMethod] = AUTO_METHODS,
    unlabelled: UnlabelledImages | None = None,
) -> FewShotFit:
    """Choose the method and alpha with the least leave-one-out log-loss; the text features alone are a candidate.

    Args:
        features_NE: unit norm.
        labels_N: 0 to K - 1; a class may have no examples.
        text_logits_NK: z = s <f, g_k> of the same examples.
        methods: candidates by name.
        unlabelled: adds the candidate `gda-unlabelled`.
    """
    n_classes = text_logits_NK.shape[1]
    counts_K = np.bincount(labels_N, minlength=n_classes)
    is_fitted_K = counts_K >= MIN_EXAMPLES
    best_loss, temperature = calibrate(text_logits_NK, labels_N)
    candidates = [(name, method, is_fitted_K) for name, method in methods.items()]
    if unlabelled is not None:
        soft_labels_UK = softmax(unlabelled.text_logits_UK / temperature)
        semi_supervised = semi_supervised_gda(unlabelled.features_UE, soft_labels_UK, counts_K)
        candidates.append((GDA_UNLABELLED, *semi_supervised))
    method_name, alpha, term, logits_NK = TEXT, 0.0, _no_term(n_classes, features_NE.shape[1]), text_logits_NK
    for name, method, is_own_K in candidates:
        if is_own_K.sum() < 2:
            continue
        own_term, scores_NK = _term_and_scores(method, features_NE, labels_N, is_own_K)
        unit = _spread(text_logits_NK[:, is_own_K]) / _spread(scores_NK[:, is_own_K])
        largest = max(np.abs(own_term.weight_KE).max(), np.abs(own_term.bias_K).max())
        for candidate in unit * ALPHAS:
            candidate_NK = text_logits_NK + candidate * scores_NK
            loss, own_temperature = calibrate(candidate_NK, labels_N)
            if loss < best_loss and candidate * largest < MAX_WEIGHT:
                best_loss, temperature = loss, own_temperature
                method_name, alpha, term, logits_NK = name, float(candidate), own_term, candidate_NK
                is_fitted_K = is_own_K
    return FewShotFit(method_name, alpha, term, temperature, labels_N, logits_NK, text_logits_NK, is_fitted_K)


def text_logits(features_NE: Floats, text_KE: NDArray[Any], logit_scale: float) -> Floats:
    """The logits of the text features, z = s <f, g_k>, for unit features: [N, K]."""
    result: Floats = logit_scale * features_NE @ text_KE.T.astype(np.float64)
    return result


def _term_and_scores(
    method: FewShotMethod, features_NE: Floats, labels_N: Ints, is_fitted_K: Bools
) -> tuple[LinearTerm, Floats]:
    """The term over all classes, and its leave-one-out scores; both centred over the fitted classes."""
    fitted, is_used_N = np.flatnonzero(is_fitted_K), is_fitted_K[labels_N]
    used_NE, used_N = features_NE[is_used_N], np.searchsorted(fitted, labels_N[is_used_N])
    own = method.fit(used_NE, used_N, len(fitted))
    term = _no_term(len(is_fitted_K), features_NE.shape[1])
    term.weight_KE[fitted] = own.weight_KE - own.weight_KE.mean(axis=0)
    term.bias_K[fitted] = own.bias_K - own.bias_K.mean()
    scores_NK = term(features_NE)
    without_NK = method.leave_one_out(used_NE, used_N, len(fitted))
    scores_NK[np.ix_(is_used_N, fitted)] = without_NK - without_NK.mean(axis=1, keepdims=True)
    return term, scores_NK


def _no_term(n_classes: int, width: int) -> LinearTerm:
    return LinearTerm(np.zeros((n_classes, width)), np.zeros(n_classes))


def _spread(scores_NK: Floats) -> float:
    """Root mean square around each example's mean; 1 if there is none."""
    return float((scores_NK - scores_NK.mean(axis=1, keepdims=True)).std()) or 1.0


def softmax(logits_NK: Floats) -> Floats:
    """Probabilities, row by row."""
    powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    result: Floats = powers_NK / powers_NK.sum(axis=1, keepdims=True)
    return result


def calibrate(logits_NK: Floats, labels_N: Ints) -> tuple[float, float]:
    """The least mean log-loss over all temperatures, and that temperature.

    The targets are smoothed by 1/(N + 1), as in Platt scaling, so that the temperature of separable classes is not 0.
    The loss is convex in b = 1/T; Newton's method within a bracket.
    """
    margins_NK = logits_NK - np.take_along_axis(logits_NK, labels_N[:, None], axis=1)
    smoothing = float(margins_NK.mean()) / (len(labels_N) + 1)
    highest_N1 = margins_NK.max(axis=1, keepdims=True)
    low, high, b = 1 / MAX_INVERSE_TEMPERATURE, MAX_INVERSE_TEMPERATURE, 1.0
    while True:
        powers_NK = np.exp(b * (margins_NK - highest_N1))
        sums_N = powers_NK.sum(axis=1)
        powers_NK *= margins_NK
        mean_N = powers_NK.sum(axis=1) / sums_N
        slope = float(mean_N.mean()) - smoothing
        curvature = float(((powers_NK * margins_NK).sum(axis=1) / sums_N - mean_N**2).mean())
        low, high = (low, b) if slope > 0 else (b, high)
        step = b - slope / curvature if curvature > 0 else 0.0
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - b) <= 1e-6 * b:
            return float((np.log(sums_N) + b * highest_N1[:, 0]).mean()) - b * smoothing, 1 / b
        b = following


def abstention_thresholds(probabilities_NK: Floats, rates: Sequence[float] = RATES) -> dict[float, float]:
    """By rate, the probability below which the best class is too uncertain.

    Conformal prediction (Vovk et al. 2005): at most this share of new images of these classes has a lower best
    probability. This holds approximately, as leave-one-out scores come from heads with one example less.
    """
    sorted_N = np.sort(probabilities_NK.max(axis=1))
    places = {rate: int(rate * (len(sorted_N) + 1)) for rate in rates}
    return {rate: float(sorted_N[place - 1]) if place else 0.0 for rate, place in places.items()}
