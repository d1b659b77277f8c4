"""Estimates the duration of training and evaluation runs: from timed steps, or from a rate in images per second.

A timing runs the real learner on the first images of the data set for a few steps: decoding, both towers, optimizer.
The first step is left out, because it includes start-up costs.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import torch

from prompted_clip.backbone import Backbone
from prompted_clip.model import PromptedClip
from training.adapting.adapter import Adapter
from training.adapting.methods import METHODS
from training.boosting import Booster
from training.caspl_student import CasplStudent
from training.data.dataset import Dataset
from training.data.views import Views
from training.errors import RecipeError
from training.evaluation.predict import Predictor
from training.loop import Learner, TrainState, steps_per_epoch, train
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe, BoostRecipe, FewShotRecipe, Recipe, Settings
from training.teacher import Teacher

T = TypeVar("T", bound=Recipe)

TIMED_STEPS: Final = 4
TIMED_IMAGES: Final = 128
"""Test images of a timing."""


@dataclass(frozen=True)
class Work:
    """One training, or the evaluation of one data set.

    Attributes:
        n_images: images that pass through the model, epochs included.
        seconds: estimated duration.
    """

    n_images: int
    seconds: float


class Timer:
    """Estimates durations.

    Args:
        student: the evaluated backbone.
        teacher: the larger backbone of phase 1.
        images_per_second: use this rate for everything; None times a few steps of each kind of run.
    """

    def __init__(self, student: Backbone, teacher: Backbone, images_per_second: float | None = None) -> None:
        self._student, self._teacher = student, teacher
        self._rate = images_per_second

    @property
    def source(self) -> str:
        """Source of the durations, for messages."""
        if self._rate is not None:
            return f"a rate of {self._rate:g} images per second, as given"
        return f"{TIMED_STEPS} timed steps of each kind of training and {TIMED_IMAGES} test images, on this machine"

    def boosting(self, dataset: Dataset, recipe: BoostRecipe) -> Work:
        """One run of phase 1 on the train split."""
        paths = [image.path for image in dataset.split("train")]

        def learner(timed: BoostRecipe) -> Learner:
            student = CasplStudent(self._student, dataset.class_names, timed)
            teacher = Teacher(self._teacher, dataset.class_names, timed.teacher_template)
            n_timed = (TIMED_STEPS + 1) * timed.batch_size
            return Booster(student, [teacher], self._views(paths[:n_timed], timed), timed)

        return self._training(recipe, len(paths), learner)

    def adapting(self, dataset: Dataset, method: str, recipe: Settings, boost: BoostRecipe | None = None) -> Work:
        """One run of phase 2 on the train split; a closed-form head counts as one pass over it.

        Args:
            dataset: with the sampled shots and the classes to train.
            method: a key of `RECIPES`.
            recipe: the method's recipe.
            boost: on boosting prompts of this recipe's shape; None for the plain backbone.

        Raises:
            RecipeError: a label-free method, whose work depends on what it selects.
        """
        images = dataset.split("train")
        if isinstance(recipe, FewShotRecipe):
            return self.testing(dataset, len(images))
        if not isinstance(recipe, AdaptRecipe) or method not in METHODS:
            msg = f"The work of the label-free method {method} cannot be estimated."
            raise RecipeError(msg)

        def learner(timed: AdaptRecipe) -> Learner:
            model = self._base_model(dataset, boost)
            shown = images[: (TIMED_STEPS + 1) * timed.batch_size]
            built = METHODS[method].build(model, dataset.class_names, timed)
            views = self._views([image.path for image in shown], timed)
            return Adapter(built, model, views, [image.label for image in shown], timed)

        return self._training(recipe, len(images), learner)

    def testing(self, dataset: Dataset, n_images: int) -> Work:
        """One evaluation of `n_images` images."""
        if self._rate is not None:
            return Work(n_images, n_images / self._rate)
        images = dataset.split("test" if "test" in dataset.splits else "train")
        shown = replace(dataset, splits={"test": images[:TIMED_IMAGES]})
        predictor = Predictor(self._student)
        stack = PromptedClip(self._student).plain_stack("timing", dataset.class_names, [dataset.template])
        predictor.predict(stack, replace(shown, splits={"test": shown.split("test")[:1]}))
        start = time.perf_counter()
        predictor.predict(stack, shown)
        return Work(n_images, n_images * (time.perf_counter() - start) / len(shown.split("test")))

    def _training(self, recipe: T, n_images: int, learner: Callable[[T], Learner]) -> Work:
        steps = recipe.epochs * steps_per_epoch(recipe, n_images)
        seen = min(steps * recipe.batch_size, recipe.epochs * n_images)
        if self._rate is not None:
            return Work(seen, seen / self._rate)
        n_timed = min(n_images, (TIMED_STEPS + 1) * recipe.batch_size)
        epochs = math.ceil((TIMED_STEPS + 1) / steps_per_epoch(recipe, n_timed))
        timed = recipe.model_copy(update={"epochs": epochs, "warmup_epochs": 0})
        return Work(seen, steps * _seconds_per_step(learner(timed), timed))

    def _views(self, paths: Sequence[Path], recipe: Recipe) -> Views:
        return Views.for_training(paths, self._student, recipe.model_copy(update={"fixed_views": 0}))

    def _base_model(self, dataset: Dataset, boost: BoostRecipe | None) -> PromptedBackbone:
        if boost is None:
            return PromptedBackbone(self._student)
        base_model, _ = CasplStudent(self._student, dataset.class_names, boost).fold()
        return base_model


def _seconds_per_step(learner: Learner, recipe: Recipe) -> float:
    """Mean duration of the steps after the first."""
    times: list[float] = []

    def note(_: TrainState) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    train(learner, recipe, on_step=note)
    return (times[-1] - times[0]) / (len(times) - 1)


def format_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours, such as `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
