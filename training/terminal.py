"""Error output and argument checks shared by the training commands."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from prompt_store.errors import PromptStoreError
from training.errors import TrainingError


@contextmanager
def exit_on_error(command: str) -> Iterator[None]:
    """Print expected errors in one line and exit with code 1; unexpected errors keep their traceback.

    Args:
        command: name of the `caspl` subcommand.
    """
    from prompted_clip.errors import PromptedClipError  # noqa: PLC0415  loads torch

    try:
        yield
    except (TrainingError, PromptStoreError, PromptedClipError, OSError) as error:
        _print_error(command, str(error))
        raise typer.Exit(1) from error
    except RuntimeError as error:
        if (
            type(error).__name__ != "OutOfMemoryError"
        ):  # torch.OutOfMemoryError, compared by name to avoid importing torch
            raise
        _print_error(
            command,
            "Out of device memory: lower batch_size or the number of prompt tokens, or free memory on the device.",
        )
        raise typer.Exit(1) from error


def check_device(name: str) -> str:
    """Return `name` if it is a valid device name.

    Raises:
        BadParameter: it is not.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is None:
        raise typer.BadParameter(f"expected auto, cpu, cuda or cuda:<n>, found {name!r}")
    return name


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Print what was read differently from what may be expected, one line each."""
    for note in notes:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _print_error(command: str, message: str) -> None:
    # markup=False: rich would interpret shapes such as [4, 512] as styles.
    Console(stderr=True, highlight=False).print(f"caspl {command}: {message}", markup=False, soft_wrap=True)
