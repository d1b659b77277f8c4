"""Fits a few-shot head to labelled examples: method, weight, temperature, and thresholds for abstaining.

Everything is chosen by leave-one-out scores, so no example is held back. `fit_report.py` reports them.

Legend: N examples, U unlabelled images, K classes, E joint width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prompted_clip.features import Bools, Features, Floats, Ints, LinearTerm
from prompted_clip.few_shot import AUTO_METHODS, FewShotMethod
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


class Calibration(NamedTuple):
    """The least mean log-loss over all temperatures, and that temperature."""

    loss: float
    temperature: float


def fit_few_shot(
    features: Floats | Features,
    labels_N: Ints,
    text_logits_NK: Floats,
    methods: Mapping[str, FewShotMethod] = AUTO_METHODS,
    unlabelled: UnlabelledImages | None = None,
) -> FewShotFit:
    """Choose the method and alpha with the least leave-one-out log-loss; the text features alone are a candidate.

    Args:
        features: unit norm, [N, E]. A `Features` that is used again after a change of labels saves their decomposition.
        labels_N: 0 to K - 1; a class may have no examples.
        text_logits_NK: z = s <f, g_k> of the same examples.
        methods: candidates by name.
        unlabelled: adds the candidate `gda-unlabelled`.
    """
    known, n_classes = Features.of(features), text_logits_NK.shape[1]
    best = text = calibrate(text_logits_NK, labels_N)
    method_name, alpha, logits_NK = TEXT, 0.0, text_logits_NK
    term, is_fitted_K = _no_term(n_classes, known.values_NE.shape[1]), _has_enough(labels_N, n_classes)
    for name, method, is_own_K in _candidates(labels_N, n_classes, methods, unlabelled, text.temperature):
        own_term, scores_NK = _term_and_scores(method, known, labels_N, is_own_K)
        largest = max(np.abs(own_term.weight_KE).max(), np.abs(own_term.bias_K).max())
        alphas = _alphas(text_logits_NK, scores_NK, is_own_K, MAX_WEIGHT / largest)
        if not alphas:
            continue
        index, found = _best_alpha(text_logits_NK, scores_NK, labels_N, alphas, known.starts.get(name))
        known.starts[name] = index, 1 / found.temperature
        if found.loss < best.loss:
            best, method_name, alpha, term, is_fitted_K = found, name, alphas[index], own_term, is_own_K
            logits_NK = text_logits_NK + alpha * scores_NK
    temperature = calibrate(logits_NK, labels_N).temperature  # to the last digit the same from any start of the search
    return FewShotFit(method_name, alpha, term, temperature, labels_N, logits_NK, text_logits_NK, is_fitted_K)


def held_out_logits(
    fit: FewShotFit,
    features: Features,
    is_train_N: Bools,
    methods: Mapping[str, FewShotMethod],
    unlabelled: UnlabelledImages | None = None,
) -> Floats:
    """Logits of the other examples, before the temperature, by the method of a fit that is fitted to some only.

    Alpha has the least log-loss of the other examples, as that of the fit has the least leave-one-out log-loss.

    Args:
        fit: to all examples.
        features: those of all examples.
        is_train_N: the examples to fit to.
        methods: the method of `fit` by its name; empty if it uses the unlabelled images.
        unlabelled: if it does, these.
    """
    train_N, others_N, others_NK = fit.labels_N[is_train_N], fit.labels_N[~is_train_N], fit.text_logits_NK[~is_train_N]
    temperature = 1.0 if unlabelled is None else calibrate(fit.text_logits_NK[is_train_N], train_N).temperature
    for name, method, is_own_K in _candidates(train_N, others_NK.shape[1], methods, unlabelled, temperature):
        fitted, is_used_N = np.flatnonzero(is_own_K), is_train_N & is_own_K[fit.labels_N]
        used_N = np.searchsorted(fitted, fit.labels_N[is_used_N])
        term = _over_all_classes(method.fit_some(features, is_used_N, used_N, len(fitted)), is_own_K)
        scores_NK = term(features.values_NE[~is_train_N])
        alphas = _alphas(others_NK, scores_NK, is_own_K, np.inf)
        index, found = _best_alpha(others_NK, scores_NK, others_N, alphas, features.starts.get(f"half {name}"))
        features.starts[f"half {name}"] = index, 1 / found.temperature
        if found.loss < calibrate(others_NK, others_N).loss:
            others_NK = others_NK + alphas[index] * scores_NK
    return others_NK


def _has_enough(labels_N: Ints, n_classes: int) -> Bools:
    is_enough_K: Bools = np.bincount(labels_N, minlength=n_classes) >= MIN_EXAMPLES
    return is_enough_K


def _candidates(
    labels_N: Ints,
    n_classes: int,
    methods: Mapping[str, FewShotMethod],
    unlabelled: UnlabelledImages | None,
    temperature: float,
) -> list[tuple[str, FewShotMethod, Bools]]:
    """The methods that can be fitted, each with its classes; `temperature` is that of the text features."""
    found = [(name, method, _has_enough(labels_N, n_classes)) for name, method in methods.items()]
    if unlabelled is not None:
        soft_labels_UK = softmax(unlabelled.text_logits_UK / temperature)
        counts_K = np.bincount(labels_N, minlength=n_classes)
        found.append((GDA_UNLABELLED, *semi_supervised_gda(unlabelled.features_UE, soft_labels_UK, counts_K)))
    return [candidate for candidate in found if candidate[2].sum() >= 2]


def _alphas(text_logits_NK: Floats, scores_NK: Floats, is_own_K: Bools, most: float) -> list[float]:
    """`ALPHAS` in units of the ratio of the spreads over the term's own classes; those below `most`."""
    unit = _spread(text_logits_NK[:, is_own_K]) / _spread(scores_NK[:, is_own_K])
    return [alpha for alpha in (unit * ALPHAS).tolist() if alpha < most]


