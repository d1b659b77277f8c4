"""Shared options, errors and text of the client's commands.

Text from outside (file names, labels, problems) is printed as it is; it cannot carry markup or control sequences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from caspl.errors import CasplError

FAILURE: Final = 1
ADVICE: Final = {
    "server_unreachable": "Start it with `caspl serve`, or pass another address as --url.",
    "unauthorized": "Pass the key as --key, or set CASPL_API_KEY.",
}
"""By the `code` of an error: its remedy on the command line."""
Url = Annotated[str, typer.Option(envvar="CASPL_URL", help="address of the server")]
Key = Annotated[str | None, typer.Option(envvar="CASPL_API_KEY", help="API key", show_envvar=True)]


@contextmanager
def exit_on_error(*further: type[Exception]) -> Iterator[None]:
    """Exit with code 1 and one line for errors of the client, the system and `further`; others keep their traceback."""
    expected: tuple[type[Exception], ...] = (CasplError, OSError, *further)
    try:
        yield
    except expected as error:
        reason = str(error)
        if isinstance(error, OSError) and error.filename:
            reason = f"Cannot read {error.filename}: {error.strerror}."
        if isinstance(error, CasplError) and error.code in ADVICE:
            reason = f"{reason.removesuffix('.')}. {ADVICE[error.code]}"
        print_error(reason)
        raise typer.Exit(FAILURE) from error


def print_error(reason: str) -> None:
    """Print an error as one line on stderr."""
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error:", "red"), " ", plain(reason)), soft_wrap=True)


def plain(text: str, style: str = "") -> Text:
    """Text without markup; unprintable characters become `?`."""
    return Text("".join(char if char.isprintable() else "?" for char in text), style)
