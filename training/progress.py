"""Progress as bars on a terminal and as lines elsewhere, and optional TensorBoard scalars."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.errors import RecipeError
from training.loop import CheckpointConfig, Learner, TrainState, learning_rate, steps_per_epoch, train
from training.parallel import World
from training.recipe import Recipe
from training.selection import Selection

SECONDS_PER_LINE: Final = 10.0


class ProgressLines(Progress):
    """Prints a task's progress as one line at most every ten seconds, for log files and pipes."""

    def __init__(self, console: Console, get_time: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console=console, get_time=get_time, disable=True)
        self._next_line_s = get_time() + SECONDS_PER_LINE

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See `Progress.advance`."""
        super().advance(task_id, advance)
        self._print_if_due(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:  # noqa: ANN401  rich's keywords and free fields
        """See `Progress.update`."""
        super().update(task_id, **changes)
        self._print_if_due(task_id)

    def _print_if_due(self, task_id: TaskID) -> None:
        if self.get_time() < self._next_line_s:
            return
        self._next_line_s = self.get_time() + SECONDS_PER_LINE
        task = next(task for task in self.tasks if task.id == task_id)
        parts = [f"{task.completed:.0f} of {task.total:.0f}" if task.total else f"{task.completed:.0f}"]
        if task.time_remaining is not None:
            parts.append(f"{timedelta(seconds=round(task.time_remaining))} left")
        line = ", ".join([*parts, task.fields["note"]]).removesuffix(", ")
        self.console.print(f"{task.description}: {line}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Progress bars with count, elapsed time, remaining time and a note; lines if the console is no terminal."""
    if not console.is_terminal:
        yield ProgressLines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


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

        def show(state: TrainState) -> None:
            progress.update(task, completed=state.step, note=f"loss {state.recent_loss:.3f}")
            write("loss", state.losses[-1], state.step)
            write("learning_rate", learning_rate(recipe, (state.step - 1) // n_per_epoch), state.step)

        def report_resume(state: TrainState) -> None:
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
