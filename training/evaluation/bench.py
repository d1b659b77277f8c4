"""Runs trials on one backbone, with or without boosting prompts.

A trial's prompt stack is trained, loaded from the results folder, or zero-shot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from prompt_store.bundle import Bundle
from prompt_store.manifest import is_domain
from prompted_clip.stack import PromptStack
from training.adapt_run import AdaptJob, run_adapt
from training.adapting.reference import TextSettings
from training.data.dataset import Dataset, shorten
from training.data.few_shot import few_shot
from training.data.readable import drop_unreadable
from training.evaluation.predict import Predictions, Predictor
from training.evaluation.rows import ZERO_SHOT, Results, slug, training_name
from training.files import digest_of, read_bundle_file
from training.fit_run import FitJob, run_fit, zero_shot_bundle
from training.label_free.methods import LABEL_FREE
from training.label_free_run import LabelFreeJob, run_label_free
from training.progress import progress_bars
from training.prompted_backbone import PromptedBackbone, boosted_backbone
from training.recipe import AdaptRecipe, FewShotRecipe, Settings
from training.unlabelled import train_images_without_labels


@dataclass(frozen=True)
class Trial:
    """One method with one seed, or the zero-shot base model.

    Attributes:
        method: a key of `ALL_RECIPES`, or `zero-shot`.
        recipe: with the trial's seed, if it has one; None for zero-shot.
        shots: labelled images per class; 0 for zero-shot and label-free methods.
        seed: seed of sampling and training; None if nothing is random.
    """

    method: str = ZERO_SHOT
    recipe: Settings | None = None
    shots: int = 0
    seed: int | None = None

    @classmethod
    def of(cls, method: str, recipe: Settings, *, shots: int, seed: int) -> "Trial":
        """Create a method's trial; sets the recipe's seed if it has one."""
        shots = 0 if method in LABEL_FREE else shots
        if "seed" not in type(recipe).model_fields:
            return cls(method, recipe, shots)
        return cls(method, recipe.model_copy(update={"seed": seed}), shots, seed)

    def with_further_classes(self, names: Sequence[str]) -> "Trial":
        """The trial with a bundle that covers classes without images, too, if its method needs their names (TCP)."""
        if self.recipe is None or "further_classes" not in type(self.recipe).model_fields:
            return self
        return replace(self, recipe=self.recipe.model_copy(update={"further_classes": tuple(names)}))

    @property
    def is_label_free(self) -> bool:
        """Whether the method learns from all train images without their labels."""
        return self.method in LABEL_FREE


class ShotSampler:
    """Samples train images per trial and drops damaged ones; each sample is cached and shared by all methods.

    Args:
        console: reports damaged images.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._samples: dict[tuple[str, Path, str, int, int], Dataset] = {}

    def sample(self, dataset: Dataset, trial: Trial) -> Dataset:
        """The data set with a trial's train images, without damaged ones; unchanged for zero-shot and label-free ones.

        Raises:
            DatasetError: no train images, or a class without readable images.
        """
        if trial.seed is None or trial.is_label_free:
            return dataset
        key = (dataset.name, dataset.root, dataset.digest, trial.shots, trial.seed)
        if key not in self._samples:
            drawn = drop_unreadable(few_shot(dataset, trial.shots, seed=trial.seed), ("train",))
            if lost := drawn.unreadable[len(dataset.unreadable) :]:
                named = shorten(lost)
                self._console.print(f"skipped {len(lost)} unreadable train images: {named}", markup=False)
            self._samples[key] = drawn
        return self._samples[key]


