"""The training loop of both phases: image order, learning-rate schedule, steps, checkpoints, errors.

The loop handles recipes and checkpoints. A `Learner` supplies parameters and losses; the loop never sees images or
prompts.

Randomness depends only on (seed, epoch, image), so a resumed run ends with the same bits as an uninterrupted one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from training.checkpoint import load_checkpoint, save_checkpoint
from training.errors import OutOfMemoryError, RecipeError
from training.parallel import World
from training.pending_losses import PendingLosses
from training.recipe import Recipe
from training.selection import Selection

SINGLE_PROCESS: Final = World()


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share one multiple of the recipe's learning rate."""

    parameters: Sequence[nn.Parameter]
    rate_factor: float = 1.0


class Learner(Protocol):
    """One training phase, as seen by the loop."""

    @property
    def n_images(self) -> int:
        """Images per epoch."""

    @property
    def averages_over_images(self) -> bool:
        """Whether a batch's loss is the mean of its images' losses, so that a batch can be split."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Trainable parameters, grouped by learning rate."""

    def prefetch(self, indices: Tensor, epoch: int) -> None:
        """Start decoding the images of the next step while the current one computes."""

    def order(self, epoch: int) -> Tensor:
        """Image order of an epoch: a permutation of `range(n_images)`, int64."""

    def loss(self, indices: Tensor, epoch: int) -> Tensor:
        """Differentiable scalar loss of the images at `indices`, under their views of this epoch."""

    def end_epoch(self, epoch: int) -> None:
        """Called after each epoch (0-based)."""

    def state_dict(self) -> Mapping[str, Any]:
        """State to checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Restore a checkpointed state."""


