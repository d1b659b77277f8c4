"""Phase 1 with targets, class names and averages that `caspl boost` does not have, to compare them with it.

Everything else is that of `training.boosting`.

Legend: N images, B images of a batch, K classes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from training.boost_scores import HeldOutScores
from training.boosting import Booster, distillation_loss
from training.caspl_student import CasplStudent
from training.data.hold_out import hold_out
from training.data.views import Views
from training.loop import CheckpointConfig, train
from training.prompted_backbone import PromptedBackbone
from training.recipe import BoostRecipe
from training.selection import Selection
from training.teacher import Teacher

HOLDOUT: Final = 0.1
N_TARGET_VIEWS: Final = 4
"""Views per image that the targets `views` average."""
_CERTAIN: Final = 50.0
"""Lead of the true class's logit in the targets `labels`: a probability of one in float32."""
_BLOCK: Final = 64

Targets = Literal["view", "image", "views", "labels"]


@dataclass(frozen=True)
class Variant:
    """A change to the default recipe.

    Attributes:
        label: its line in the table.
        values: recipe values that differ from the default.
        targets: the teacher's prediction for the student's own `view` (as in CasPL), for the whole `image`, averaged
            over `N_TARGET_VIEWS` random `views` of the image; or the true `labels`.
        is_balanced: divide the targets by the teacher's mean prediction over all images, so that classes are equally
            frequent among them.
        is_wide: distil over all class names of the demo world, not only the domain's.
        average: decay per step of a moving average of the prompts, which replaces them at the end; None for none.
        is_selected: hold out `HOLDOUT` of the images, and keep the step that agrees best with the teacher on them.
        is_repeated: run it in all domains and with all seeds, not only in the first ones.
    """

    label: str
    values: Mapping[str, Any] = field(default_factory=dict)
    targets: Targets = "view"
    is_balanced: bool = False
    is_wide: bool = False
    average: float | None = None
    is_selected: bool = False
    is_repeated: bool = False


@dataclass(frozen=True)
class Domain:
    """Training images of a domain.

    Attributes:
        files: N images.
        labels: class index of each image; only the targets `labels` use them.
        class_names: the domain's classes.
        further_names: class names that the targets of `is_wide` include as well.
    """

    files: Sequence[Path]
    labels: Sequence[int]
    class_names: Sequence[str]
    further_names: Sequence[str] = ()


class Distiller(Booster):
    """A `Booster` with the targets of a variant.

    Args:
        student: the model to train.
        teacher: the larger CLIP.
        views: the training images.
        recipe: temperature, reduction and loss weight.
        targets: computes the targets.
    """

    def __init__(
        self, student: CasplStudent, teacher: Teacher, views: Views, recipe: BoostRecipe, targets: "TargetSource"
    ) -> None:
        super().__init__(student, [teacher], views, recipe)
        self._targets = targets

    def loss(self, indices: Tensor, epoch: int) -> Tensor:
        """`distillation_loss` of the images at `indices`, under their views of this epoch."""
        pixels = self._views.load(indices.tolist(), epoch)
        logits = self.student.logits(self._images(pixels))
        return distillation_loss(logits, self._targets.logits(indices, pixels), self._recipe)


