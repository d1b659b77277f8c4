"""Arguments that several of the demo's commands share."""

from typing import Annotated

import typer

from training.demo.shifts import SHIFTED


def check_domain(name: str) -> str:
    """Return `name` if it is one of the shifted domains.

    Raises:
        BadParameter: it is not.
    """
    if name not in SHIFTED:
        raise typer.BadParameter(f"expected one of {', '.join(SHIFTED)}, found {name!r}")
    return name


def check_domains(names: list[str] | None) -> list[str] | None:
    """`check_domain` of each name."""
    return None if names is None else [check_domain(name) for name in names]


Domain = Annotated[str, typer.Argument(help=f"One of {', '.join(SHIFTED)}.", callback=check_domain)]
Domains = Annotated[
    list[str] | None, typer.Argument(help=f"Some of {', '.join(SHIFTED)}; default: all.", callback=check_domains)
]
