"""Notes and errors of the training commands on the terminal."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from prompt_store.errors import PromptStoreError
from training.errors import TrainingError


@contextmanager
def exit_on_error(command: str, *, quiet: bool = False) -> Iterator[None]:
    """Print expected errors in one line and exit with code 1; unexpected errors keep their traceback.

    The weights in use are printed, too.

    Args:
        command: name of the `caspl` subcommand.
        quiet: do not print the weights in use, only warnings about them.
    """
    from prompted_clip.errors import PromptedClipError  # noqa: PLC0415  loads torch

    try:
        with _weights_shown(logging.WARNING if quiet else logging.INFO):
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


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Print notes about the input, one line each."""
    for note in notes:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _print_error(command: str, message: str) -> None:
    # markup=False: rich would interpret shapes such as [4, 512] as styles.
    Console(stderr=True, highlight=False).print(f"caspl {command}: {message}", markup=False, soft_wrap=True)


class _WeightsLines(logging.Handler):
    """Prints the log records of `prompted_clip` as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning as it is, and the facts of loaded weights in one line."""
        line, facts = record.getMessage(), vars(record)
        if line == "backbone.loaded":
            preprocess = facts["preprocess"]
            line = (
                f"weights: {facts['arch']} ({facts['pretrained']}), {facts['n_tensors']} tensors, "
                f"{facts['fingerprint']}, {facts['activation']}, mean {preprocess['mean']}, std {preprocess['std']}, "
                f"{preprocess['interpolation']}, {preprocess['resize_mode']}"
            )
        Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)


@contextmanager
def _weights_shown(level: int) -> Iterator[None]:
    """Show the model's log on stderr, in the first process only under torchrun."""
    log, handler = logging.getLogger("prompted_clip"), _WeightsLines()
    before = log.level, log.propagate
    if os.environ.get("RANK", "0") == "0":
        log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
