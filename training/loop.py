"""The one training loop: order, schedule, steps, checkpoints, and a clear end when something goes wrong.

Both phases go through it. It knows recipes and checkpoints; it does not know images, prompts or losses: a learner hands
in what learns, and the loss of some images.

Every random choice belongs to (seed, epoch, image), so a run that is killed and started again ends in the same bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from training.checkpoint import load_checkpoint, save_checkpoint
from training.errors import DivergedError, OutOfMemoryError, RecipeError
from training.parallel import World
from training.recipe import Recipe

SINGLE_PROCESS: Final = World()


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn at one multiple of the recipe's rate."""

    parameters: Sequence[nn.Parameter]
    rate_factor: float = 1.0


class Learner(Protocol):
    """What a phase is to the loop."""

    @property
    def n_images(self) -> int:
        """Images of an epoch."""

    @property
    def averages_over_images(self) -> bool:
        """Whether the loss of a batch is the mean of its images' losses, so that a batch can be divided."""

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """What learns, and how fast."""

    def prefetch(self, indices: Tensor, epoch: int) -> None:
        """Told which images the next step will take, to decode them while this one computes."""

    def order(self, epoch: int) -> Tensor:
        """The order of an epoch: a permutation of `range(n_images)`, int64."""

    def loss(self, indices: Tensor, epoch: int) -> Tensor:
        """The loss over some images of an epoch: a scalar that can be differentiated."""

    def end_epoch(self, epoch: int) -> None:
        """Told after each epoch (0-based)."""

    def state_dict(self) -> Mapping[str, Any]:
        """What has been learned so far."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Take up what had been learned."""


@dataclass
class TrainState:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        losses: the loss of each step.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run's state is kept.

    Attributes:
        path: the checkpoint file.
        identity: digests that bind it to this run.
        every_n_steps: steps between writes.
    """

    path: Path
    identity: Mapping[str, str]
    every_n_steps: int = 100


def steps_per_epoch(recipe: Recipe, n_images: int) -> int:
    """Steps of one epoch; its last batch may be smaller."""
    return math.ceil(n_images / recipe.batch_size)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Rate of an epoch (0-based): constant warm-up, then a cosine that starts at its peak and is stepped per epoch.

    The cosine's length is the whole run's, so after w epochs of warm-up it ends w epochs before zero.
    Source: Dassl's ConstantWarmupScheduler around CosineAnnealingLR with its default WARMUP_RECOUNT, as CoOp, MaPLe and
    PromptSRC use them. Differs from Dassl: a group's rate factor holds during warm-up too.
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
    world: World = SINGLE_PROCESS,
) -> TrainState:
    """Run to the end of the recipe, from the checkpoint if there is one.

    Args:
        learner: what learns.
        recipe: how.
        checkpoint: where state is kept; None keeps none.
        on_step: called after each step.
        world: the processes that share each batch; all of them end with the same prompts, and the first writes state.

    Raises:
        RecipeError: the loss is no average over images, so a batch cannot be shared among processes.
        CheckpointError: the checkpoint belongs to another run.
        DivergedError: the loss stopped being finite; names the step.
        OutOfMemoryError: the device has no room for a batch; names what to lower.
    """
    if world.size > 1 and not learner.averages_over_images:
        msg = "This loss is not an average over images, so processes cannot share a batch; run it in one process."
        raise RecipeError(msg)
    optimizer = _optimizer(learner, recipe)
    run = _resume(learner, optimizer, checkpoint)
    n_per_epoch = steps_per_epoch(recipe, learner.n_images)
    order = torch.empty(0)
    while run.step < recipe.epochs * n_per_epoch:
        epoch, position = divmod(run.step, n_per_epoch)
        if position == 0 or not len(order):
            order = learner.order(epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["rate_factor"] * learning_rate(recipe, epoch)
        indices = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        coming = order[(position + 1) * recipe.batch_size : (position + 2) * recipe.batch_size]
        learner.prefetch(world.shard(coming), epoch)
        run.losses.append(_step(learner, optimizer, indices, epoch, run.step, recipe, world))
        run.step += 1
        if position + 1 == n_per_epoch:
            learner.end_epoch(epoch)
        on_step(run)
        if checkpoint is not None and run.step % checkpoint.every_n_steps == 0 and world.is_main:
            _save(learner, optimizer, run, checkpoint)
    return run


def _step(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    indices: Tensor,
    epoch: int,
    step: int,
    recipe: Recipe,
    world: World,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    part = world.shard(indices)
    total = torch.zeros(())
    try:
        if len(part):
            loss = learner.loss(part, epoch) * (len(part) / len(indices))
            total = loss.detach().clone()
            torch.autograd.backward(loss)
    except torch.OutOfMemoryError as error:
        msg = (
            f"The device has no memory left at step {step} with batches of {recipe.batch_size}: lower batch_size, "
            "or the number of prompt tokens."
        )
        raise OutOfMemoryError(msg) from error
    value = _share_gradients(optimizer, total, world)
    if not math.isfinite(value):
        msg = (
            f"The loss became {value} at step {step} (epoch {epoch}); expected a finite number. Lower learning_rate "
            f"(now {recipe.learning_rate:g})."
        )
        raise DivergedError(msg)
    optimizer.step()
    return value


def _share_gradients(optimizer: torch.optim.Optimizer, loss: Tensor, world: World) -> float:
    """Sum gradients and loss over the processes; the loss of the whole batch."""
    if world.size > 1:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        loss = loss.to(parameters[0].device)
        world.all_reduce_sum([parameter.grad for parameter in parameters] + [loss])
    return loss.item()


def _optimizer(learner: Learner, recipe: Recipe) -> torch.optim.Optimizer:
    groups = [
        {"params": list(group.parameters), "rate_factor": group.rate_factor}
        for group in learner.parameter_groups()
        if any(parameter.numel() for parameter in group.parameters)
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _resume(learner: Learner, optimizer: torch.optim.Optimizer, checkpoint: CheckpointConfig | None) -> TrainState:
    state = load_checkpoint(checkpoint.path, dict(checkpoint.identity)) if checkpoint is not None else None
    if state is None:
        return TrainState()
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    return TrainState(step=state["step"], losses=list(state["losses"]))


def _save(learner: Learner, optimizer: torch.optim.Optimizer, run: TrainState, checkpoint: CheckpointConfig) -> None:
    state = {
        "learner": dict(learner.state_dict()),
        "optimizer": optimizer.state_dict(),
        "step": run.step,
        "losses": run.losses,
    }
    save_checkpoint(checkpoint.path, dict(checkpoint.identity), state)
