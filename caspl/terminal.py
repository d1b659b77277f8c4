"""Errors and text of the client's commands on the terminal.

Text from outside (file names, labels, problems) is printed as it is; it cannot carry markup or control sequences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer
from rich.console import Console
from rich.text import Text

from caspl.errors import CasplError
from training.errors import TrainingError

FAILURE: Final = 1


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print expected errors in one line and exit with code 1; unexpected errors keep their traceback."""
    try:
        yield
    except (CasplError, TrainingError, OSError) as error:
        reason = f"Cannot read {error.filename}: {error.strerror}." if isinstance(error, OSError) else str(error)
        console = Console(stderr=True, highlight=False)
        console.print(Text.assemble(("error:", "red"), f" {reason}"), soft_wrap=True)
        raise typer.Exit(FAILURE) from error


def plain(text: str, style: str = "") -> Text:
    """Text without markup; unprintable characters become `?`."""
    return Text("".join(char if char.isprintable() else "?" for char in text), style)
