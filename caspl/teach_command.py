"""The command `caspl teach`: from a folder of class folders to a live domain of a running server."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console

from caspl.client import DEFAULT_URL, Client
from caspl.errors import InvalidRequestError
from caspl.results import AddedExample, Fit
from caspl.terminal import FAILURE, Key, Url, exit_on_error, plain
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import check_domain
from training.data.teaching_folder import TeachingFolder, read_teaching_folder
from training.errors import TrainingError
from training.fit_table import print_report
from training.options import AsJson, Quiet
from training.progress import progress_bars

RETRY_FOR_S: Final = 120.0
"""An upload has low priority, and waits for a busy server."""
MIN_CLASSES: Final = 2
MAX_PRINTED: Final = 20
"""Rejected pictures that are listed without --json."""

teach_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Upload:
    """The pictures of a folder and their results, in the same order."""

    files: Sequence[Path]
    added: Sequence[AddedExample]

    @property
    def rejected(self) -> list[dict[str, Any]]:
        """Rejected files with their problems, as JSON values."""
        return [
            {"file": str(file), "title": one.error.title, "code": one.error.code, "detail": one.error.detail}
            for file, one in zip(self.files, self.added, strict=True)
            if one.error
        ]

    @property
    def counts(self) -> Counter[str]:
        """Pictures that were `added`, `exists` or `relabelled`."""
        return Counter(one.status for one in self.added if one.status)

    def file_of(self, example_id: int, name: str | None) -> str:
        """The file of an example, or its number and file name if it was not in the folder."""
        own = (str(file) for file, one in zip(self.files, self.added, strict=True) if one.id == example_id)
        return next(own, f"example {example_id}" + (f" ({name})" if name else ""))


@teach_app.command(epilog="\b\nExample:\n  caspl teach pictures/ --domain shelf")
def teach(
    folder: Annotated[Path, typer.Argument(help="folder with a folder of pictures per class")],
    domain: Annotated[str, typer.Option(help="domain to teach; it is created if it does not exist")],
    url: Url = DEFAULT_URL,
    classes: Annotated[
        Path | None,
        typer.Option(help="text file with the class names of a new domain (default: classes.txt, or the folders)"),
    ] = None,
    boosted_by: Annotated[str | None, typer.Option(help="domain whose boosting prompts a new domain uses")] = None,
    method: Annotated[Literal["auto", "gda", "ridge", "tip-adapter"], typer.Option(help="few-shot head")] = "auto",
    use_unlabelled: Annotated[
        bool,
        typer.Option("--use-unlabelled", help="use unlabelled pictures too, if that improves the fit (auto and gda)"),
    ] = False,
    activate: Annotated[bool, typer.Option(help="make the new version live")] = True,
    key: Key = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Teach a domain of a running server from labelled pictures, and make it live.

    Pictures outside class folders, and in a folder `unlabelled`, are added without a label. Running the command again
    adds only new pictures. The same picture in two classes is an error, and nothing is sent. Exit code 1 if a picture
    was rejected, after everything else was done.
    """
    console = Console(stderr=True, highlight=False, quiet=quiet)
    with exit_on_error(TrainingError):
        found = read_teaching_folder(folder, classes)
        for note in found.notes:
            console.print(plain(note, "yellow"), soft_wrap=True)
        with Client(url, api_key=key, retry_for_s=RETRY_FOR_S) as client:
            is_new = create_missing(client, domain, found, boosted_by, console)
            upload = add_pictures(client, domain, found, console)
            has_labels = any(one.label is not None for one in upload.added)
            fit = (
                client.fit(domain, activate=activate, method=method, unlabelled=use_unlabelled) if has_labels else None
            )
    if fit is None:
        console.print(plain(f"{folder} has no labelled pictures: no version was made.", "yellow"), soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(as_dict(domain, upload, fit, is_new=is_new), ensure_ascii=False))
    elif fit is not None:
        show(upload, fit, url, console)
    raise typer.Exit(FAILURE if upload.rejected else 0)


