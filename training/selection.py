"""Model selection: scores on held-out images before and during a run, and the state with the best score.

Training sees neither the held-out images nor their labels. The published protocols select nothing: they use the last
step (see `training.evaluation`).
"""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from training.errors import NoGainError
from training.recipe import Recipe

N_MEASUREMENTS: Final = 8
"""At most this many measurements per run, spread evenly; the last one follows the last step."""

Scores = Mapping[str, float]


class Stateful(Protocol):
    """The part of a `Learner` that selection reads and restores."""

    def state_dict(self) -> Mapping[str, Any]:
        """All state that training changes."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Restore it."""


class Selection:
    """Measures a run on held-out images, and keeps its best state.

    Args:
        measure: returns scores by name, as fractions; higher is better, and the first one selects.
        before: the same scores of the model without the prompts that are trained.
        n_images: number of held-out images.
        report: prints one line.
    """

    def __init__(
        self,
        measure: Callable[[], Scores],
        before: Scores,
        n_images: int,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.best_step = 0
        self.best: Scores = {}
        self._name = next(iter(before))
        self.before = before
        self._after: Scores = {}
        self._n_images = n_images
        self._measure = measure
        self._report = report
        self._best_state: dict[str, Any] = {}
        report(f"Held-out images, before training: {describe_scores(before)}")

    @property
    def is_worse(self) -> bool:
        """Whether the best state scores lower than the model did before training."""
        return self.best[self._name] < self.before[self._name]

    def after_step(self, learner: Stateful, step: int, n_steps: int) -> None:
        """Measure if that is due after `step` of `n_steps` completed steps; of equal scores the later one is best."""
        if step % math.ceil(n_steps / N_MEASUREMENTS) and step != n_steps:
            return
        self._after = self._measure()
        if not self.best or self._after[self._name] >= self.best[self._name]:
            self.best, self.best_step = self._after, step
            self._best_state = copy.deepcopy(dict(learner.state_dict()))
        self._report(f"Held-out images, step {step} of {n_steps}: {describe_scores(self._after)}")

    def finish(self, learner: Stateful, recipe: Recipe, n_steps: int, checkpoint: Path, *, keep_worse: bool) -> None:
        """Load the best state into the learner.

        Args:
            learner: the trained learner.
            recipe: the run's recipe, for the advice.
            n_steps: completed steps.
            checkpoint: deleted if the run fails, so that a run with another recipe can start.
            keep_worse: accept a best state that is worse than the model was before.

        Raises:
            NoGainError: it is worse; names both scores and the setting to change.
        """
        learner.load_state_dict(self._best_state)
        if not self.is_worse:
            self._report_small_gain()
            return
        message = (
            f"Training made the model worse: {self._name} on {self._n_images} held-out images was "
            f"{self.before[self._name]:.1%} before training and {self.best[self._name]:.1%} at best, after step "
            f"{self.best_step} of {n_steps}."
        )
        if keep_worse:
            self._report(f"{message} Written because of --keep-worse.")
            return
        checkpoint.unlink(missing_ok=True)
        msg = f"{message} Nothing was written. {self._advice(recipe, n_steps)} --keep-worse writes the bundle anyway."
        raise NoGainError(msg)

    def metrics(self) -> dict[str, Any]:
        """Scores before, best and after, and the step of the best, for the report and the provenance."""
        moments = {"before": self.before, "best": self.best, "after": self._after}
        scores = {f"held_out_{name}_{when}": of[name] for name in self.before for when, of in moments.items()}
        return {"n_held_out": self._n_images, "best_step": self.best_step} | scores

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint of the run."""
        scores = {"best": dict(self.best), "after": dict(self._after)}
        return scores | {"best_step": self.best_step, "best_state": self._best_state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.best, self._after, self.best_step = state["best"], state["after"], state["best_step"]
        self._best_state = state["best_state"]

    def _report_small_gain(self) -> None:
        before = self.before[self._name]
        gain, error = self.best[self._name] - before, math.sqrt(before * (1 - before) / self._n_images)
        if gain < error:
            self._report(
                f"A gain of {gain:.1%} is within the standard error of {self._n_images} held-out images, {error:.1%}: "
                "other images may show none."
            )

    def _advice(self, recipe: Recipe, n_steps: int) -> str:
        if self.best_step == n_steps:
            return f"The score was best at the end: train longer (epochs, now {recipe.epochs}), or use more images."
        return (
            f"The score fell after step {self.best_step}: lower the rate (--set "
            f"learning_rate={recipe.learning_rate / 4:.2g}, now {recipe.learning_rate:.2g}), or use more images."
        )


def describe_scores(scores: Scores) -> str:
    """Scores in per cent, as text."""
    return ", ".join(f"{name} {value:.1%}" for name, value in scores.items())
