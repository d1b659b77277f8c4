"""Arguments, output and errors of `caspl store` and `caspl bundle`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console, RenderableType

from prompt_store.errors import BundleInvalidError, PromptStoreError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.signatures import MAX_SIGNATURE_BYTES

if TYPE_CHECKING:
    from prompt_store.signing_keys import SignaturePolicy

EXIT_FAILURE: Final = 1
EXIT_INVALID: Final = 3

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="CASPL_STORE", help="directory of the store, or s3://BUCKET/PREFIX", show_default=True
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="a bundle file")]
DomainArgument = Annotated[str, typer.Argument(help="domain name")]
VersionArgument = Annotated[int, typer.Argument(min=1, help="version number")]
DEFAULT_STORE: Final = "store"


def actor() -> str:
    """Return the name of the user, for the history."""
    try:
        return f"cli:{getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return "cli"


def show(value: object, as_json: bool, *views: RenderableType) -> None:
    """Print a result as one JSON value, or as tables and lines."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, sort_keys=True))
        return
    console = Console(highlight=False)
    for view in views:
        console.print(view, markup=False, soft_wrap=isinstance(view, str))


def show_error(error: PromptStoreError, as_json: bool, where: str = "") -> None:
    """Print an error as one line on stderr."""
    facts = {"code": error.code, "detail": f"{where}{error}"}
    line = json.dumps({"error": facts}, sort_keys=True) if as_json else f"{error.code}: {where}{error}"
    typer.echo(line, err=True)


@contextmanager
def report_errors(as_json: bool) -> Iterator[None]:
    """Print an error as one line on stderr and set the exit code."""
    try:
        yield
    except PromptStoreError as error:
        show_error(error, as_json)
        raise typer.Exit(EXIT_INVALID if isinstance(error, BundleInvalidError) else EXIT_FAILURE) from error
    except OSError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_FAILURE) from error


def read_bundle_file(path: Path) -> bytes:
    """Read a bundle file, up to one byte more than a bundle may have."""
    with path.open("rb") as file:
        return file.read(MAX_BUNDLE_BYTES + 1)


def read_signature_file(path: Path) -> bytes:
    """Read a signature file, up to one byte more than it may have."""
    with path.open("rb") as file:
        return file.read(MAX_SIGNATURE_BYTES + 1)


def load_keys(paths: Sequence[Path]) -> "SignaturePolicy":
    """Read the public keys that signatures are verified with.

    Raises:
        SignatureError: `key_invalid`.
    """
    from prompt_store.signing_keys import SignaturePolicy, load_public_key

    return SignaturePolicy([load_public_key(path) for path in paths])
