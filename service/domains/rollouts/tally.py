"""The figures of a rollout's comparisons, and the decision that follows from them.

Both versions score the same image, so the difference of their highest probabilities is paired: its standard error does
not contain the spread between images. The decision may be taken after every image, because a threshold above 0 is far
from the noise of versions that do not differ: `tests/service/domains/rollouts/test_tally.py` counts false decisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from prompt_store.rollouts import RolloutPlan
    from service.inference import Prediction

STANDARD_ERRORS: Final = 3.0
"""By so many the mean shift must exceed its threshold."""


class Decision(NamedTuple):
    """How a rollout ends, and the figures that led to it."""

    event: Literal["rollback", "complete"]
    detail: str


@dataclass(eq=False)
class Tally:
    """Counts of one rollout in one process.

    Attributes:
        n_compared: images that both versions were given.
        n_disagreed: of these, those with another most probable class.
        n_failed: of these, those that the candidate could not score; they count as disagreements, too.
        n_dropped: images that were not compared: the device was busy, the request had more than `MAX_IMAGES`, or the
            other version gave no answer.
    """

    n_compared: int = 0
    n_disagreed: int = 0
    n_failed: int = 0
    n_dropped: int = 0
    _mean: float = 0.0
    _squares: float = 0.0

    def add(self, live: Prediction, candidate: Prediction) -> bool:
        """Count an image by the most probable class of each version; returns whether they agree."""
        self.n_compared += 1
        agrees = live.label == candidate.label
        self.n_disagreed += not agrees
        shift, before = candidate.probability - live.probability, self._mean
        self._mean += (shift - before) / self._n_answered  # Welford 1962
        self._squares += (shift - before) * (shift - self._mean)
        return agrees

    def add_failed(self) -> None:
        """Count an image that the candidate could not score."""
        self.n_compared += 1
        self.n_failed += 1

    @property
    def disagreement(self) -> float | None:
        """Share of the compared images; None without any."""
        return (self.n_disagreed + self.n_failed) / self.n_compared if self.n_compared else None

    @property
    def confidence_shift(self) -> float | None:
        """Mean difference of the highest probabilities, candidate minus live; None without images."""
        return self._mean if self._n_answered else None

    @property
    def confidence_shift_error(self) -> float | None:
        """Standard error of the mean difference; None with fewer than two images."""
        n = self._n_answered
        return math.sqrt(self._squares / (n - 1) / n) if n > 1 else None

    def decide(self, plan: RolloutPlan) -> Decision | None:
        """The decision, None before `min_images` and while the rollout goes on."""
        if self.disagreement is None or self.n_compared < plan.min_images:
            return None
        images = f"of {self.n_compared} images"
        if self.disagreement > plan.max_disagreement:
            failed = f", {self.n_failed} failed" if self.n_failed else ""
            found = f"{self.disagreement:.1%} {images} disagree{failed}"
            return Decision("rollback", f"{found}; at most {plan.max_disagreement:.1%} may")
        shift, error = self.confidence_shift, self.confidence_shift_error
        if shift is not None and error is not None and abs(shift) - STANDARD_ERRORS * error > plan.max_confidence_shift:
            found = f"confidence shift {shift:+.3f} \N{PLUS-MINUS SIGN} {error:.3f} {images}"
            return Decision("rollback", f"{found}; at most {plan.max_confidence_shift:.3f} is allowed")
        if plan.then == "activate":
            return Decision("complete", f"{self.disagreement:.1%} {images} disagree")
        return None

    @property
    def _n_answered(self) -> int:
        return self.n_compared - self.n_failed
