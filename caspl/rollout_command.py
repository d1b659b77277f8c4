"""The command `caspl rollout`: compares a stored version with the live one on the requests of a running server."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from caspl.client import DEFAULT_URL, Client
from caspl.results import Rollout
from caspl.terminal import FAILURE, Key, Url, exit_on_error, plain
from training.options import AsJson

rollout_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

Domain = Annotated[str, typer.Argument(help="domain")]


@rollout_app.callback(epilog="\b\nExample:\n  caspl rollout start shelf 7 --mode canary --percent 10")
def rollout() -> None:
    """Compare a stored version with the live one on a share of the requests, and end by thresholds."""


@rollout_app.command(epilog="\b\nExample:\n  caspl rollout start shelf 7 --percent 20 --then activate")
def start(
    domain: Domain,
    version: Annotated[int, typer.Argument(min=1, help="the candidate, a version that is not live")],
    mode: Annotated[
        Literal["canary", "shadow"],
        typer.Option(help="canary: the candidate answers; shadow: it only scores copies of the images"),
    ] = "shadow",
    percent: Annotated[float, typer.Option(help="share of the requests that take part, above 0 to 100")] = 10.0,
    max_disagreement: Annotated[
        float, typer.Option(min=0, max=1, help="end if more than this share of the images has another class")
    ] = 0.05,
    max_confidence_shift: Annotated[
        float, typer.Option(min=0, max=1, help="end if the highest probability differs by more than this on average")
    ] = 0.1,
    min_images: Annotated[int, typer.Option(min=1, help="compared images before the first decision")] = 200,
    then: Annotated[
        Literal["activate", "hold"], typer.Option(help="after that: activate the candidate, or go on")
    ] = "hold",
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Start a rollout; at most one runs in a domain."""
    with exit_on_error(), Client(url, api_key=key) as client:
        started = client.start_rollout(
            domain,
            version,
            mode=mode,
            percent=percent,
            max_disagreement=max_disagreement,
            max_confidence_shift=max_confidence_shift,
            min_images=min_images,
            then=then,
        )
    _print(started, as_json)


@rollout_app.command(epilog="\b\nExample:\n  caspl rollout show shelf")
def show(domain: Domain, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show the running rollout with the counts of this server; exit code 1 if none is running."""
    with exit_on_error(), Client(url, api_key=key) as client:
        found = client.rollout(domain)
    if found is None:
        history = f"GET /domains/{domain}/history"
        line = f"No rollout of {domain} is running. Its history, {history}, has the end of the last one."
        typer.echo("null") if as_json else _lines([line])
        raise typer.Exit(FAILURE)
    _print(found, as_json)


@rollout_app.command(epilog="\b\nExample:\n  caspl rollout stop shelf")
def stop(domain: Domain, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Stop the running rollout: the live version answers all requests again."""
    with exit_on_error(), Client(url, api_key=key) as client:
        client.stop_rollout(domain)
    _lines([f"The rollout of {domain} is stopped."])


def _print(found: Rollout, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    end = "then the candidate goes live" if found.then == "activate" else "then the comparison continues"
    lines = [
        f"{found.domain}: {found.mode} of version {found.version} beside live version {found.live_version}, "
        f"{found.percent:g} % of the requests, for at least {found.min_images} images, {end}",
        f"compared {found.n_compared} images, not compared {found.n_dropped}",
    ]
    if found.disagreement is not None:
        failed = f", {found.n_failed} of them failed" if found.n_failed else ""
        lines.append(f"disagreement {found.disagreement:.1%}{failed} (at most {found.max_disagreement:.1%})")
    if found.confidence_shift is not None:
        error = (
            "" if found.confidence_shift_error is None else f" \N{PLUS-MINUS SIGN} {found.confidence_shift_error:.3f}"
        )
        limit = f"(at most {found.max_confidence_shift:.3f})"
        lines.append(f"confidence shift {found.confidence_shift:+.3f}{error} {limit}")
    _lines(lines)


def _lines(lines: Sequence[str]) -> None:
    console = Console(highlight=False)
    for line in lines:
        console.print(plain(line), soft_wrap=True)
