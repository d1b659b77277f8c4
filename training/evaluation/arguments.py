"""Options that `caspl evaluate`, `reproduce` and `ablate` share; imports no torch."""

from pathlib import Path
from typing import Annotated

import typer

DataSets = Annotated[
    list[str], typer.Option(help="data set: a name, a folder of class folders, a .csv or .jsonl file; repeatable")
]
Root = Annotated[Path | None, typer.Option(help="folder with the published data sets")]
Out = Annotated[Path, typer.Option(help="folder for the report and finished results, which are reused")]
Methods = Annotated[str, typer.Option(help="comma-separated adapting methods; empty for the base model only")]
Seeds = Annotated[str, typer.Option(help="comma-separated seeds of sampling and training")]
Arch = Annotated[str, typer.Option(help="open_clip architecture")]
Teacher = Annotated[str, typer.Option(help="teacher: open_clip architecture")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a recipe value: key=value or method.key=value"),
]
BoostOverrides = Annotated[
    list[str] | None, typer.Option("--boost-set", metavar="KEY=VALUE", help="override a boosting recipe value")
]
ImagesPerSecond = Annotated[
    float | None, typer.Option(min=0.001, help="with --dry-run: rate for the estimate; default: time a few steps")
]


def numbers(text: str, option: str, *, least: int) -> tuple[int, ...]:
    """Parse `1,2,3`; duplicates are removed."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least:
        msg = f"{text!r} is not a comma-separated list of integers >= {least}, such as 1,2,3"
        raise typer.BadParameter(msg, param_hint=option)
    return numbers


def method_names(text: str) -> tuple[str, ...]:
    """Parse and validate `coop,maple`."""
    from prompted_clip.errors import did_you_mean  # noqa: PLC0415  torch
    from training.label_free.methods import ALL_RECIPES  # noqa: PLC0415  torch

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [name for name in names if name not in ALL_RECIPES]:
        advice = f"{did_you_mean(unknown[0], ALL_RECIPES)} Known methods: {', '.join(ALL_RECIPES)}"
        raise typer.BadParameter(f"unknown method {unknown[0]!r}.{advice}", param_hint="--methods")
    return names
