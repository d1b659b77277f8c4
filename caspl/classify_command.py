"""The command `caspl classify`."""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from caspl.client import DEFAULT_URL, AsyncClient, FileResult
from caspl.csv_results import CsvResults
from caspl.errors import CasplError
from caspl.folders import find_pictures
from caspl.operations import IMAGES_PER_REQUEST, ClassifyOptions
from caspl.results import Classification
from caspl.terminal import FAILURE, Key, Url, exit_on_error, plain, print_error
from training.data.listing import SERVED_SUFFIXES
from training.errors import TrainingError
from training.options import Quiet
from training.progress import progress_bars

RETRY_FOR_S: Final = 120.0
"""Long enough for a restart of the server with a large backbone."""
MAX_PRINTED: Final = 20
"""Pictures with errors that are listed without a table."""
MAX_NAMED: Final = 3
"""Pictures with the same error that are named."""

classify_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


def _not_an_option(file: Path | None) -> Path | None:
    """Refuse the next option where a file name is missing."""
    if file is not None and str(file).startswith("--"):
        raise typer.BadParameter(f"The file name is missing before {file}.")
    return file


@classify_app.command(
    epilog="\b\nExample:\n  caspl classify photos/ --domain shelf --recursive --csv results.csv",
)
def classify(
    images: Annotated[list[Path], typer.Argument(help="image files, or folders of them")],
    domain: Annotated[str, typer.Option(help="domain")],
    url: Url = DEFAULT_URL,
    recursive: Annotated[bool, typer.Option("--recursive", help="include the images in subfolders")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="classes per image")] = 3,
    labels: Annotated[str | None, typer.Option(help="classify among these labels instead, comma-separated")] = None,
    version: Annotated[int | None, typer.Option(help="use this version instead of the live one")] = None,
    abstain: Annotated[
        float | None, typer.Option(help="abstention rate, such as 0.05: no label for the least reliable images")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            callback=_not_an_option, help="write a CSV file; if it exists, only files without a row are classified"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    retry_for: Annotated[
        float, typer.Option(min=0, help="seconds to retry while the server restarts or is busy")
    ] = RETRY_FOR_S,
    key: Key = None,
    quiet: Quiet = False,
) -> None:
    """Classify image files with a running server.

    Exit code 1 if an image has an error or no result. An interrupted run with --csv is continued by the same command.
    """
    if csv is not None and as_json:
        raise typer.BadParameter("--csv and --json exclude each other")
    console = Console(stderr=True, highlight=False, quiet=quiet)
    with exit_on_error(TrainingError):
        found = find_pictures(images, recursive=recursive)
        for note in found.notes:
            console.print(plain(note), soft_wrap=True)
        if not found.files:
            raise typer.BadParameter(f"no {', '.join(sorted(SERVED_SUFFIXES))} file in these folders")
        options: ClassifyOptions = {
            "top_k": top_k,
            "labels": labels.split(",") if labels else None,
            "version": version,
            "abstain": abstain,
        }
        client = AsyncClient(url, api_key=key, retry_for_s=retry_for)
        with CsvResults(csv, domain, top_k) if csv is not None else nullcontext() as file:
            done = file.files if file is not None else frozenset()
            run = Run([path for path in found.files if str(path) not in done], domain, file)
            if file is not None and len(run.files) < len(found.files):
                n_skipped = len(found.files) - len(run.files)
                line = f"{n_skipped} pictures have a row in {csv} and are skipped; {file.n_errors} rows have an error."
                console.print(plain(line), soft_wrap=True)
            asyncio.run(run.classify(client, options, console))
    if as_json:
        typer.echo(
            json.dumps([as_dict(path, result) for path, result in run.all_results], indent=1, ensure_ascii=False)
        )
    elif file is None:
        show(run.all_results, Console(highlight=False))
    run.print_summary(console)
    has_earlier_errors = file is not None and file.n_errors > 0
    raise typer.Exit(FAILURE if run.failure or run.errors or has_earlier_errors else 0)


