"""Reports a few-shot fit: accuracy, confusion, suspicious labels, learning curve and calibration.

All numbers are of leave-one-out predictions. Rates are 0 to 1.

Legend: N examples, K classes, E joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np

from prompted_clip.calibration import named_thresholds, softmax
from prompted_clip.features import Bools, Features, Floats, Ints
from prompted_clip.few_shot import AUTO_METHODS, FEW_SHOT_METHODS
from prompted_clip.fit import TEXT, FewShotFit, fit_few_shot, held_out_logits
from prompted_clip.semi_supervised import GDA_UNLABELLED, UnlabelledImages

AUTO: Final = "auto"
"""The method that stands for the best of `AUTO_METHODS`."""
SUSPECT_SHARE: Final = 0.13
"""At most this share of the examples is suspected."""
SUSPECT_RATIO: Final = 0.3
"""A suspect's label is less than this times as probable as the predicted class."""
N_BINS: Final = 15


@dataclass(frozen=True)
class Rate:
    """A share of examples with its 95 % Wilson interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassFit:
    """One class.

    Attributes:
        name: label.
        n_examples: labelled images.
        is_fitted: False if there are too few examples and the text features alone score the class.
        accuracy: None without examples.
        text_accuracy: of the text features alone; None without examples.
        half_accuracy: with half of the examples; None without examples.
        mistaken_for: the most frequent wrong prediction, or None.
    """

    name: str
    n_examples: int
    is_fitted: bool
    accuracy: Rate | None
    text_accuracy: float | None
    half_accuracy: float | None
    mistaken_for: str | None


@dataclass(frozen=True)
class Suspect:
    """An example whose label the other examples contradict.

    Attributes:
        index: position among the examples.
        label, predicted: class names.
        probability: of the label; the predicted class has a higher one.
    """

    index: int
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class FitReport:
    """Accuracy and calibration of a fit.

    Attributes:
        method: as in `FewShotFit`.
        alpha, temperature: as in `FewShotFit`.
        n_examples: labelled images of all classes.
        n_unlabelled: unlabelled images; only a fit with the method `gda-unlabelled` uses them.
        accuracy: with all examples.
        text_accuracy: of the text features alone.
        half_accuracy: with half of the examples; well below `accuracy` if more examples are likely to help.
        classes: in class order.
        confusion: counts; rows are labels, columns predictions.
        suspects: worst first.
        calibration_error_before, calibration_error_after: expected calibration error without and with the temperature.
        abstain: by abstention rate, the least probability of an answer.
    """

    method: str
    alpha: float
    temperature: float
    n_examples: int
    n_unlabelled: int
    accuracy: Rate
    text_accuracy: float
    half_accuracy: float
    classes: tuple[ClassFit, ...]
    confusion: tuple[tuple[int, ...], ...]
    suspects: tuple[Suspect, ...]
    calibration_error_before: float
    calibration_error_after: float
    abstain: dict[str, float]


def fit_and_report(
    features: Floats | Features,
    labels_N: Ints,
    text_logits_NK: Floats,
    class_names: Sequence[str],
    method: str = AUTO,
    unlabelled: UnlabelledImages | None = None,
) -> tuple[FewShotFit, FitReport]:
    """Fit a head with a method of `FEW_SHOT_METHODS`, or with the best of `AUTO_METHODS`, and report it.

    The other arguments are those of `fit_few_shot`.
    """
    methods = AUTO_METHODS if method == AUTO else {method: FEW_SHOT_METHODS[method]}
    known = Features.of(features)
    fit = fit_few_shot(known, labels_N, text_logits_NK, methods, unlabelled)
    return fit, report_fit(fit, known, class_names, unlabelled)


def report_fit(
    fit: FewShotFit, features: Floats | Features, class_names: Sequence[str], unlabelled: UnlabelledImages | None = None
) -> FitReport:
    """Report a fit; `features` and `unlabelled` are those that it was made from."""
    labels_N, probabilities_NK = fit.labels_N, fit.probabilities()
    n_classes, predicted_N = len(class_names), fit.logits_NK.argmax(axis=1)
    is_right_N, is_right_text_N = predicted_N == labels_N, fit.text_logits_NK.argmax(axis=1) == labels_N
    is_right_half_N = _right_with_half(fit, Features.of(features), unlabelled)
    confusion_KK = np.bincount(labels_N * n_classes + predicted_N, minlength=n_classes**2).reshape(n_classes, n_classes)
    counts_K = confusion_KK.sum(axis=1)
    n_right_text_K = np.bincount(labels_N, is_right_text_N, n_classes)
    n_right_half_K = np.bincount(labels_N, is_right_half_N, n_classes)

    mistakes_KK = confusion_KK * (1 - np.eye(n_classes, dtype=np.int64))
    mistaken_K, n_mistakes_K = mistakes_KK.argmax(axis=1), mistakes_KK.sum(axis=1)

    def of_class(index: int) -> ClassFit:
        n = int(counts_K[index])
        return ClassFit(
            name=class_names[index],
            n_examples=n,
            is_fitted=fit.method != TEXT and bool(fit.is_fitted_K[index]),
            accuracy=wilson(int(confusion_KK[index, index]), n) if n else None,
            text_accuracy=float(n_right_text_K[index]) / n if n else None,
            half_accuracy=float(n_right_half_K[index]) / n if n else None,
            mistaken_for=class_names[int(mistaken_K[index])] if n_mistakes_K[index] else None,
        )

    return FitReport(
        method=fit.method,
        alpha=fit.alpha,
        temperature=fit.temperature,
        n_examples=len(labels_N),
        n_unlabelled=0 if unlabelled is None else len(unlabelled.features_UE),
        accuracy=wilson(int(is_right_N.sum()), len(labels_N)),
        text_accuracy=float(is_right_text_N.mean()),
        half_accuracy=float(is_right_half_N.mean()),
        classes=tuple(of_class(index) for index in range(n_classes)),
        confusion=tuple(tuple(row_K) for row_K in confusion_KK.tolist()),
        suspects=tuple(
            Suspect(
                int(row), class_names[labels_N[row]], class_names[predicted_N[row]],
                float(probabilities_NK[row, labels_N[row]]),
            )
            for row in suspects(probabilities_NK, labels_N)
        ),
        calibration_error_before=calibration_error(softmax(fit.logits_NK), labels_N),
        calibration_error_after=calibration_error(probabilities_NK, labels_N),
        abstain=named_thresholds(probabilities_NK),
    )  # fmt: skip


def suspects(probabilities_NK: Floats, labels_N: Ints) -> Ints:
    """Rows whose labels look wrong, least probable label first.

    Args:
        probabilities_NK: of each example as if it had not been seen.
        labels_N: their labels.
    """
    own_N = probabilities_NK[np.arange(len(labels_N)), labels_N]
    contradicted = np.flatnonzero(own_N < SUSPECT_RATIO * probabilities_NK.max(axis=1))
    n_most = int(np.ceil(SUSPECT_SHARE * len(labels_N)))
    result: Ints = contradicted[np.argsort(own_N[contradicted], kind="stable")][:n_most]
    return result


def calibration_error(probabilities_NK: Floats, labels_N: Ints) -> float:
    """Expected calibration error over `N_BINS` bins of equal width (Guo et al. 2017)."""
    top_N, is_right_N = probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == labels_N
    bins_N = np.minimum((top_N * N_BINS).astype(np.int64), N_BINS - 1)
    return float(np.abs(np.bincount(bins_N, is_right_N - top_N, N_BINS)).sum() / len(labels_N))


def wilson(n_right: int, n: int, z: float = 1.96) -> Rate:
    """A share of n > 0 examples with its 95 % interval (Wilson 1927)."""
    rate, square = n_right / n, z * z / n
    middle, half = rate + square / 2, z * sqrt(rate * (1 - rate) / n + square / (4 * n))
    return Rate(rate, (middle - half) / (1 + square), (middle + half) / (1 + square))


def _right_with_half(fit: FewShotFit, features: Features, unlabelled: UnlabelledImages | None) -> Floats:
    """1 for each example that a fit of the same method on the other half of its class gets right, otherwise 0."""
    is_first_N = first_half(fit.labels_N, features.order_N)
    methods = {name: method for name, method in FEW_SHOT_METHODS.items() if name == fit.method}
    used = unlabelled if fit.method == GDA_UNLABELLED else None
    is_right_N = np.zeros(len(fit.labels_N))
    for is_train_N in (is_first_N, ~is_first_N):
        if is_train_N.any() and not is_train_N.all():
            logits_NK = held_out_logits(fit, features, is_train_N, methods, used)
            is_right_N[~is_train_N] = logits_NK.argmax(axis=1) == fit.labels_N[~is_train_N]
    return is_right_N


def first_half(labels_N: Ints, order_N: Floats) -> Bools:
    """Half of the examples of every class, rounded up: those with the least `order_N`.

    A changed label moves few other examples to the other half; another order of the examples moves none.
    """
    counts_K = np.bincount(labels_N)
    starts_K = np.cumsum(counts_K) - counts_K
    place_N = np.empty_like(labels_N)
    place_N[np.lexsort((order_N, labels_N))] = np.arange(len(labels_N)) - np.repeat(starts_K, counts_K)
    is_first_N: Bools = 2 * place_N < counts_K[labels_N]
    return is_first_N
