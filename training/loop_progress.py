"""The training loop with progress and optional TensorBoard scalars."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from training.errors import RecipeError
from training.loop import CheckpointConfig, Learner, TrainState, learning_rate, steps_per_epoch, train
from training.parallel import World
from training.recipe import Recipe
from training.selection import Selection


def train_with_progress(
    learner: Learner,
    recipe: Recipe,
    *,
    title: str,
    progress: Progress,
    checkpoint: CheckpointConfig | None,
    tensorboard: Path | None,
    selection: Selection | None,
    world: World,
) -> TrainState:
    """`loop.train` with progress.

    Args:
        learner: the phase to train.
        recipe: optimizer, schedule and batch size.
        title: label of the task.
        progress: where to add the task.
        checkpoint: None writes no checkpoints.
        tensorboard: folder for TensorBoard event files, or None.
        selection: see `loop.train`.
        world: processes of this run; the main process writes files.

    Raises:
        RecipeError: tensorboard is not installed.
        TrainingError: see `loop.train`.
    """
    n_per_epoch = steps_per_epoch(recipe, learner.n_images)
    n_steps = recipe.epochs * n_per_epoch
    task = progress.add_task(title, total=n_steps, note="")
    with _scalars(tensorboard if world.is_main else None) as write:
        n_written = 0

        def show(state: TrainState) -> None:
            nonlocal n_written
            progress.update(task, completed=state.step, note=f"loss {state.recent_loss:.3f}")
            for step in range(n_written, len(state.losses)):
                write("loss", state.losses[step], step + 1)
            n_written = len(state.losses)
            write("learning_rate", learning_rate(recipe, (state.step - 1) // n_per_epoch), state.step)

        def report_resume(state: TrainState) -> None:
            nonlocal n_written
            n_written = len(state.losses)
            line = f"{title}: resuming after step {state.step} of {n_steps}"
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

        state = train(
            learner,
            recipe,
            checkpoint=checkpoint,
            on_step=show,
            on_resume=report_resume,
            selection=selection,
            world=world,
        )
        progress.update(task, completed=state.step)
        return state


@contextmanager
def _scalars(folder: Path | None) -> Iterator[Callable[[str, float, int], None]]:
    if folder is None:
        yield lambda *_: None
        return
    check_tensorboard()
    from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415  optional, and slow to import

    with SummaryWriter(str(folder)) as writer:
        yield lambda name, value, step: writer.add_scalar(name, value, step)


def check_tensorboard() -> None:
    """Fail early if TensorBoard logs are requested but cannot be written.

    Raises:
        RecipeError: tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        msg = "--tensorboard requires the tensorboard package: pip install tensorboard."
        raise RecipeError(msg)