def _best_alpha(
    text_logits_NK: Floats,
    scores_NK: Floats,
    labels_N: Ints,
    alphas: Sequence[float],
    start: tuple[int, float] | None = None,
) -> tuple[int, Calibration]:
    """The index of the alpha with the least log-loss, and that loss.

    With b = 1/T, the log-loss is convex in (b, b alpha), so its least values over b fall and then rise with alpha: a
    descent from anywhere finds the least of all.

    Args:
        text_logits_NK: of the text features.
        scores_NK: of the term.
        labels_N: of the same examples.
        alphas: candidates.
        start: an index and an estimate of b; by default the middle and 1.
    """
    text_margins_NK, score_margins_NK = _margins(text_logits_NK, labels_N), _margins(scores_NK, labels_N)
    found: dict[int, Calibration] = {}

    def at(index: int, inverse_temperature: float) -> Calibration:
        if index not in found:
            margins_NK = text_margins_NK + alphas[index] * score_margins_NK
            found[index] = _calibrate_margins(margins_NK, inverse_temperature)
        return found[index]

    best, b = start or (len(alphas) // 2, 1.0)
    best = min(best, len(alphas) - 1)
    at(best, b)
    for step in (1, -1):
        b = 1 / found[best].temperature
        while 0 <= best + step < len(alphas) and at(best + step, b).loss < found[best].loss:
            best += step
            b = 1 / found[best].temperature
    return best, found[best]


def text_logits(features_NE: Floats, text_KE: NDArray[Any], logit_scale: float) -> Floats:
    """The logits of the text features, z = s <f, g_k>, for unit features: [N, K]."""
    result: Floats = features_NE @ (logit_scale * text_KE.T.astype(np.float64))
    return result


def _term_and_scores(
    method: FewShotMethod, features: Features, labels_N: Ints, is_fitted_K: Bools
) -> tuple[LinearTerm, Floats]:
    """The term over all classes, and its leave-one-out scores; both centred over the fitted classes."""
    fitted, is_used_N = np.flatnonzero(is_fitted_K), is_fitted_K[labels_N]
    used_N = np.searchsorted(fitted, labels_N[is_used_N])
    own, without_NK = method.fit_and_leave_out(features.rows(is_used_N), used_N, len(fitted))
    term = _over_all_classes(own, is_fitted_K)
    scores_NK = np.zeros((len(labels_N), len(is_fitted_K)))
    scores_NK[~is_used_N] = term(features.values_NE[~is_used_N])
    scores_NK[np.ix_(is_used_N, fitted)] = without_NK - without_NK.mean(axis=1, keepdims=True)
    return term, scores_NK


def _over_all_classes(own: LinearTerm, is_fitted_K: Bools) -> LinearTerm:
    """The term of some classes, centred over them and zero for the others."""
    term = _no_term(len(is_fitted_K), own.weight_KE.shape[1])
    term.weight_KE[is_fitted_K] = own.weight_KE - own.weight_KE.mean(axis=0)
    term.bias_K[is_fitted_K] = own.bias_K - own.bias_K.mean()
    return term


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


def calibrate(logits_NK: Floats, labels_N: Ints) -> Calibration:
    """The temperature with the least mean log-loss.

    The targets are smoothed by 1/(N + 1), as in Platt scaling, so that the temperature of separable classes is not 0.
    """
    return _calibrate_margins(_margins(logits_NK, labels_N))


def _margins(logits_NK: Floats, labels_N: Ints) -> Floats:
    """Logits minus that of the label."""
    margins_NK: Floats = logits_NK - np.take_along_axis(logits_NK, labels_N[:, None], axis=1)
    return margins_NK


def _calibrate_margins(margins_NK: Floats, start: float = 1.0) -> Calibration:
    """See `calibrate`; the loss is convex in b = 1/T, so this is Newton's method within a bracket, from `start`."""
    smoothing = float(margins_NK.mean()) / (len(margins_NK) + 1)
    highest_N = margins_NK.max(axis=1)
    below_NK = margins_NK - highest_N[:, None]
    powers_NK = np.empty_like(below_NK)
    low, high, b = 1 / MAX_INVERSE_TEMPERATURE, MAX_INVERSE_TEMPERATURE, start
    while True:
        np.exp(np.multiply(below_NK, b, out=powers_NK), out=powers_NK)
        sums_N = powers_NK.sum(axis=1)
        powers_NK *= below_NK
        mean_N = powers_NK.sum(axis=1) / sums_N
        slope = float((mean_N + highest_N).mean()) - smoothing
        curvature = float((np.einsum("nk,nk->n", powers_NK, below_NK) / sums_N - mean_N**2).mean())
        low, high = (low, b) if slope > 0 else (b, high)
        step = b - slope / curvature if curvature > 0 else 0.0
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - b) <= 1e-6 * b:
            return Calibration(float((np.log(sums_N) + b * highest_N).mean()) - b * smoothing, 1 / following)
        b = following


def abstention_thresholds(probabilities_NK: Floats, rates: Sequence[float] = RATES) -> dict[float, float]:
    """By rate, the probability below which the best class is too uncertain.

    Conformal prediction (Vovk et al. 2005): at most this share of new images of these classes has a lower best
    probability. This holds approximately, as leave-one-out scores come from heads with one example less.
    """
    sorted_N = np.sort(probabilities_NK.max(axis=1))
    places = {rate: int(rate * (len(sorted_N) + 1)) for rate in rates}
    return {rate: float(sorted_N[place - 1]) if place else 0.0 for rate, place in places.items()}
