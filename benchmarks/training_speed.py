"""`caspl bench train`: training speed against a transcription of the reference recipe, in one run.

The transcription pads every text to the tower's 77 positions, computes every token of the last block, and runs the
frozen models (teacher, image tower) on every view at every step. The project runs texts at their real length, computes
only the token that is read, and runs frozen models once per fixed view. Images, views, order and seeds are the same, so
the losses must agree; the largest difference is reported.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from benchmarks.report import Report, Table
from prompted_clip.backbone import Backbone, load_backbone
from training.adapting.adapter import Adapter
from training.adapting.methods import METHODS
from training.boosting import Booster
from training.caspl_student import CasplStudent
from training.data.view_cache import ViewCache
from training.data.views import Views
from training.loop import Learner, TrainState, steps_per_epoch, train
from training.prompted_backbone import ClassTokens, PromptedBackbone
from training.recipe import AdaptRecipe, BoostRecipe, Recipe
from training.teacher import Teacher


@dataclass(frozen=True)
class Timing:
    """One phase or method, both ways.

    Attributes:
        name: `boost`, or the method.
        reference_s: seconds per epoch of the transcription.
        first_s: seconds of our first epoch, which runs the frozen models.
        later_s: seconds of our later epochs.
        recipe_epochs: epochs of the method's own recipe.
        ratio: speedup of a run of that many epochs.
        loss_difference: largest relative difference of the two loss curves.
    """

    name: str
    reference_s: float
    first_s: float
    later_s: float
    recipe_epochs: int
    ratio: float
    loss_difference: float


class PaddedBackbone(PromptedBackbone):
    """Texts at the tower's full length, as in the reference repositories."""

    def tokenize(self, class_names: Sequence[str], template: str, *, n_prompts: int) -> ClassTokens:
        """As the base class, padded to the context length; tokens after EOT do not affect the result."""
        tokens = super().tokenize(class_names, template, n_prompts=n_prompts)
        n_missing = self.backbone.context_length - n_prompts - self.n_text_boost - tokens.ids_KT.shape[1]
        return ClassTokens(torch.nn.functional.pad(tokens.ids_KT, (0, n_missing)), tokens.eot_K)