@dataclass
class Run:
    """One run of the command.

    Attributes:
        files: the files to classify.
        domain: their domain.
        csv: where results are written.
        results: those of the first files, in order.
        failure: the error that ended the run before the last file.
    """

    files: Sequence[Path]
    domain: str
    csv: CsvResults | None = None
    results: list[FileResult] = field(default_factory=list)
    failure: CasplError | None = None
    _n_saved: int = 0

    async def classify(self, client: AsyncClient, options: ClassifyOptions, console: Console) -> None:
        """Classify the files, with progress.

        Raises:
            CasplError: there is no result at all.
            OSError: the CSV file cannot be written.
        """
        async with client:
            with progress_bars(console) as progress:
                task = progress.add_task("classifying", total=len(self.files), note="")
                try:
                    async for result in client.classify_files(self.files, self.domain, **options):
                        self.results.append(result)
                        if len(self.results) % IMAGES_PER_REQUEST == 0:
                            self._save()
                        progress.advance(task)
                except CasplError as error:
                    if not self.results:
                        raise
                    self.failure = error
                finally:
                    self._save()

    def _save(self) -> None:
        if self.csv is not None:
            self.csv.append(self.results[self._n_saved :])
            self._n_saved = len(self.results)

    @property
    def errors(self) -> list[tuple[Path, CasplError]]:
        """Files with an error."""
        return [(path, result.error) for path, result in self.results if result.error]

    @property
    def all_results(self) -> list[FileResult]:
        """One result per file; those without one have the failure as their error."""
        rest = self.files[len(self.results) :]
        return self.results + [(path, Classification(self.domain, error=self.failure)) for path in rest]

    def print_summary(self, console: Console) -> None:
        """Print counts, the files with errors if there is no table of them, and the failure."""
        if self.csv is not None:
            for path, error in self.errors[:MAX_PRINTED]:
                console.print(plain(f"{path}: {error}", "yellow"), soft_wrap=True)
            if len(self.errors) > MAX_PRINTED:
                console.print(plain(f"and {len(self.errors) - MAX_PRINTED} more in the CSV file", "yellow"))
        n_good, n_rest = len(self.results) - len(self.errors), len(self.files) - len(self.results)
        parts = [f"{n_good} picture{'' if n_good == 1 else 's'} classified", f"{len(self.errors)} with an error"]
        parts += [f"{n_rest} without a result"] if n_rest else []
        console.print(plain(", ".join(parts)), soft_wrap=True)
        if self.failure is not None:
            reason = str(self.failure)
            if self.csv is not None:
                reason = f"{reason.removesuffix('.')}. Run the same command again to continue."
            print_error(reason)


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


def show(results: Sequence[FileResult], console: Console) -> None:
    """Print a table; its title has the domain and, if all images have the same, the version."""
    domain = next((result.domain for _, result in results if result.domain), "")
    versions = {result.version for _, result in results if not result.error}
    title = f"{domain}, version {next(iter(versions))}" if len(versions) == 1 else domain
    table = Table(title=plain(title, "bold"), title_justify="left")
    names = _short_names([path for path, _ in results])
    table.add_column("image", overflow="fold")
    if len(versions) > 1:
        table.add_column("version")
    table.add_column("prediction")
    table.add_column("next")
    details: dict[str, list[str]] = {}
    for name, (_, result) in zip(names, results, strict=True):
        texts = [f"{found.label} {found.probability:.1%}" for found in result.predictions]
        if result.abstained:
            texts.insert(0, "abstained")
        first = plain(result.error.title, "red") if result.error else plain(texts[0])
        if result.error:
            details.setdefault(result.error.detail, []).append(name)
        cells = [name, str(result.version or "-")] if len(versions) > 1 else [name]
        table.add_row(*map(plain, cells), first, plain(", ".join(texts[1:])))
    console.print(table)
    for detail, failed in details.items():
        more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
        console.print(plain(f"{', '.join(failed[:MAX_NAMED])}{more}: {detail}"), soft_wrap=True)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Paths below the folder that contains all of them."""
    parents = [path.absolute().parent for path in paths]
    common = os.path.commonpath(parents) if parents else ""
    return [path.absolute().relative_to(common).as_posix() for path in paths]
