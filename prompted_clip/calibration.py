"""Calibration of logits: the temperature with the least log-loss, and thresholds for abstaining.

Legend: N examples, K classes.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from prompted_clip.features import Floats, Ints

RATES: Final = (0.01, 0.05, 0.1)
"""Abstention rates with a stored threshold."""
MAX_INVERSE_TEMPERATURE: Final = 30.0
FINE, COARSE = 1e-6, 1e-4
"""Relative last step to the inverse temperature, of a result and of a candidate."""
ROUNDING: Final = 1e-12
"""The search for an inverse temperature tries its bounds themselves, so that it ends there from any start."""
MAX_CHANGES: Final = 10
"""Further steps to a least loss lower it by less than this many times the estimate for the next one."""


class Calibration(NamedTuple):
    """The least mean log-loss over all temperatures, and that temperature."""

    loss: float
    temperature: float


def softmax(logits_NK: Floats) -> Floats:
    """Probabilities, row by row."""
    powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    result: Floats = powers_NK / powers_NK.sum(axis=1, keepdims=True)
    return result


def calibrate(logits_NK: Floats, labels_N: Ints) -> Calibration:
    """The temperature with the least mean log-loss.

    The targets are smoothed by 1/(N + 1), as in Platt scaling, so that the temperature of separable classes is not 0.
    """
    return calibrate_margins(margins(logits_NK, labels_N))


def margins(logits_NK: Floats, labels_N: Ints) -> Floats:
    """Logits minus that of the label."""
    margins_NK: Floats = logits_NK - np.take_along_axis(logits_NK, labels_N[:, None], axis=1)
    return margins_NK


def calibrate_margins(
    margins_NK: Floats, start: float = 1.0, tolerance: float = FINE, least: float = np.inf
) -> Calibration:
    """See `calibrate`; the loss is convex in b = 1/T, so this is Newton's method within a bracket, from `start`.

    It ends with a step below `tolerance`, where the relative error of T is about its square, that of the loss its
    cube; or with a loss that will remain above `least`, as the step can lower it by a fraction of the difference.
    """
    smoothing = float(margins_NK.mean()) / (len(margins_NK) + 1)
    highest_N = margins_NK.max(axis=1)
    below_NK = margins_NK - highest_N[:, None]
    powers_NK, ones_K = np.empty_like(below_NK), np.ones(below_NK.shape[1])
    least_b, most_b = 1 / MAX_INVERSE_TEMPERATURE, MAX_INVERSE_TEMPERATURE
    low, high, b = least_b * (1 - ROUNDING), most_b * (1 + ROUNDING), min(max(start, least_b), most_b)
    while True:
        np.exp(np.multiply(below_NK, b, out=powers_NK), out=powers_NK)
        sums_N = powers_NK @ ones_K  # faster than the sum of each row
        powers_NK *= below_NK
        mean_N = powers_NK @ ones_K / sums_N
        slope = float((mean_N + highest_N).mean()) - smoothing
        curvature = float((np.einsum("nk,nk->n", powers_NK, below_NK) / sums_N - mean_N**2).mean())
        low, high = (low, b) if slope > 0 else (b, high)
        step = min(max(b - slope / curvature, least_b), most_b) if curvature > 0 else 0.0
        following = step if low < step < high or step == b else (low * high) ** 0.5
        loss, change = float((np.log(sums_N) + b * highest_N).mean()) - b * smoothing, slope * (following - b) / 2
        if abs(following - b) <= tolerance * b or (following == step and loss + MAX_CHANGES * change > least):
            return Calibration(loss + change, 1 / following)
        b = following


def abstention_thresholds(probabilities_NK: Floats, rates: Sequence[float] = RATES) -> dict[float, float]:
    """By rate, the probability below which the best class is too uncertain.

    Conformal prediction (Vovk et al. 2005): at most this share of new images of these classes has a lower best
    probability. This holds approximately, as leave-one-out scores come from heads with one example less.
    """
    sorted_N = np.sort(probabilities_NK.max(axis=1))
    places = {rate: int(rate * (len(sorted_N) + 1)) for rate in rates}
    return {rate: float(sorted_N[place - 1]) if place else 0.0 for rate, place in places.items()}


def named_thresholds(probabilities_NK: Floats) -> dict[str, float]:
    """Abstention thresholds by rate, as in a bundle's manifest."""
    return {f"{rate:g}": threshold for rate, threshold in abstention_thresholds(probabilities_NK).items()}