class Bench:
    """Trains and evaluates trials on one backbone.

    Args:
        predictor: wraps the backbone; shared by all benches of one backbone, with its cache of decoded images.
        results: folder of finished rows and bundles.
        console: shows progress.
        boost: the boosting bundle; None for the plain backbone.
        checkpoint_every: steps between checkpoints.
        sampler: shared with benches that train on the same images.

    Raises:
        BoostBundleError: the bundle is for other weights, or methods cannot build on it.
    """

    def __init__(
        self,
        predictor: Predictor,
        results: Results,
        console: Console,
        boost: Bundle | None = None,
        *,
        checkpoint_every: int = 100,
        sampler: ShotSampler | None = None,
    ) -> None:
        self.results = results
        self.console = console
        self._predictor = predictor
        self._model = predictor.model
        self._boost = boost
        self._checkpoint_every = checkpoint_every
        self._sampler = sampler or ShotSampler(console)
        self.base_model = (
            PromptedBackbone(self._model.backbone) if boost is None else boosted_backbone(self._model.backbone, boost)
        )

    @property
    def is_boosted(self) -> bool:
        """Whether the bench uses boosting prompts."""
        return self._boost is not None

    @property
    def suffix(self) -> str:
        """Suffix of method names in messages."""
        return " with boosting" if self.is_boosted else ""

    def sample(self, trial: Trial, dataset: Dataset) -> Dataset:
        """The data set with a trial's train images, see `ShotSampler.sample`.

        Raises:
            DatasetError: as `ShotSampler.sample`.
        """
        return self._sampler.sample(dataset, trial)

    def prepare(self, trial: Trial, train: Dataset, name: str) -> tuple[PromptStack, str | None]:
        """Train or load the stack of a trial, for the classes of `train`.

        Args:
            trial: the trial.
            train: provides train images; zero-shot only uses class names and template.
            name: name of the whole data set; becomes the bundle's domain.

        Returns:
            The stack, and the name of its training.

        Raises:
            TrainingError: as `run_adapt`.
        """
        if trial.recipe is None:
            return self._zero_shot(train), None
        training = self._train(trial, trial.recipe, train, name)
        return self._model.load_stack(read_bundle_file(self._bundle(training))), training

    def rename(self, trial: Trial, stack: PromptStack, dataset: Dataset) -> PromptStack:
        """The trial's stack with the classes of another data set.

        Raises:
            StackMismatchError: the stack supports its own classes only.
        """
        if trial.recipe is None:
            return self._zero_shot(dataset)
        if dataset.class_names == stack.class_names:
            return stack
        is_closed = trial.is_label_free or stack.labels == "own"
        if is_closed and set(dataset.class_names) <= set(stack.class_names):
            return stack.restricted(dataset.class_names)
        return self._model.with_labels(stack, dataset.class_names)

    def predict(self, stack: PromptStack, dataset: Dataset, title: str) -> Predictions:
        """Predict a data set's test images with a progress bar; damaged images are skipped and reported.

        Raises:
            DatasetError: no readable test images.
        """
        n_images = len(dataset.split("test"))
        with progress_bars(self.console) as progress:
            check = progress.add_task("checking images", total=n_images, visible=False, note="")
            task = progress.add_task(title, total=n_images, note="")
            predictions = self._predictor.predict(
                stack,
                dataset,
                on_check=lambda done, _: progress.update(check, completed=done, visible=done < n_images),
                on_progress=lambda n: progress.advance(task, n),
            )
            progress.update(task, completed=n_images)
        if predictions.unreadable:
            n_lost, named = len(predictions.unreadable), shorten(predictions.unreadable)
            self.console.print(f"skipped {n_lost} unreadable test images: {named}", markup=False)
        return predictions

    def _zero_shot(self, dataset: Dataset) -> PromptStack:
        """The boosting prompts with their own text, or the plain backbone with the hand-written prompt."""
        if self._boost_stack is None:
            return self._model.plain_stack(ZERO_SHOT, dataset.class_names, [dataset.template])
        return self._model.with_labels(self._boost_stack, dataset.class_names)

    @cached_property
    def _boost_stack(self) -> PromptStack | None:
        return self._model.boost_stack(self._model.load_stack(self._boost)) if self._boost is not None else None

    def _train(self, trial: Trial, recipe: Settings, train: Dataset, name: str) -> str:
        """Train, unless the bundle exists, resuming from a checkpoint; returns the name of the training."""
        identity = {
            "data": train.digest,
            "method": trial.method,
            "recipe": recipe_digest(recipe),
            "backbone": self.base_model.backbone.fingerprint,
            "boost": self.base_model.boost_digest or "",
        }
        training = training_name(
            train.name, trial.method, boosted=self.is_boosted, shots=trial.shots, seed=trial.seed, identity=identity
        )
        out = self._bundle(training)
        if out.is_file():
            return training
        if isinstance(recipe, FewShotRecipe):
            base = zero_shot_bundle(self.base_model, train, domain_name(name))
            run_fit(FitJob(base, train, out, trial.method), self._model, self.console)
        elif isinstance(recipe, TextSettings) and trial.is_label_free:
            result = self._train_label_free(trial, recipe, train, name, out)
            self.results.save_losses(training, result["losses"])
        elif isinstance(recipe, AdaptRecipe):
            job = AdaptJob(domain_name(name), train, out, out.with_name("checkpoint"), self._checkpoint_every)
            result = run_adapt(job, trial.method, recipe, self.base_model, self.console)
            self.results.save_losses(training, result["losses"])
        return training

    def _train_label_free(
        self, trial: Trial, recipe: TextSettings, train: Dataset, name: str, out: Path
    ) -> dict[str, Any]:
        images = train_images_without_labels(train, self.console)
        if lost := images.unreadable:
            self.console.print(f"skipped {len(lost)} unreadable train images: {shorten(lost)}", markup=False)
        checkpoint = out.with_name("checkpoint")
        job = LabelFreeJob(domain_name(name), images, train.class_names, out, checkpoint, self._checkpoint_every)
        return run_label_free(job, trial.method, recipe, self.base_model, self.console)

    def _bundle(self, training: str) -> Path:
        return self.results.training_folder(training) / "bundle.safetensors"


def recipe_digest(recipe: Settings) -> str:
    """Digest of all values of a recipe."""
    return digest_of(recipe.model_dump_json().encode())


def domain_name(name: str) -> str:
    """Convert a data set's name to a domain name."""
    domain = slug(name)
    return domain if is_domain(domain) else f"data-{domain}"
