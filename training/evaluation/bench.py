"""What is measured, and on what: one backbone with or without a domain's boosting prompts, and one trial on it.

Knows how a trial becomes a stack: learned now, found in the results folder, or zero-shot. Does not know protocols.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from prompt_store.bundle import Bundle
from prompt_store.manifest import is_domain
from prompted_clip.stack import PromptStack
from training.adapt_run import AdaptJob, run_adapt
from training.data.dataset import Dataset, shorten
from training.data.few_shot import few_shot
from training.data.readable import drop_unreadable
from training.evaluation.predict import Predictions, Predictor
from training.evaluation.rows import ZERO_SHOT, Results, slug, training_name
from training.files import digest_of, read_bundle_file
from training.progress import progress_bars
from training.prompted_backbone import PromptedBackbone, boosted_backbone
from training.recipe import AdaptRecipe, Recipe


@dataclass(frozen=True)
class Trial:
    """One method under one seed, or the base model as it is.

    Attributes:
        method: a key of `METHODS`, or `zero-shot`.
        recipe: with the trial's own seed; None for zero-shot.
        shots: training images per class; 0 for zero-shot.
        seed: of draw and training; None for zero-shot.
    """

    method: str = ZERO_SHOT
    recipe: AdaptRecipe | None = None
    shots: int = 0
    seed: int | None = None

    @classmethod
    def of(cls, method: str, recipe: AdaptRecipe, *, shots: int, seed: int) -> "Trial":
        """A method's trial; the recipe takes the seed."""
        return cls(method, recipe.model_copy(update={"seed": seed}), shots, seed)


class ShotSampler:
    """The train images of each draw, decoded once to see whether they can be; methods, targets and benches share them.

    Args:
        console: where damaged images are named.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: dict[tuple[str, Path, str, int, int], Dataset] = {}

    def take(self, dataset: Dataset, trial: Trial) -> Dataset:
        """The data set with a trial's train images, without damaged ones; unchanged for zero-shot.

        Raises:
            DatasetError: there are no train images, or a class has none that can be read.
        """
        if trial.seed is None:
            return dataset
        key = (dataset.name, dataset.root, dataset.digest, trial.shots, trial.seed)
        if key not in self._drawn:
            drawn = drop_unreadable(few_shot(dataset, trial.shots, seed=trial.seed), ("train",))
            if lost := drawn.unreadable[len(dataset.unreadable) :]:
                named = shorten(lost)
                self._console.print(f"left out {len(lost)} drawn images that cannot be read: {named}", markup=False)
            self._drawn[key] = drawn
        return self._drawn[key]


class Bench:
    """What trials run on and where their results go.

    Args:
        predictor: around the backbone; benches of one backbone share it, and the decoded images with it.
        results: finished rows and bundles.
        console: where progress is shown.
        boost: the boosting bundle; None for the plain backbone.
        checkpoint_every: steps between checkpoints of a training.
        sampler: shared with benches that learn from the same images; its own otherwise.

    Raises:
        BoostBundleError: the bundle was made for other weights, or methods cannot build on it.
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
        """Whether there are boosting prompts."""
        return self._boost is not None

    @property
    def suffix(self) -> str:
        """Behind a method's name, for people."""
        return " with boosting" if self.is_boosted else ""

    def draw(self, trial: Trial, dataset: Dataset) -> Dataset:
        """The data set with a trial's train images; unchanged for zero-shot. Damaged images are left out and named.

        Raises:
            DatasetError: as `ShotSampler.take`.
        """
        return self._sampler.take(dataset, trial)

    def prepare(self, trial: Trial, train: Dataset, name: str) -> tuple[PromptStack, str | None]:
        """The stack of a trial, over the classes of `train`.

        Args:
            trial: what to put to the test.
            train: its train images are learned from; zero-shot reads nothing but class names and template.
            name: the data set's, without the half of the classes; the bundle's domain.

        Returns:
            The stack, and the name of the training it came from.

        Raises:
            TrainingError: as `run_adapt`.
        """
        if trial.recipe is None:
            return self._zero_shot(train), None
        training = self._learn(trial, trial.recipe, train, name)
        return self._model.load_stack(read_bundle_file(self._bundle(training))), training

    def rename(self, trial: Trial, stack: PromptStack, dataset: Dataset) -> PromptStack:
        """The trial's stack over the classes of another data set.

        Raises:
            StackMismatchError: it can tell its own classes apart only.
        """
        if trial.recipe is None:
            return self._zero_shot(dataset)
        if dataset.class_names == stack.class_names:
            return stack
        return self._model.with_labels(stack, dataset.class_names)

    def predict(self, stack: PromptStack, dataset: Dataset, title: str) -> Predictions:
        """Predict a data set's test images under a progress bar; damaged ones are left out and named.

        Raises:
            DatasetError: there are none, or none that can be read.
        """
        n_images = len(dataset.split("test"))
        with progress_bars(self.console) as progress:
            check = progress.add_task("checking images", total=n_images, visible=False, note="")
            task = progress.add_task(title, total=n_images, note="")
            answers = self._predictor.predict(
                stack,
                dataset,
                on_check=lambda done, _: progress.update(check, completed=done, visible=done < n_images),
                on_progress=lambda n: progress.advance(task, n),
            )
            progress.update(task, completed=n_images)
        if answers.unreadable:
            n_lost, named = len(answers.unreadable), shorten(answers.unreadable)
            self.console.print(f"left out {n_lost} test images that cannot be read: {named}", markup=False)
        return answers

    def _zero_shot(self, dataset: Dataset) -> PromptStack:
        """Boosting prompts with the text they were learned with, or the backbone with the hand-written prompt."""
        if self._boost_stack is None:
            return self._model.plain_stack(ZERO_SHOT, dataset.class_names, [dataset.template])
        return self._model.with_labels(self._boost_stack, dataset.class_names)

    @cached_property
    def _boost_stack(self) -> PromptStack | None:
        return self._model.boost_stack(self._model.load_stack(self._boost)) if self._boost is not None else None

    def _learn(self, trial: Trial, recipe: AdaptRecipe, train: Dataset, name: str) -> str:
        """The name of a training whose bundle stands: learned before, or now, from its checkpoint if there is one."""
        identity = {
            "data": train.digest,
            "method": trial.method,
            "recipe": recipe_digest(recipe),
            "backbone": self.base_model.backbone.fingerprint,
            "boost": self.base_model.boost_digest or "",
        }
        training = training_name(
            train.name, trial.method, boosted=self.is_boosted, shots=trial.shots, seed=recipe.seed, identity=identity
        )
        out = self._bundle(training)
        if not out.is_file():
            job = AdaptJob(domain_name(name), train, out, out.with_name("checkpoint"), self._checkpoint_every)
            result = run_adapt(job, trial.method, recipe, self.base_model, self.console)
            self.results.keep_losses(training, result["losses"])
        return training

    def _bundle(self, training: str) -> Path:
        return self.results.training_folder(training) / "bundle.safetensors"


def recipe_digest(recipe: Recipe) -> str:
    """Of every value of a recipe."""
    return digest_of(recipe.model_dump_json().encode())


def domain_name(name: str) -> str:
    """A data set's name as a domain of the service."""
    domain = slug(name)
    return domain if is_domain(domain) else f"data-{domain}"