class Uncached(ViewCache):
    """A frozen model without a cache."""

    def get(self, indices: Tensor, epoch: int, pixels_BCHW: Tensor | None = None) -> Tensor:
        """Compute the rows of some images."""
        with torch.no_grad():
            return self._compute(self._views.load(indices.tolist(), epoch) if pixels_BCHW is None else pixels_BCHW)

    def fill(self, epoch: int, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """No-op."""


def whole_block(block: nn.Module, x_BNW: Tensor, at: Tensor | int, *, is_causal: bool) -> Tensor:
    """`prompted_clip.internals.read_block` as in the reference repositories: all tokens, of which one is read."""
    mask = nn.Transformer.generate_square_subsequent_mask(x_BNW.shape[1]) if is_causal else None
    outputs_BNW: Tensor = block(x_BNW, attn_mask=mask)
    return outputs_BNW[torch.arange(len(x_BNW)), at].unsqueeze(1)


def write_images(folder: Path, n_images: int, size: int) -> list[Path]:
    """Noise images; speed does not depend on their content."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(n_images)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return paths


def timed(learner: Learner, recipe: Recipe) -> tuple[list[float], list[float]]:
    """Seconds per epoch of a run, and its losses."""
    marks_s = [time.perf_counter()]
    n_per_epoch = steps_per_epoch(recipe, learner.n_images)

    def mark(run: TrainState) -> None:
        if run.step % n_per_epoch == 0:
            marks_s.append(time.perf_counter())

    losses = train(learner, recipe, on_step=mark).losses
    return [end - start for start, end in pairwise(marks_s)], losses


def compare(name: str, reference: Learner, ours: Learner, recipe: Recipe, recipe_epochs: int) -> Timing:
    """Run both and compare speed and losses."""
    with mock.patch("prompted_clip.prompts.read_block", whole_block):
        reference_epochs_s, expected = timed(reference, recipe)
    (first_s, *later_epochs_s), found = timed(ours, recipe)
    reference_s, later_s = statistics.median(reference_epochs_s), statistics.median(later_epochs_s)
    ratio = recipe_epochs * reference_s / (first_s + (recipe_epochs - 1) * later_s)
    difference = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(expected, found, strict=True))
    return Timing(name, reference_s, first_s, later_s, recipe_epochs, ratio, difference)


def boosters(
    student: Backbone, teacher: Backbone, names: list[str], views: Views, recipe: BoostRecipe
) -> tuple[Booster, Booster]:
    """The learners of the transcription and of the project."""
    reference, ours = (
        Booster(CasplStudent(student, names, recipe), [Teacher(teacher, names, recipe.teacher_template)], views, recipe)
        for _ in range(2)
    )
    padded = PaddedBackbone(student).tokenize(names, recipe.template, n_prompts=recipe.text_tokens)
    reference.student._tokens = padded  # type: ignore[attr-defined]
    reference._teacher_logits = Uncached(views, reference._compute_teacher_logits)
    return reference, ours


def adapters(
    name: str, student: Backbone, names: list[str], views: Views, labels: list[int], recipe: AdaptRecipe
) -> tuple[Adapter, Adapter]:
    """The learners of the transcription and of the project."""
    reference, ours = (
        Adapter(METHODS[name].build(base_model, names, recipe), base_model, views, labels, recipe)
        for base_model in (PaddedBackbone(student), PromptedBackbone(student))
    )
    uncached = Uncached(views, reference._feature_cache._compute)
    reference._feature_cache = reference._reference_cache = uncached
    return reference, ours


@dataclass(frozen=True)
class TrainOptions:
    """Options of the command."""

    backbone: str
    teacher: str
    n_images: int
    n_classes: int
    epochs: int
    methods: tuple[str, ...]
    threads: int


def measure(options: TrainOptions, console: Console) -> Report:
    """Time boosting and every method both ways."""
    torch.set_num_threads(options.threads)
    timings = time_all(options, console)
    report = Report("train", asdict(options))
    for timing in timings:
        report.add(
            f"{timing.name}_speedup",
            timing.ratio,
            f"speed of a run of {timing.recipe_epochs} epochs / of the reference",
        )
    report.tables["Seconds per epoch"] = Table(
        ("run", "reference", "ours, first epoch", "ours, later", "largest difference of losses"),
        [
            (
                timing.name,
                *(f"{seconds:.2f}" for seconds in (timing.reference_s, timing.first_s, timing.later_s)),
                f"{timing.loss_difference:.0e}",
            )
            for timing in timings
        ],
    )
    return report


def time_all(options: TrainOptions, console: Console) -> list[Timing]:
    """Timings of boosting and every method."""
    student, large = (
        load_backbone(name, random_seed=None if name.startswith("demo") else seed)
        for seed, name in enumerate((options.backbone, options.teacher))
    )
    names = [f"class number {index}" for index in range(options.n_classes)]
    plain: dict[str, Any] = {"augmentation": "none", "warmup_epochs": 0, "epochs": options.epochs}
    with tempfile.TemporaryDirectory() as folder:
        views = Views(
            write_images(Path(folder), options.n_images, student.image_size),
            image_size=student.image_size,
            preprocess=student.preprocess,
            augmentation="none",
            crop_scale_min=1.0,
            seed=1,
        )
        recipe = BoostRecipe(**plain, loss_weight=1.0)
        console.print("boost")
        reference, ours = boosters(student, large, names, views, recipe)
        timings = [compare("boost", reference, ours, recipe, BoostRecipe().epochs)]
        labels = [index % options.n_classes for index in range(options.n_images)]
        for name in options.methods or tuple(METHODS):
            console.print(name)
            chosen = METHODS[name].recipe.model_validate(plain)
            both = adapters(name, student, names, views, labels, chosen)
            timings.append(compare(name, *both, chosen, METHODS[name].recipe().epochs))
    return timings
