"""Estimates time and disk space of a reproduction, per data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prompted_clip.backbone import Backbone
from training.data.dataset import Dataset
from training.data.few_shot import base_and_new, few_shot
from training.evaluation.estimate import Timer
from training.evaluation.paper_recipes import boost_recipe
from training.evaluation.plan import Plan
from training.evaluation.rows import MAX_SAVED_FEATURES
from training.recipe import BoostRecipe, Settings
from training.reproduction.preflight import DatasetCheck
from training.reproduction.run import ReproductionJob

_FLOAT_BYTES: Final = 4


@dataclass(frozen=True)
class DatasetEstimate:
    """The work on one training data set.

    Attributes:
        name: the training data set.
        runs: trainings, phase 1 included.
        n_images: images through the models, epochs included.
        seconds: estimated duration of all of it; finished runs are not left out.
        results_bytes: estimated size of bundles and predictions that are kept.
    """

    name: str
    runs: int
    n_images: int
    seconds: float
    results_bytes: int


def estimate(
    job: ReproductionJob, checks: Sequence[DatasetCheck], student: Backbone, timer: Timer
) -> Iterable[DatasetEstimate]:
    """Estimate each training data set of the tables, in their order; boosting counts once per data set.

    Of label-free methods only the tests are estimated, not the training: they choose their images as they run.

    Args:
        job: tables, seeds and recipe values.
        checks: the data sets; those with a problem must not be in the tables.
        student: the evaluated backbone.
        timer: times steps, or uses a given rate.
    """
    plans = [plan for table in job.tables for plan in job.plans(table, checks)]
    for name in dict.fromkeys(plan.sources[0].name for plan in plans):
        own = [plan for plan in plans if plan.sources[0].name == name]
        source, recipe = own[0].sources[0], boost_recipe(own[0].sources[0], job.boost_overrides)
        boosting = timer.boosting(source, recipe)
        runs, n_images, seconds = 1, boosting.n_images, boosting.seconds
        results = _bundle_bytes(student, recipe, len(source.class_names))
        for plan in own:
            for count, training, boosted in _trainings(plan):
                train = few_shot(source, training.shots, seed=job.seeds[0])
                train = base_and_new(train)[0] if plan.protocol == "base-to-new" else train
                work = timer.adapting(train, training.method, training.recipe, recipe if boosted else None)
                runs, n_images = runs + count, n_images + count * work.n_images
                seconds += count * work.seconds
                results += count * _bundle_bytes(student, recipe, len(train.class_names))
            n_rows = sum(len(plan.trials(source, boosted=boosted)) for boosted in (False, True))
            for target in plan.targets(source):
                work = timer.testing(target, len(target.split("test")))
                n_images, seconds = n_images + n_rows * work.n_images, seconds + n_rows * work.seconds
                results += n_rows * _row_bytes(student, target)
        yield DatasetEstimate(name, runs, n_images, seconds, results)


@dataclass(frozen=True)
class _Training:
    method: str
    recipe: Settings
    shots: int


def _trainings(plan: Plan) -> list[tuple[int, _Training, bool]]:
    """One training per method, shots and boosting, with the number of seeds; without label-free methods."""
    found = []
    for boosted in (False, True):
        first: dict[tuple[str, int], _Training] = {}
        for trial in plan.trials(plan.sources[0], boosted=boosted):
            if trial.recipe is not None and not trial.is_label_free:
                first.setdefault((trial.method, trial.shots), _Training(trial.method, trial.recipe, trial.shots))
        found += [(len(plan.seeds), training, boosted) for training in first.values()]
    return found


def _bundle_bytes(student: Backbone, recipe: BoostRecipe, n_classes: int) -> int:
    """A bundle with boosting prompts, as many adapting prompts, and text features: an upper bound."""
    image = min(recipe.image_depth, student.n_vision_layers) * recipe.image_tokens * student.vision_width
    text = min(recipe.text_depth, student.n_text_layers) * recipe.text_tokens * student.text_width
    return _FLOAT_BYTES * (2 * (image + text) + n_classes * student.embed_dim)


def _row_bytes(student: Backbone, target: Dataset) -> int:
    """Labels, predictions and sampled features of a row, uncompressed."""
    n_images = len(target.split("test"))
    return 2 * 8 * n_images + _FLOAT_BYTES * min(n_images, MAX_SAVED_FEATURES) * student.embed_dim