def create_missing(
    client: Client, domain: str, found: TeachingFolder, boosted_by: str | None, console: Console
) -> bool:
    """Create the domain if it does not exist, and print that; otherwise the domain keeps its classes and prompts.

    Raises:
        InvalidRequestError: it does not exist, and its name is invalid or there are too few class names.
        CasplError: the server cannot be reached or rejects the request.
    """
    if domain in {one.name for one in client.domains()}:
        if boosted_by:
            note = f"The domain {domain} exists: --boosted-by is not used."
            console.print(plain(note, "yellow"), soft_wrap=True)
        return False
    try:
        check_domain(domain)
    except BundleInvalidError as error:
        raise InvalidRequestError(str(error), code="name_invalid") from error
    if len(found.class_names) < MIN_CLASSES:
        detail = (
            f"a new one needs at least {MIN_CLASSES} classes, the folder has {len(found.class_names)}. Make a folder "
            "per class, or name the classes in a file and pass it as --classes."
        )
        raise InvalidRequestError(f"The domain {domain} does not exist", detail, code="too_few_classes")
    line = f"Creating the domain {domain} with {len(found.class_names)} classes: {', '.join(found.class_names)}"
    console.print(plain(line), soft_wrap=True)
    client.create_domain(domain, found.class_names, boosted_by=boosted_by)
    return True


def add_pictures(client: Client, domain: str, found: TeachingFolder, console: Console) -> Upload:
    """Add the pictures of a folder to a domain's examples, with progress; prints rejected ones.

    Raises:
        CasplError: the server cannot be reached or fails, or all pictures are rejected.
        OSError: a file cannot be read.
    """
    with progress_bars(console) as progress:
        task = progress.add_task("adding pictures", total=len(found.pictures), note="")
        added = client.add_examples(domain, found.pictures, on_added=lambda n_added: progress.advance(task, n_added))
    upload = Upload([file for _, file in found.pictures], added)
    rejected, counts = upload.rejected, upload.counts
    line = f"Pictures: {counts['added']} added, {counts['exists']} present, {counts['relabelled']} relabelled"
    console.print(plain(f"{line}, {len(rejected)} rejected."), soft_wrap=True)
    lines = [f"{one['file']}: {one['title']}: {one['detail']}" for one in rejected[:MAX_PRINTED]]
    lines += [f"and {len(rejected) - MAX_PRINTED} more, listed by --json"] if len(rejected) > MAX_PRINTED else []
    for line in lines:
        console.print(plain(line, "yellow"), soft_wrap=True)
    if len(rejected) == len(added):
        raise InvalidRequestError("All pictures were rejected", code="images_rejected")
    return upload


def as_dict(domain: str, upload: Upload, fit: Fit | None, *, is_new: bool) -> dict[str, Any]:
    """The result as JSON values."""
    return {
        "domain": domain,
        "is_new_domain": is_new,
        "version": fit and fit.version,
        "digest": fit and fit.digest,
        "is_live": fit is not None and fit.is_live,
        "pictures": {name: upload.counts[name] for name in ("added", "exists", "relabelled")},
        "rejected": upload.rejected,
        "report": fit and with_files(fit, upload),
    }


def with_files(fit: Fit, upload: Upload) -> dict[str, Any]:
    """The report, each suspect with its `file`."""
    suspects = [one | {"file": upload.file_of(one["id"], one.get("name"))} for one in fit.report["suspects"]]
    return fit.report | {"suspects": suspects}


def show(upload: Upload, fit: Fit, url: str, console: Console) -> None:
    """Print the report as tables, and how to use the version."""
    if fit.new_classes:
        console.print(plain(f"New classes of the domain: {', '.join(fit.new_classes)}"), soft_wrap=True)
    state = "live" if fit.is_live else "not live"
    print_report(with_files(fit, upload), {"domain": fit.domain, "version": f"{fit.version} ({state})"})
    if fit.report["method"] == "text":
        console.print("No head was better than the text features: add pictures, at least four of two or more classes.")
    server = "" if url == DEFAULT_URL else f" --url {url}"
    version = "" if fit.is_live else f" --version {fit.version}"
    console.print(plain(f"Try it: caspl classify PICTURE --domain {fit.domain}{version}{server}"), soft_wrap=True)
