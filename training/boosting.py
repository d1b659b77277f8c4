"""CasPL phase 1: boosting prompts, distilled from a larger CLIP on unlabelled images of the domain.

The student is the frozen backbone with learnable prompts, the teacher a larger frozen CLIP. Both see the same view of
each image; the student's zero-shot distribution over the domain's classes follows the teacher's:

    z_S = s_S · <f_S(x), g_S>,   z_T = s_T · <f_T(x), g_T>,   L = KL( softmax(z_T / τ) ‖ softmax(z_S / τ) )

Source: CasPL (arXiv 2409.17805), section 3.2 and eq. 2. Only the student's prompts learn; logit scales stay frozen.
What a student consists of is its own file's business: `caspl_student.py`, `promptkd_student.py`.

Legend: B images, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import normalize_pixels
from training.adapting.method import ExportedPrompts
from training.data.view_values import ViewValues
from training.data.views import Views
from training.errors import BackbonePairError
from training.hardware import autocast
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import BoostRecipe
from training.teacher import Teacher


class Student(Protocol):
    """What learns in phase 1: an `nn.Module` around a frozen backbone."""

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone that will serve."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """What learns, and how fast."""

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """z_S: float32 [B, K] under the current prompts; gradients reach only what learns."""

    def fold(self) -> tuple[PromptedBackbone, ExportedPrompts]:
        """The boosted backbone, and what else a bundle of it has to hold."""

    def train(self, mode: bool = True) -> object:
        """As `nn.Module`'s: whether running statistics are being gathered or used."""

    def state_dict(self) -> dict[str, Any]:
        """As `nn.Module`'s."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """As `nn.Module`'s."""


def distillation_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor, recipe: BoostRecipe) -> Tensor:
    """KL from the teacher's to the student's distribution. Source: CasPL eq. 2; reduction as in PromptKD.

    `mean` is the sum over batch and classes times τ² / (B·K), `batchmean` times τ² / B; both times the loss weight.

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


class Booster:
    """One run of phase 1, as the loop sees it.

    Args:
        student: what learns.
        teacher: what it learns from, seeing images of the same size.
        views: the domain's unlabelled images.
        recipe: every choice of the run.

    Raises:
        BackbonePairError: student and teacher take images of different size.
    """

    def __init__(self, student: Student, teacher: Teacher, views: Views, recipe: BoostRecipe) -> None:
        small, large = student.backbone, teacher.backbone
        if small.image_size != large.image_size:
            msg = (
                f"Student {small.arch} sees {small.image_size} px and teacher {large.arch} {large.image_size} px; "
                "both must see the same view. Choose a teacher of the student's image size."
            )
            raise BackbonePairError(msg)
        self.student = student
        self.teacher = teacher
        self._views = views
        self._recipe = recipe
        self._teacher_logits = ViewValues(views, self._compute_teacher_logits)

    @property
    def n_images(self) -> int:
        """Images of an epoch."""
        return len(self._views)

    @property
    def averages_over_images(self) -> bool:
        """The KL is; a batch norm inside the student is not."""
        return self._recipe.distillation == "caspl"

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The student's."""
        return self.student.parameter_groups()

    def prefetch(self, indices: Tensor, epoch: int) -> None:
        """Begin to decode the views of the next step."""
        self._views.prefetch(indices.tolist(), epoch)

    def order(self, epoch: int) -> Tensor:
        """The order of images in an epoch: a permutation [N] int64."""
        return self._views.order(epoch)

    def loss(self, indices: Tensor, epoch: int) -> Tensor:
        """`distillation_loss` over some images under their views of an epoch."""
        pixels = self._views.load(indices.tolist(), epoch)
        with autocast(self._recipe, self.student.backbone.device):
            logits = self.student.logits(self._images(pixels))
        return distillation_loss(logits.float(), self._teacher_logits.get(indices, epoch, pixels), self._recipe)

    def end_epoch(self, epoch: int) -> None:
        """Nothing happens between epochs."""

    def state_dict(self) -> Mapping[str, Any]:
        """The student's."""
        return self.student.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up an interrupted run."""
        self.student.load_state_dict(state)

    def precompute_teacher_logits(self, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Ask the teacher about the first fixed set of views, if views are fixed; the same numbers, ahead of time.

        Args:
            on_progress: called with the number of images just done.
        """
        self._teacher_logits.fill(0, on_progress)

    @torch.no_grad()
    def agreement(self, n_images: int = 512) -> float:
        """Fraction of the first images on which student and teacher name the same class."""
        self.student.train(mode=False)
        same = total = 0
        for start in range(0, min(n_images, len(self._views)), 64):
            indices = torch.arange(start, min(start + 64, n_images, len(self._views)))
            predicted = self.student.logits(self._images(self._views.load(indices.tolist(), 0))).argmax(1)
            same += int((predicted == self._teacher_logits.get(indices, 0).argmax(1)).sum())
            total += len(indices)
        self.student.train()
        return same / total

    def _images(self, pixels_BCHW: Tensor) -> Tensor:
        backbone = self.student.backbone
        return normalize_pixels(pixels_BCHW.to(backbone.device), backbone.preprocess)

    def _compute_teacher_logits(self, pixels_BCHW: Tensor) -> Tensor:
        """z_T: float32 [B, K] on the student's device."""
        with autocast(self._recipe, self.teacher.backbone.device):
            logits = self.teacher.logits(pixels_BCHW)
        return logits.float().to(self.student.backbone.device)
