"""CasPL phase 1: boosting prompts, distilled from a larger CLIP on unlabelled images of the domain.

The student is the frozen backbone with learnable deep prompts in both towers, the teacher a larger frozen CLIP without
prompts. Both see the same view of each image; the student's zero-shot distribution over the domain's classes follows
the teacher's:

    z_S = s_S · <f_S(x), g_S>,   z_T = s_T · <f_T(x), g_T>,   L = KL( softmax(z_T / τ) ‖ softmax(z_S / τ) )

Source: CasPL (arXiv 2409.17805), section 3.2 and eq. 2. Only the prompts learn; logit scales stay frozen.

Legend: B images, K classes, E joint width, D prompt layers, L prompt tokens, W tower width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_classes, encode_tokens, tokenize
from prompted_clip.vision import encode_image
from training.checkpoint import load_checkpoint, save_checkpoint
from training.data.views import Views
from training.errors import BackbonePairError, DivergedError
from training.initial_prompts import random_prompts, start_from_words
from training.recipe import BoostRecipe


@dataclass
class BoostRun:
    """What a run has reached; also what a checkpoint holds.

    Attributes:
        step: optimiser steps done.
        losses: the loss of each step.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)


class BoostPrompts(nn.Module):
    """Deep prompts for both towers.

    Args:
        student: whose towers they fit; depths beyond a tower's layers are cut to it.
        recipe: counts, depths, initial words and seed.
    """

    def __init__(self, student: Backbone, recipe: BoostRecipe) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        text = random_prompts(
            min(recipe.text_depth, student.n_text_layers), recipe.text_tokens, student.text_width, generator
        )
        image = random_prompts(
            min(recipe.image_depth, student.n_vision_layers), recipe.image_tokens, student.vision_width, generator
        )
        start_from_words(text, student, recipe.text_init)
        self.image = nn.Parameter(image.to(student.device))
        self.text = nn.Parameter(text.to(student.device))

    def image_group(self) -> Tensor | None:
        """[D, L, vision width], or None with zero image tokens."""
        return self.image if self.image.shape[1] else None

    def text_group(self) -> Tensor | None:
        """[D, L, text width], or None with zero text tokens."""
        return self.text if self.text.shape[1] else None


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


