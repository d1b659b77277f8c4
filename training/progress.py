"""A run as a person watches it: a bar with time left and loss, and scalars for TensorBoard if asked for."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.errors import RecipeError
from training.loop import CheckpointConfig, Learner, TrainState, learning_rate, steps_per_epoch, train
from training.parallel import World
from training.recipe import Recipe


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Progress progress_bars with counts, time spent, time left and a note."""
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
    world: World,
) -> TrainState:
    """`loop.train` under a bar.

    Args:
        learner: what learns.
        recipe: how.
        title: what the bar says.
        progress: where the bar appears.
        checkpoint: where state is kept.
        tensorboard: folder for TensorBoard's event files, or None.
        world: the processes of this run; the first one writes files.

    Raises:
        RecipeError: TensorBoard was asked for and is not installed.
        TrainingError: as `loop.train`.
    """
    n_per_epoch = steps_per_epoch(recipe, learner.n_images)
    task = progress.add_task(title, total=recipe.epochs * n_per_epoch, note="")
    with _scalars(tensorboard if world.is_main else None) as write:

        def show(run: TrainState) -> None:
            recent = run.losses[-20:]
            progress.update(task, completed=run.step, note=f"loss {sum(recent) / len(recent):.3f}")
            write("loss", run.losses[-1], run.step)
            write("learning_rate", learning_rate(recipe, (run.step - 1) // n_per_epoch), run.step)

        run = train(learner, recipe, checkpoint=checkpoint, on_step=show, world=world)
        progress.update(task, completed=run.step)
        return run


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
    """See whether event files can be written, before anything is learned.

    Raises:
        RecipeError: tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        msg = "TensorBoard logs were asked for, but tensorboard is not installed: pip install tensorboard."
        raise RecipeError(msg)
