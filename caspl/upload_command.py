"""The command `caspl upload`: a bundle becomes a version of its domain on a running server."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from caspl.client import DEFAULT_URL, Client
from caspl.results import Version
from caspl.terminal import Key, Url, exit_on_error, plain
from prompt_store.errors import PromptStoreError
from prompt_store.signatures import signature_path
from training.options import AsJson, Quiet
from training.progress import progress_bars

RETRY_FOR_S: Final = 120.0
"""Long enough for a restart of the server with a large backbone."""
KIB: Final = 1024

upload_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@upload_app.command(epilog="\b\nExample:\n  caspl upload shelf.safetensors --activate")
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="a bundle file")],
    domain: Annotated[str | None, typer.Option(help="domain; default: the domain in the bundle")] = None,
    url: Url = DEFAULT_URL,
    activate: Annotated[bool, typer.Option("--activate", help="make the version live")] = False,
    signature: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, readable=True, help="the bundle's signature  [FILE.sig, if it exists]"
        ),
    ] = None,
    key: Key = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Upload a bundle to a running server, which validates and tests it before it is stored."""
    console = Console(stderr=True, highlight=False, quiet=quiet)
    source = signature or (signature_path(file) if signature_path(file).exists() else None)
    with (
        exit_on_error(PromptStoreError),
        Client(url, api_key=key, retry_for_s=RETRY_FOR_S) as client,
        progress_bars(console) as bars,
    ):
        n_kib = max(1, file.stat().st_size // KIB)
        task = bars.add_task("uploading (KiB)", total=n_kib, note="")

        def show_sent(n_bytes: int) -> None:
            is_sent = n_bytes // KIB >= n_kib
            note = "the server validates and tests the bundle" if is_sent else ""
            bars.update(task, completed=min(n_bytes // KIB, n_kib), note=note)

        version = client.publish(file, domain=domain, activate=activate, signature=source, on_sent=show_sent)
    if as_json:
        facts = {**asdict(version), "signature": None if source is None else str(source)}
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        show(version, file, source, url)


def show(version: Version, file: Path, signature: Path | None, url: str) -> None:
    """Print the result, and how to try the version and make it live."""
    console = Console(highlight=False)
    done = "stored" if version.is_new else "was stored before"
    signed = f", with the signature {signature}" if signature else ""
    live = "live" if version.is_live else "not live"
    line = f"{version.domain} version {version.version}: {done}{signed}, {live} ({version.digest})"
    console.print(plain(line), soft_wrap=True)
    if not version.is_live:
        server = "" if url == DEFAULT_URL else f" --url {url}"
        tried = f"caspl classify PICTURE --domain {version.domain} --version {version.version}{server}"
        console.print(plain(f"Try it: {tried}"), soft_wrap=True)
        console.print(plain(f"Make it live: caspl upload {file} --activate{server}"), soft_wrap=True)