def learning_rate(recipe: BoostRecipe, epoch: int) -> float:
    """Rate of an epoch (0-based): constant warm-up, then a cosine stepped per epoch that counts warm-up epochs.

    Source: Dassl's ConstantWarmupScheduler around CosineAnnealingLR, as PromptSRC uses them.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_learning_rate
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


class Booster:
    """One run of phase 1.

    Args:
        student: the backbone that will serve.
        teacher: the larger backbone, seeing images of the same size.
        class_names: all classes of the domain, base and new.
        views: the domain's unlabelled images.
        recipe: every choice of the run.

    Raises:
        BackbonePairError: student and teacher take images of different size.
        TextTooLongError: a class name does not fit a text tower together with its prompts.
    """

    def __init__(
        self, student: Backbone, teacher: Backbone, class_names: Sequence[str], views: Views, recipe: BoostRecipe
    ) -> None:
        if student.image_size != teacher.image_size:
            msg = (
                f"Student {student.arch} sees {student.image_size} px and teacher {teacher.arch} "
                f"{teacher.image_size} px; "
                "both must see the same view. Choose a teacher of the student's image size."
            )
            raise BackbonePairError(msg)
        self.student = student
        self.teacher = teacher
        self.views = views
        self.recipe = recipe
        self.prompts = BoostPrompts(student, recipe)
        texts = [recipe.template.replace("{}", name) for name in class_names]
        self._tokens, self._eot = tokenize(student, texts, n_prompts=self.prompts.text.shape[1])
        with torch.no_grad():
            self._teacher_text_KE = encode_classes(teacher, class_names, [recipe.teacher_template])
        self._teacher_logits: Tensor | None = None
        self._pixels: Tensor | None = None

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run; the last batch of an epoch may be smaller."""
        return self.recipe.epochs * self._steps_per_epoch

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.views) / self.recipe.batch_size)

    def prepare(self, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Without augmentation, views and teacher answers never change: compute each once, with the same numbers.

        Args:
            on_progress: called with the number of images just done.
        """
        if self.views.is_random:
            return
        pixels, logits = [], []
        for start in range(0, len(self.views), 64):
            indices = range(start, min(start + 64, len(self.views)))
            pixels.append(self.views.load(indices, 0))
            logits.append(self.teacher_logits(pixels[-1]))
            on_progress(len(indices))
        self._pixels, self._teacher_logits = torch.cat(pixels), torch.cat(logits)

    @torch.no_grad()
    def teacher_logits(self, pixels_BCHW: Tensor) -> Tensor:
        """z_T: float32 [B, K] on the student's device."""
        images = normalize_pixels(pixels_BCHW.to(self.teacher.device), self.teacher.preprocess)
        features = encode_image(self.teacher, images)
        return (self.teacher.logit_scale * features @ self._teacher_text_KE.T).to(self.student.device)

    def student_logits(self, pixels_BCHW: Tensor) -> Tensor:
        """z_S: float32 [B, K] under the current prompts; gradients reach only them."""
        images = normalize_pixels(pixels_BCHW.to(self.student.device), self.student.preprocess)
        features = encode_image(self.student, images, join_groups([self.prompts.image_group()]))
        return self.student.logit_scale * features @ self.text_features().T

    def text_features(self) -> Tensor:
        """g_S: float32 [K, E] under the current prompts."""
        return encode_tokens(self.student, self._tokens, self._eot, join_groups([self.prompts.text_group()]))

    def train(
        self,
        *,
        checkpoint: Path | None = None,
        identity: dict[str, str] | None = None,
        checkpoint_every: int = 100,
        on_step: Callable[[BoostRun], None] = lambda _: None,
    ) -> BoostRun:
        """Run to the end, from the checkpoint if there is one.

        Args:
            checkpoint: where to keep state; None keeps none.
            identity: digests that bind a checkpoint to this run.
            checkpoint_every: steps between checkpoints.
            on_step: called after each step.

        Raises:
            CheckpointError: the checkpoint belongs to another run.
            DivergedError: the loss stopped being finite.
        """
        optimizer = self._optimizer()
        run = self._resume(checkpoint, identity or {}, optimizer)
        while run.step < self.n_steps:
            epoch, position = divmod(run.step, self._steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * learning_rate(self.recipe, epoch)
            order = self.views.order(epoch)
            indices = order[position * self.recipe.batch_size : (position + 1) * self.recipe.batch_size]
            loss = self._loss(indices, epoch)
            if not math.isfinite(loss.item()):
                msg = f"The loss became {loss.item()} at step {run.step} (epoch {epoch}); lower learning_rate."
                raise DivergedError(msg)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            run.step += 1
            run.losses.append(loss.item())
            on_step(run)
            if checkpoint is not None and run.step % checkpoint_every == 0:
                self._save(checkpoint, identity or {}, optimizer, run)
        return run

    @torch.no_grad()
    def agreement(self, n_images: int = 512) -> float:
        """Fraction of the first images on which student and teacher name the same class."""
        same = total = 0
        for start in range(0, min(n_images, len(self.views)), 64):
            indices = range(start, min(start + 64, n_images, len(self.views)))
            pixels = self.views.load(indices, 0)
            same += int((self.student_logits(pixels).argmax(1) == self.teacher_logits(pixels).argmax(1)).sum())
            total += len(indices)
        return same / total

    def _loss(self, indices: Tensor, epoch: int) -> Tensor:
        if self._pixels is not None and self._teacher_logits is not None:
            pixels, target = self._pixels[indices], self._teacher_logits[indices.to(self._teacher_logits.device)]
        else:
            pixels = self.views.load(indices.tolist(), epoch)
            target = self.teacher_logits(pixels)
        return distillation_loss(self.student_logits(pixels), target, self.recipe)

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        towers = ((self.prompts.image, 1.0), (self.prompts.text, recipe.text_rate_factor))
        groups = [{"params": [prompts], "factor": factor} for prompts, factor in towers if prompts.numel()]
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def _resume(self, path: Path | None, identity: dict[str, str], optimizer: torch.optim.Optimizer) -> BoostRun:
        state = load_checkpoint(path, identity) if path is not None else None
        if state is None:
            return BoostRun()
        self.prompts.load_state_dict(state["prompts"])
        optimizer.load_state_dict(state["optimizer"])
        return BoostRun(step=state["step"], losses=list(state["losses"]))

    def _save(self, path: Path, identity: dict[str, str], optimizer: torch.optim.Optimizer, run: BoostRun) -> None:
        state = {
            "prompts": self.prompts.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": run.step,
            "losses": run.losses,
        }
        save_checkpoint(path, identity, state)
