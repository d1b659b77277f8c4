"""Options and arguments that `caspl evaluate`, `reproduce` and `ablate` share; imports no torch."""

from typing import Annotated

import typer

Methods = Annotated[str, typer.Option(help="comma-separated adapting methods; empty for the base model only")]
Seeds = Annotated[str, typer.Option(help="comma-separated seeds of sampling and training")]
Arch = Annotated[str, typer.Option(help="open_clip architecture")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a recipe value: key=value or method.key=value"),
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
