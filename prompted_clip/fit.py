"""Fits a few-shot head to labelled examples: method, weight, temperature, and thresholds for abstaining.

Everything is chosen by leave-one-out scores, so no example is held back. `fit_report.py` reports them.

Legend: N examples, U unlabelled images, K classes, E joint width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np

from prompted_clip.calibration import (
    COARSE,
    Calibration,
    calibrate,
    calibrate_margins,
    margins,
    named_thresholds,
    softmax,
)
from prompted_clip.features import AlphaSearch, Bools, Features, Floats, Ints, LinearTerm
from prompted_clip.few_shot import AUTO_METHODS, FewShotMethod
from prompted_clip.semi_supervised import GDA_UNLABELLED, UnlabelledImages, semi_supervised_gda

TEXT: Final = "text"
"""The method of a fit that keeps the text features alone."""
MIN_EXAMPLES: Final = 4
"""A class with fewer keeps its text features alone."""
ALPHAS: Final = np.logspace(-1.5, 1.5, 13)
"""Candidates besides 0, in units of the ratio of the logits' spreads."""
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
        return named_thresholds(self.probabilities())


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
    best = text = calibrate_margins(margins(text_logits_NK, labels_N), known.start(TEXT))
    known.searches[TEXT] = AlphaSearch(0, {0: 1 / text.temperature})
    method_name, alpha, logits_NK = TEXT, 0.0, text_logits_NK
    term, is_fitted_K = _no_term(n_classes, known.values_NE.shape[1]), _has_enough(labels_N, n_classes)
    for name, method, is_own_K in _candidates(labels_N, n_classes, methods, unlabelled, text.temperature):
        own_term, scores_NK = _term_and_scores(method, known, labels_N, is_own_K)
        largest = max(np.abs(own_term.weight_KE).max(), np.abs(own_term.bias_K).max())
        alphas = _alphas(text_logits_NK, scores_NK, is_own_K, MAX_WEIGHT / largest)
        if not alphas:
            continue
        index, found = _best_alpha(text_logits_NK, scores_NK, labels_N, alphas, known.searches, name)
        if found.loss < best.loss:
            best, method_name, alpha, term, is_fitted_K = found, name, alphas[index], own_term, is_own_K
            logits_NK = text_logits_NK + alpha * scores_NK
    # From a rounded start, so that the last digit does not depend on where the search for alpha started.
    temperature = calibrate_margins(margins(logits_NK, labels_N), float(f"{1 / best.temperature:.3g}")).temperature
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
        # An example that changes halves costs the search a few steps, no more.
        search = f"{name} {'first' if is_train_N[0] else 'second'} half"
        index, found = _best_alpha(others_NK, scores_NK, others_N, alphas, features.searches, search)
        text = calibrate_margins(margins(others_NK, others_N), features.start(f"{search}, text"), COARSE, found.loss)
        features.searches[f"{search}, text"] = AlphaSearch(0, {0: 1 / text.temperature})
        if found.loss < text.loss:
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
    if not is_own_K.all():
        text_logits_NK, scores_NK = text_logits_NK[:, is_own_K], scores_NK[:, is_own_K]
    unit = _spread(text_logits_NK) / _spread(scores_NK)
    return [alpha for alpha in (unit * ALPHAS).tolist() if alpha < most]


def _best_alpha(
    text_logits_NK: Floats,
    scores_NK: Floats,
    labels_N: Ints,
    alphas: Sequence[float],
    searches: dict[str, AlphaSearch],
    name: str,
) -> tuple[int, Calibration]:
    """The index of the alpha with the least log-loss, and that loss.

    With b = 1/T, the log-loss is convex in (b, b alpha), so its least values over b fall and then rise with alpha: a
    descent from anywhere finds the least of all.

    Args:
        text_logits_NK: of the text features.
        scores_NK: of the term.
        labels_N: of the same examples.
        alphas: candidates.
        searches: earlier ones by name; this one starts where the one of its name ended, or else in the middle with
            b = 1, and is added.
        name: of this one.
    """
    last = searches.get(name) or AlphaSearch(len(alphas) // 2, {})
    text_margins_NK, score_margins_NK = margins(text_logits_NK, labels_N), margins(scores_NK, labels_N)
    found: dict[int, Calibration] = {}

    def at(index: int, inverse_temperature: float, least: float = np.inf) -> Calibration:
        if index not in found:
            margins_NK = text_margins_NK + alphas[index] * score_margins_NK
            start = last.inverses.get(index, inverse_temperature)
            found[index] = calibrate_margins(margins_NK, start, COARSE, least)
        return found[index]

    best = min(last.best, len(alphas) - 1)
    at(best, 1.0)
    for step in (1, -1):
        b = 1 / found[best].temperature
        while 0 <= best + step < len(alphas) and at(best + step, b, found[best].loss).loss < found[best].loss:
            best += step
            b = 1 / found[best].temperature
    searches[name] = AlphaSearch(best, {index: 1 / one.temperature for index, one in found.items()})
    return best, found[best]


def _term_and_scores(
    method: FewShotMethod, features: Features, labels_N: Ints, is_fitted_K: Bools
) -> tuple[LinearTerm, Floats]:
    """The term over all classes, and its leave-one-out scores; both centred over the fitted classes."""
    fitted, is_used_N = np.flatnonzero(is_fitted_K), is_fitted_K[labels_N]
    used_N = np.searchsorted(fitted, labels_N[is_used_N])
    own, without_NK = method.fit_and_leave_out(features.rows(is_used_N), used_N, len(fitted))
    term = _over_all_classes(own, is_fitted_K)
    without_NK -= without_NK.mean(axis=1, keepdims=True)
    if is_fitted_K.all():
        return term, without_NK
    scores_NK = np.zeros((len(labels_N), len(is_fitted_K)))
    scores_NK[~is_used_N] = term(features.values_NE[~is_used_N])
    scores_NK[np.ix_(is_used_N, fitted)] = without_NK
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
    centred_NK = scores_NK - scores_NK.mean(axis=1, keepdims=True)
    return float(np.linalg.norm(centred_NK)) / sqrt(centred_NK.size) or 1.0
