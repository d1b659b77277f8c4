"""The command `caspl doctor`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from caspl.doctor import installation, machine, serving
from caspl.doctor.finding import Finding, Status
from caspl.terminal import FAILURE, plain
from prompt_store.s3 import is_s3

STYLES: Final = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "red"}

doctor_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@doctor_app.command(epilog="\b\nExample:\n  caspl doctor --store store")
def doctor(
    url: Annotated[str | None, typer.Option(help="also check the server at this address")] = None,
    store: Annotated[
        str | None, typer.Option(envvar="CASPL_STORE", help="directory of the store, or s3://BUCKET/PREFIX  [./store]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check this machine, the installation, and the service's settings and files.

    Warnings and problems are printed with advice. Exit code 1 if there is a problem.
    """
    findings = examine(url, store)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        show(findings, Console(highlight=False))
    raise typer.Exit(FAILURE if any(finding.status == Status.PROBLEM for finding in findings) else 0)


def examine(url: str | None, store: str | None) -> list[Finding]:
    """Run all checks."""
    found = installation.probe()
    settings, finding = serving.read_settings(**({"store": store} if store else {}))
    folder = settings.store if settings else store or "store"
    findings = [
        machine.check_python(),
        installation.check_package(),
        installation.check_extras(),
        machine.check_processor(),
        installation.check_torch(found),
        finding,
        serving.check_bundle_store(folder),
        machine.check_memory(),
        machine.check_disk(Path() if is_s3(folder) else Path(folder)),
    ]
    if settings is not None:
        findings += [
            installation.check_weights(found, settings.backbone, settings.pretrained),
            serving.check_keys(settings),
            serving.check_port(settings.host, settings.port),
        ]
    return findings + ([serving.check_server(url)] if url else [])


def show(findings: list[Finding], console: Console) -> None:
    """Print a line per finding, and advice below."""
    for finding in findings:
        line = plain(f"{finding.status:8}", STYLES[finding.status]) + plain(f"{finding.name}: {finding.detail}")
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(plain(f"{'':8}-> {finding.advice}"), soft_wrap=True)