class TargetSource:
    """Logits [B, K] whose softmax is the target distribution.

    Args:
        variant: kind of targets.
        teacher: the larger CLIP.
        views: the training images, for targets that do not depend on the student's view.
        labels: class index of each image.
    """

    def __init__(self, variant: Variant, teacher: Teacher, views: Views, labels: Sequence[int]) -> None:
        self._teacher, self._views = teacher, views
        self._table_NK: Tensor | None = None
        if variant.targets == "labels":
            one_hot = torch.nn.functional.one_hot(torch.tensor(labels), len(teacher.text_features_KE))
            self._table_NK = _CERTAIN * one_hot.float()
        elif variant.targets != "view":
            self._table_NK = self._mean_over_views(N_TARGET_VIEWS if variant.targets == "views" else 1)
        self._prior_K = self._log_prior() if variant.is_balanced else torch.zeros(())

    def logits(self, indices: Tensor, pixels_BCHW: Tensor) -> Tensor:
        """Targets of the images at `indices`, which the student sees as `pixels_BCHW`."""
        if self._table_NK is not None:
            return self._table_NK[indices] - self._prior_K
        return self._teacher.logits(pixels_BCHW) - self._prior_K

    def _mean_over_views(self, n_views: int) -> Tensor:
        """Log of the teacher's mean probabilities over `n_views` views of each image."""
        blocks = [range(at, min(at + _BLOCK, len(self._views))) for at in range(0, len(self._views), _BLOCK)]
        predictions = [
            torch.cat([self._teacher.logits(self._views.load(block, number)).softmax(1) for block in blocks])
            for number in range(n_views)
        ]
        return torch.stack(predictions).mean(0).log()

    def _log_prior(self) -> Tensor:
        """Log of the mean target distribution [K]."""
        table_NK = self._mean_over_views(1) if self._table_NK is None else self._table_NK
        return table_NK.softmax(1).mean(0).log()


@dataclass(frozen=True)
class Distilled:
    """Result of a run: the boosted backbone, and the number of optimizer steps."""

    model: PromptedBackbone
    n_steps: int


def distil(
    variant: Variant,
    recipe: BoostRecipe,
    domain: Domain,
    student_backbone: Backbone,
    teacher_backbone: Backbone,
    checkpoint: CheckpointConfig | None = None,
) -> Distilled:
    """Train boosting prompts as a variant does.

    Args:
        variant: targets, class names, average and selection.
        recipe: the complete recipe, with the variant's values.
        domain: images and class names.
        student_backbone: the backbone to boost.
        teacher_backbone: the larger backbone.
        checkpoint: to resume a run without a moving average; None for none.

    Raises:
        TrainingError: see `loop.train`.
    """
    names = [*domain.class_names, *domain.further_names] if variant.is_wide else list(domain.class_names)
    trained, held_out = hold_out(len(domain.files), HOLDOUT if variant.is_selected else 0, recipe.seed)
    files = [domain.files[index] for index in trained]
    teacher = Teacher(teacher_backbone, names, recipe.teacher_template)
    views = Views.for_training(files, student_backbone, recipe)
    source = views if variant.targets == "views" else _served(files, student_backbone)
    targets = TargetSource(variant, teacher, source, [domain.labels[index] for index in trained])
    student = CasplStudent(student_backbone, names, recipe)
    learner = Distiller(student, teacher, views, recipe, targets)
    average = None if variant.average is None else MovingAverage(student, variant.average)
    selection = None
    if held_out:
        views_held_out = _served([domain.files[index] for index in held_out], student_backbone)
        scores = HeldOutScores(views_held_out, None, teacher.logits)
        selection = Selection(lambda: scores.of(learner.served_logits), {"agreement": 0.0}, len(held_out))
    state = train(
        learner,
        recipe,
        checkpoint=checkpoint,
        on_step=lambda _: None if average is None else average.update(),
        selection=selection,
    )
    if selection is not None:
        learner.load_state_dict(selection.state_dict()["best_state"])
    if average is not None:
        learner.load_state_dict(average.state)
    return Distilled(student.fold()[0], state.step)


class MovingAverage:
    """Exponential moving average of a student's prompts, from its first step on.

    Args:
        student: the prompts; read after each step.
        decay: weight of the past; smaller in the first steps, (1 + n) / (10 + n) after n of them.
    """

    def __init__(self, student: CasplStudent, decay: float) -> None:
        self._student, self._decay = student, decay
        self._n_steps = 0
        self.state = copy.deepcopy(dict(student.state_dict()))

    @torch.no_grad()
    def update(self) -> None:
        """Include the current prompts."""
        decay = min(self._decay, (1 + self._n_steps) / (10 + self._n_steps))
        self._n_steps += 1
        for name, value in self._student.state_dict().items():
            self.state[name].lerp_(value, 1 - decay)


def _served(files: Sequence[Path], backbone: Backbone) -> Views:
    return Views.as_served(files, backbone.image_size, backbone.preprocess)
