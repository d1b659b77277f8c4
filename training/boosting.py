"""CasPL phase 1: distil boosting prompts from a larger CLIP on unlabelled images of the domain.

The student is the frozen backbone with learnable prompts; the teacher is a larger frozen CLIP. Both see the same view
of each image. The loss pulls the student's zero-shot distribution over the domain's classes towards the teacher's:

    z_S = s_S · <f_S(x), g_S>,   z_T = s_T · <f_T(x), g_T>,   L = KL( softmax(z_T / τ) ‖ softmax(z_S / τ) )

Source: CasPL (arXiv 2409.17805), section 3.2 and eq. 2. Only the student's prompts are trained; logit scales stay
frozen. The two kinds of student are in `caspl_student.py` and `promptkd_student.py`. One set of prompts may be trained
on images of several domains (the paper's future work); each image's distributions are then over its own domain's
classes. Several teachers give the weighted mean of their distributions as target (`teacher_weights.py`).

Legend: B images, K classes, T classes of the teacher, which has those of several domains separately.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.transfers import to_device
from training.adapting.method import ExportedPrompts
from training.class_sets import ClassSets
from training.data.view_cache import ViewCache
from training.data.views import Views
from training.errors import BackbonePairError
from training.hardware import autocast
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import BoostRecipe
from training.teacher import Teacher
from training.teacher_weights import joint_logits, joint_logits_of_domains


class Student(Protocol):
    """The trainable part of phase 1: an `nn.Module` around a frozen backbone."""

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone to serve with."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Trainable parameters, grouped by learning rate."""

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """z_S: float32 [B, K] with the current prompts; only trainable parameters receive gradients."""

    def fold(self) -> tuple[PromptedBackbone, ExportedPrompts]:
        """Return the boosted backbone, and any further tensors for its bundle."""

    def train(self, mode: bool = True) -> object:
        """See `nn.Module.train`."""

    def state_dict(self) -> dict[str, Any]:
        """See `nn.Module.state_dict`."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """See `nn.Module.load_state_dict`."""


def distillation_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor, recipe: BoostRecipe) -> Tensor:
    """KL(teacher ‖ student) over the classes, times τ² and the loss weight.

    The sum over batch and classes is divided by B·K (`mean`) or by B (`batchmean`).
    Source: CasPL eq. 2; reduction as in PromptKD.

    Returns:
        A float32 scalar.
    """
    tau = recipe.temperature
    target = (teacher_logits_BK / tau).log_softmax(dim=-1)
    logits = (student_logits_BK / tau).log_softmax(dim=-1)
    total = nn.functional.kl_div(logits, target, reduction="sum", log_target=True)
    n_rows, n_classes = student_logits_BK.shape
    count = n_rows * n_classes if recipe.reduction == "mean" else n_rows
    return total * (tau * tau * recipe.loss_weight / count)


def shared_loss(
    student_logits_BK: Tensor, teacher_logits_BT: Tensor, domain_B: Tensor, sets: ClassSets, recipe: BoostRecipe
) -> Tensor:
    """Mean over images of several domains of `distillation_loss`, each image among its own domain's classes.

    Args:
        student_logits_BK: scores of all class names.
        teacher_logits_BT: scores of each domain's classes.
        domain_B: each image's domain, int64, on the CPU.
        sets: the classes of each domain.
        recipe: temperature, reduction and weight.

    Returns:
        A float32 scalar.
    """
    device = student_logits_BK.device
    total = torch.zeros((), device=device)
    for domain in sorted(set(domain_B.tolist())):
        rows = (domain_B == domain).nonzero()
        own, others = sets.student[domain], sets.teacher[domain]
        student = student_logits_BK[to_device(rows, device), to_device(own, device)]
        teacher = teacher_logits_BT[to_device(rows, device), to_device(others, device)]
        total = total + distillation_loss(student, teacher, recipe) * (len(rows) / len(domain_B))
    return total


class Booster:
    """The `Learner` of phase 1.

    Args:
        student: the model to train; its classes are those of all domains.
        teachers: the models to distil from; must take images of the same size.
        views: unlabelled images.
        recipe: all settings of the run.
        sets: the classes of each image's domain; None for one domain, whose classes are those of both models.

    Raises:
        BackbonePairError: student and teacher take images of different sizes.
    """

    def __init__(
        self,
        student: Student,
        teachers: Sequence[Teacher],
        views: Views,
        recipe: BoostRecipe,
        sets: ClassSets | None = None,
    ) -> None:
        small = student.backbone
        for large in (teacher.backbone for teacher in teachers):
            if small.image_size != large.image_size:
                msg = (
                    f"Student {small.arch} takes {small.image_size} px images and teacher {large.arch} "
                    f"{large.image_size} px; both must see the same view. Choose a teacher with the student's image "
                    "size."
                )
                raise BackbonePairError(msg)
        self.student = student
        self.teachers = teachers
        self._views = views
        self._recipe = recipe
        self._sets = sets if sets is not None and len(sets) > 1 else None
        self._teacher_logits = ViewCache(views, self._compute_teacher_logits)

    @property
    def n_images(self) -> int:
        """Images per epoch."""
        return len(self._views)

    @property
    def averages_over_images(self) -> bool:
        """False for PromptKD, whose batch norm couples the images of a batch."""
        return self._recipe.distillation == "caspl"

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The student's parameter groups."""
        return self.student.parameter_groups()

    def prefetch(self, indices: Tensor, epoch: int) -> None:
        """Start decoding the views of the next step."""
        self._views.prefetch(indices.tolist(), epoch)

    def order(self, epoch: int) -> Tensor:
        """Image order of an epoch: a permutation [N] int64."""
        return self._views.order(epoch)

    def loss(self, indices: Tensor, epoch: int) -> Tensor:
        """`distillation_loss` or `shared_loss` of the images at `indices`, under their views of this epoch."""
        pixels = to_device(self._views.load(indices.tolist(), epoch), self.student.backbone.device)
        with autocast(self._recipe, self.student.backbone):
            logits = self.student.logits(self._images(pixels))
        logits, target = logits.float(), self._teacher_logits.get(indices, epoch, pixels)
        if self._sets is None:
            return distillation_loss(logits, target, self._recipe)
        return shared_loss(logits, target, self._sets.domain_N[indices], self._sets, self._recipe)

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def state_dict(self) -> Mapping[str, Any]:
        """The student's state."""
        return self.student.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the student's state."""
        self.student.load_state_dict(state)

    def precompute_teacher_logits(self, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Compute the teachers' logits for the first set of fixed views, if views are fixed; results are unchanged.

        Args:
            on_progress: called with the number of images just processed.
        """
        self._teacher_logits.fill(0, on_progress)

    @torch.no_grad()
    def served_logits(self, pixels_BCHW: Tensor) -> Tensor:
        """The student's class scores [B, K] for uint8 images, as in serving."""
        self.student.train(mode=False)
        logits = self.student.logits(self._images(pixels_BCHW))
        self.student.train()
        return logits

    def _images(self, pixels_BCHW: Tensor) -> Tensor:
        backbone = self.student.backbone
        return normalize_pixels(to_device(pixels_BCHW, backbone.device), backbone.preprocess)

    def _compute_teacher_logits(self, pixels_BCHW: Tensor) -> Tensor:
        """z_T: float32 [B, K] on the student's device."""
        found = []
        for teacher in self.teachers:
            with autocast(self._recipe, teacher.backbone):
                logits = teacher.logits(pixels_BCHW)
            found.append(logits.float().to(self.student.backbone.device))
        if self._sets is None:
            return joint_logits(found, self._recipe)
        return joint_logits_of_domains(found, self._recipe, self._sets.teacher)
