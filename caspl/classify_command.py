"""The command `caspl classify`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from caspl.client import DEFAULT_URL, Client
from caspl.errors import CasplError
from caspl.operations import IMAGES_PER_REQUEST
from caspl.results import Classification
from caspl.terminal import FAILURE, exit_on_error, plain
from training.data.listing import SERVED_SUFFIXES, describe_left_out, list_images

classify_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@classify_app.command()
def classify(
    domain: Annotated[str, typer.Argument(help="domain")],
    images: Annotated[list[Path], typer.Argument(help="image files, or folders of them")],
    url: Annotated[str, typer.Option(envvar="CASPL_URL", help="address of the server")] = DEFAULT_URL,
    top_k: Annotated[int, typer.Option(help="classes per image")] = 3,
    labels: Annotated[str | None, typer.Option(help="classify among these labels instead, comma-separated")] = None,
    version: Annotated[int | None, typer.Option(help="use this version instead of the live one")] = None,
    abstain: Annotated[
        float | None, typer.Option(help="abstention rate, such as 0.05: no label for the least reliable images")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="CASPL_API_KEY", help="API key", show_envvar=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Classify image files with a running server."""
    with exit_on_error():
        files = find_files(images, Console(stderr=True, highlight=False))
        if not files:
            raise typer.BadParameter(f"no {', '.join(sorted(SERVED_SUFFIXES))} file in these folders")
        with Client(url, api_key=key) as client:
            options = {
                "top_k": top_k,
                "labels": labels.split(",") if labels else None,
                "version": version,
                "abstain": abstain,
            }
            results = classify_files(client, files, domain, options)
    if as_json:
        rows = [as_dict(path, result) for path, result in zip(files, results, strict=True)]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        show(files, results, Console(highlight=False))
    raise typer.Exit(FAILURE if any(result.error for result in results) else 0)


def find_files(paths: Sequence[Path], console: Console) -> list[Path]:
    """Replace folders by the images in them; prints how many other files they contain.

    Raises:
        OSError: a path does not exist or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        path.stat()
        if not path.is_dir():
            files.append(path)
            continue
        listing = list_images(path, SERVED_SUFFIXES)
        files += listing.images
        if not listing.images or listing.left_out:
            not_read = describe_left_out(listing.left_out)
            line = f"{path}: {len(listing.images)} images" + (f"; {not_read}" if not_read else "")
            console.print(plain(line), soft_wrap=True)
    return files


def classify_files(
    client: Client, files: Sequence[Path], domain: str, options: Mapping[str, Any]
) -> list[Classification]:
    """Classify files in order; once there are results, a failure marks the remaining files instead of being raised.

    `options` are those of `Client.classify`.
    """
    results: list[Classification] = []
    for start in range(0, len(files), IMAGES_PER_REQUEST):
        batch = files[start : start + IMAGES_PER_REQUEST]
        try:
            results += client.classify(batch, domain, **options)
        except CasplError as error:
            if not results:
                raise
            results += [Classification(domain, error=error)] * (len(files) - len(results))
            break
    return results


def as_dict(path: Path, result: Classification) -> dict[str, Any]:
    """One file's result as JSON values."""
    error = result.error
    predictions = [
        {"label": found.label, "class_id": found.class_id, "probability": found.probability}
        for found in result.predictions
    ]
    return {
        "file": str(path),
        "domain": result.domain,
        "version": result.version,
        "digest": result.digest,
        "label": None if error else result.label,
        "abstained": result.abstained,
        "predictions": predictions,
        "error": {"title": error.title, "code": error.code, "detail": error.detail} if error else None,
    }


def show(files: Sequence[Path], results: Sequence[Classification], console: Console) -> None:
    """Print a table."""
    table = Table()
    table.add_column("image", no_wrap=True)
    for column in ("domain", "version", "prediction", "next"):
        table.add_column(column)
    for path, result in zip(files, results, strict=True):
        texts = [f"{found.label} {found.probability:.1%}" for found in result.predictions]
        if result.abstained:
            texts.insert(0, "abstained")
        first = plain(result.error.title, "red") if result.error else plain(texts[0])
        cells = (path.name, result.domain or "-", str(result.version or "-"))
        table.add_row(*map(plain, cells), first, plain(", ".join(texts[1:])))
    console.print(table)
    for detail in sorted({result.error.detail for result in results if result.error}):
        console.print(plain(detail), soft_wrap=True)
