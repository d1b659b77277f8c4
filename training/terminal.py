"""How the commands of training speak to a person, and how they fail."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from prompt_store.errors import PromptStoreError
from training.errors import TrainingError


@contextmanager
def exit_on_error(command: str) -> Iterator[None]:
    """What went wrong in one line, and exit code 1; a stack trace only for what nobody foresaw.

    Args:
        command: as it stands behind `caspl`.
    """
    from prompted_clip.errors import PromptedClipError  # noqa: PLC0415  its package loads torch

    try:
        yield
    except (TrainingError, PromptStoreError, PromptedClipError, OSError) as error:
        _tell(command, str(error))
        raise typer.Exit(1) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; by name, since torch may not be loaded
            raise
        _tell(
            command,
            "The device has no memory left: lower batch_size or the number of prompt tokens, or free the device.",
        )
        raise typer.Exit(1) from error


def check_device(name: str) -> str:
    """The name of a device if it is one.

    Raises:
        BadParameter: it is none.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is None:
        raise typer.BadParameter(f"expected auto, cpu, cuda or cuda:<n>, found {name!r}")
    return name


def _tell(command: str, message: str) -> None:
    # No markup: shapes such as [4, 512] would read as styles.
    Console(stderr=True, highlight=False).print(f"caspl {command}: {message}", markup=False, soft_wrap=True)
