"""Shared by the commands of `caspl bench`: options, their parsing, and the run of a measurement."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.errors import BenchError
from benchmarks.report import markdown
from prompt_store.errors import PromptStoreError
from prompted_clip.errors import PromptedClipError
from service.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.report import Report

RESULTS: Final = Path("build/bench")

Out = Annotated[Path, typer.Option(help="folder of the JSON and Markdown files")]
AsJson = Annotated[bool, typer.Option("--json", help="print the JSON instead of the table")]
Backbone = Annotated[str, typer.Option(help="open_clip architecture with random weights, or demo-student")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8")]
Backend = Annotated[str, typer.Option(help="auto, torch or openvino")]
WebWorkers = Annotated[int, typer.Option(min=0, help="web processes of the server")]
Clients = Annotated[int, typer.Option(min=1, help="clients of the closed loop")]
Side = Annotated[int, typer.Option(min=0, help="photographs' side in pixels; 0 leaves their size")]
Seconds = Annotated[float, typer.Option(min=1, help="length of each measurement")]
Label = Annotated[str, typer.Option(help="suffix of the files' names")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of a server setting; repeatable")]


def comma_separated(text: str) -> tuple[str, ...]:
    """Split an option's value."""
    return tuple(part for part in text.split(",") if part)


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Parse an option's numbers.

    Raises:
        typer.BadParameter: a part is not a number.
    """
    try:
        return tuple(float(word) for word in comma_separated(text))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers separated by commas, not {text!r}", param_hint=option) from error


def integers(text: str, option: str) -> tuple[int, ...]:
    """Parse an option's whole numbers.

    Raises:
        typer.BadParameter: a part is not a whole number.
    """
    if not all(word.isdecimal() for word in comma_separated(text)):
        raise typer.BadParameter(f"expected whole numbers separated by commas, not {text!r}", param_hint=option)
    return tuple(map(int, comma_separated(text)))


def name_value_pairs(words: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Parse the values of `--set`.

    Raises:
        typer.BadParameter: a part has no `=`.
    """
    if wrong := [word for word in words or [] if "=" not in word]:
        raise typer.BadParameter(f"expected NAME=VALUE, not {wrong[0]!r}", param_hint="--set")
    return tuple((name, value) for name, _, value in (word.partition("=") for word in words or []))


def run(measure: Callable[[Console], Report], out: Path, as_json: bool, quiet: bool) -> None:
    """Measure, write the files, print the result; expected errors are one line and status 1."""
    console, errors = (Console(stderr=True, highlight=False, quiet=hidden) for hidden in (quiet, False))
    signal.signal(signal.SIGTERM, _exit)  # an exception, so that started servers are stopped
    try:
        result = measure(console).write(out)
    except (BenchError, ServiceError, PromptStoreError, PromptedClipError) as error:
        raise _fail(errors, str(error)) from error
    except ModuleNotFoundError as error:
        install = 'pip install -e ".[bench]"'
        raise _fail(errors, f"the package {error.name} is not installed: {install}") from error
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        Console().print(Markdown(markdown(result)))
    console.print(f"wrote {out / result['name']}.json and .md", markup=False, soft_wrap=True)


def _exit(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _fail(console: Console, text: str) -> typer.Exit:
    console.print(f"error: {text}", markup=False, style="red", soft_wrap=True)
    return typer.Exit(1)