@dataclass
class TrainState:
    """Progress of a run.

    Attributes:
        step: completed optimizer steps.
        losses: one per completed step; on CUDA the last one may be missing during the run.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def recent_loss(self) -> float:
        """Mean loss of the last 20 steps."""
        recent = self.losses[-20:]
        return sum(recent) / len(recent)

    def metrics(self) -> dict[str, float]:
        """Number of steps, first loss and recent loss, for the report of a finished run."""
        return {"steps": self.step, "loss_first": self.losses[0], "loss_last": self.recent_loss}


@dataclass(frozen=True)
class CheckpointConfig:
    """Where and how often to checkpoint.

    Attributes:
        path: the checkpoint file.
        identity: digests that tie the file to this run.
        every_n_steps: steps between checkpoints.
    """

    path: Path
    identity: Mapping[str, str]
    every_n_steps: int = 100


def steps_per_epoch(recipe: Recipe, n_images: int) -> int:
    """Steps per epoch. The last batch may be smaller; with `drop_last` it is dropped if another one is full.

    Source: Dassl's `build_data_loader`, which drops it if there are at least as many images as a batch has.
    """
    if recipe.drop_last and n_images >= recipe.batch_size:
        return n_images // recipe.batch_size
    return math.ceil(n_images / recipe.batch_size)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of an epoch (0-based): constant warm-up, then cosine decay, stepped per epoch.

    The cosine spans all epochs of the run, so after w warm-up epochs training ends w epochs before it reaches zero.
    Source: Dassl's ConstantWarmupScheduler around CosineAnnealingLR with its default WARMUP_RECOUNT, as used by CoOp,
    MaPLe and PromptSRC. Differs from Dassl: a group's rate factor also applies during warm-up.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_learning_rate
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - recipe.warmup_epochs) / recipe.epochs))


def train(
    learner: Learner,
    recipe: Recipe,
    *,
    checkpoint: CheckpointConfig | None = None,
    on_step: Callable[[TrainState], None] = lambda _: None,
    on_resume: Callable[[TrainState], None] = lambda _: None,
    selection: Selection | None = None,
    world: World = SINGLE_PROCESS,
) -> TrainState:
    """Train for the recipe's epochs, resuming from the checkpoint if there is one; the last step is checkpointed, too.

    Args:
        learner: the phase to train.
        recipe: optimizer, schedule and batch size.
        checkpoint: None writes no checkpoints.
        on_step: called after each step.
        on_resume: called once if the run resumes from a checkpoint.
        selection: measures held-out images during the run and keeps the best state; the learner ends in its last one.
        world: processes that share each batch. All end with the same prompts; the main process writes checkpoints.

    Raises:
        RecipeError: the loss is not a mean over images, so processes cannot share a batch.
        CheckpointError: the checkpoint belongs to another run.
        DivergedError: the loss became NaN or infinite; names the step.
        OutOfMemoryError: a batch does not fit on the device; names the settings to lower.
    """
    if world.size > 1 and not learner.averages_over_images:
        msg = "The loss is not a mean over images, so processes cannot share a batch; use a single process."
        raise RecipeError(msg)
    optimizer = _optimizer(learner, recipe)
    state = _resume(learner, optimizer, selection, checkpoint)
    if state.step:
        on_resume(state)
    n_per_epoch = steps_per_epoch(recipe, learner.n_images)
    n_steps = recipe.epochs * n_per_epoch
    losses = PendingLosses(state.losses, recipe, n_per_epoch)
    order = torch.empty(0)
    while state.step < n_steps:
        epoch, position = divmod(state.step, n_per_epoch)
        if position == 0 or not len(order):
            order = learner.order(epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["rate_factor"] * learning_rate(recipe, epoch)
        indices = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        if position + 1 < n_per_epoch:
            next_indices = order[(position + 1) * recipe.batch_size : (position + 2) * recipe.batch_size]
            learner.prefetch(world.shard(next_indices), epoch)
        losses.add(_forward_backward(learner, optimizer, indices, epoch, state.step, recipe, world))
        optimizer.step()
        state.step += 1
        is_last = state.step == n_steps
        is_due = checkpoint is not None and (is_last or state.step % checkpoint.every_n_steps == 0)
        losses.wait(for_last=is_due or is_last)
        if position + 1 == n_per_epoch:
            learner.end_epoch(epoch)
        if selection is not None:
            selection.after_step(learner, state.step, n_steps)
        on_step(state)
        if checkpoint is not None and is_due and world.is_main:
            _save(learner, optimizer, state, selection, checkpoint)
    return state


def _forward_backward(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    indices: Tensor,
    epoch: int,
    step: int,
    recipe: Recipe,
    world: World,
) -> Tensor:
    """Compute the gradients of a batch; returns its loss, a scalar."""
    optimizer.zero_grad(set_to_none=True)
    shard = world.shard(indices)
    total = torch.zeros(())
    try:
        if len(shard):
            loss = learner.loss(shard, epoch) * (len(shard) / len(indices))
            total = loss.detach().clone()
            torch.autograd.backward(loss)
    except torch.OutOfMemoryError as error:
        msg = (
            f"Out of device memory at step {step} with batches of {recipe.batch_size}: lower batch_size or the number "
            "of prompt tokens."
        )
        raise OutOfMemoryError(msg) from error
    return _all_reduce(optimizer, total, world)


def _all_reduce(optimizer: torch.optim.Optimizer, loss: Tensor, world: World) -> Tensor:
    """All-reduce gradients and loss; return the loss of the whole batch, a scalar."""
    if world.size > 1:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        loss = loss.to(parameters[0].device)
        world.all_reduce_sum([parameter.grad for parameter in parameters] + [loss])
    return loss


def _optimizer(learner: Learner, recipe: Recipe) -> torch.optim.Optimizer:
    groups = [
        {"params": list(group.parameters), "rate_factor": group.rate_factor}
        for group in learner.parameter_groups()
        if any(parameter.numel() for parameter in group.parameters)
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _resume(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    selection: Selection | None,
    checkpoint: CheckpointConfig | None,
) -> TrainState:
    saved = load_checkpoint(checkpoint.path, dict(checkpoint.identity)) if checkpoint is not None else None
    if saved is None:
        return TrainState()
    learner.load_state_dict(saved["learner"])
    optimizer.load_state_dict(saved["optimizer"])
    if selection is not None:
        selection.load_state_dict(saved["selection"])
    return TrainState(step=saved["step"], losses=list(saved["losses"]))


def _save(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    selection: Selection | None,
    checkpoint: CheckpointConfig,
) -> None:
    saved = {
        "learner": dict(learner.state_dict()),
        "optimizer": optimizer.state_dict(),
        "step": state.step,
        "losses": state.losses,
        "selection": selection.state_dict() if selection is not None else None,
    }
    save_checkpoint(checkpoint.path, dict(checkpoint.identity), saved)
