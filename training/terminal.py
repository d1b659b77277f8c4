"""How the commands of training speak to a person, and how they fail."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from prompt_store.errors import PromptStoreError
from training.errors import TrainingError


@contextmanager
def failing_clearly(command: str) -> Iterator[None]:
    """What went wrong in one line, and exit code 1; a stack trace only for what nobody foresaw.

    Args:
        command: as it stands behind `caspl`.
    """
    from prompted_clip.errors import PromptedClipError  # noqa: PLC0415  its package loads torch

    try:
        yield
    except (TrainingError, PromptStoreError, PromptedClipError, OSError) as error:
        # No markup: shapes such as [4, 512] would read as styles.
        Console(stderr=True, highlight=False).print(f"caspl {command}: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
