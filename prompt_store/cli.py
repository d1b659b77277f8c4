"""The commands `caspl store` and `caspl bundle`.

Exit codes: 0 success, 1 failure, 2 usage error, 3 invalid bundle. With `--json` the result is one JSON value on
stdout, and an error is one JSON object on stderr.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from getpass import getuser
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console, RenderableType

from prompt_store.bundle import Bundle, peek_manifest, read_bundle
from prompt_store.digest import check_digest
from prompt_store.errors import BundleInvalidError, PromptStoreError, StoreCorruptError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.repair import check_store
from prompt_store.store import Store
from prompt_store.tables import (
    bundle_differences,
    bundle_facts,
    bundle_tables,
    check_facts,
    check_lines,
    store_rows,
    table,
)

EXIT_FAILURE: Final = 1
EXIT_INVALID: Final = 3

store_app = typer.Typer(
    help="Manage a bundle store: versions, activation, rollback.",
    epilog="\b\nExample:\n  caspl store ls --store store/",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)
bundle_app = typer.Typer(
    help="Inspect and verify bundle files.",
    epilog="\b\nExample:\n  caspl bundle inspect shelf.safetensors",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="CASPL_STORE", help="directory of the store", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="a bundle file")]
DomainArgument = Annotated[str, typer.Argument(help="domain name")]
VersionArgument = Annotated[int, typer.Argument(min=1, help="version number")]
DEFAULT_STORE: Final = Path("store")


def _actor() -> str:
    try:
        return f"cli:{getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return "cli"


def _show(value: object, as_json: bool, *views: RenderableType) -> None:
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, sort_keys=True))
        return
    console = Console(highlight=False)
    for view in views:
        console.print(view, markup=False, soft_wrap=isinstance(view, str))


def _show_error(error: PromptStoreError, as_json: bool, where: str = "") -> None:
    facts = {"code": error.code, "detail": f"{where}{error}"}
    line = json.dumps({"error": facts}, sort_keys=True) if as_json else f"{error.code}: {where}{error}"
    typer.echo(line, err=True)


@contextmanager
def _report_errors(as_json: bool) -> Iterator[None]:
    """Print an error as one line on stderr and set the exit code."""
    try:
        yield
    except PromptStoreError as error:
        _show_error(error, as_json)
        raise typer.Exit(EXIT_INVALID if isinstance(error, BundleInvalidError) else EXIT_FAILURE) from error
    except OSError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_FAILURE) from error


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BUNDLE_BYTES + 1)


def _open_store(root: Path) -> Store:
    return Store.open(root, create=False)


@store_app.command("ls", epilog="\b\nExample:\n  caspl store ls --store store/")
def list_versions(
    domain: Annotated[str | None, typer.Argument(help="only this domain")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List domains and versions; * marks the live version."""
    n_errors = 0
    with _report_errors(as_json):
        opened, rows = _open_store(store), []
        for name in opened.domains() if domain is None else [domain]:
            try:
                rows += store_rows(opened, name)
            except StoreCorruptError as error:
                _show_error(error, as_json, f"{name}: ")
                n_errors += 1
        cells = [
            (row["domain"], row["version"], "*" if row["is_live"] else "", row["size_bytes"], row["created_at"])
            for row in rows
        ]
        columns = ("domain", "version", "live", "bytes", "created")
        _show(rows, as_json, table(f"{store}", columns, cells))
    if n_errors:
        raise typer.Exit(EXIT_FAILURE)


@store_app.command(epilog="\b\nExample:\n  caspl store add shelf.safetensors --activate --store store/")
def add(
    file: FileArgument,
    domain: Annotated[str | None, typer.Option(help="domain; default: the domain in the bundle")] = None,
    is_activated: Annotated[bool, typer.Option("--activate", help="make the new version live")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Validate a bundle and publish it as the next version; creates the store if needed."""
    with _report_errors(as_json):
        data = _read_file(file)
        name = domain if domain is not None else peek_manifest(data).domain
        read_bundle(data)
        opened = Store.open(store)
        added = opened.add(name, data, actor=_actor())
        if is_activated:
            opened.activate(name, added.version, actor=_actor())
        what = "added" if added.created else "already exists"
        live = ", live" if is_activated else ""
        facts = {"domain": name, **asdict(added), "is_activated": is_activated}
        _show(facts, as_json, f"{name} version {added.version} {what}{live} ({added.digest})")


@store_app.command(epilog="\b\nExample:\n  caspl store activate shelf 2 --store store/")
def activate(
    domain: DomainArgument,
    version: VersionArgument,
    expected_live: Annotated[
        int | None, typer.Option("--expect", min=0, help="fail unless this version is live now; 0 for none")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Make a version live."""
    with _report_errors(as_json):
        info = _open_store(store).activate(domain, version, expected_live=expected_live, actor=_actor())
        _show({"domain": domain, **asdict(info)}, as_json, f"{domain} version {info.version} is live")


@store_app.command(epilog="\b\nExample:\n  caspl store rollback shelf --store store/")
def rollback(domain: DomainArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Make the previously live version live; repeat to go further back."""
    with _report_errors(as_json):
        info = _open_store(store).rollback(domain, actor=_actor())
        _show({"domain": domain, **asdict(info)}, as_json, f"{domain} version {info.version} is live again")


@store_app.command(epilog="\b\nExample:\n  caspl store history shelf --store store/")
def history(
    domain: DomainArgument,
    limit: Annotated[int, typer.Option(min=1, help="maximum number of changes; the newest are shown")] = 100,
    before: Annotated[int | None, typer.Option(min=1, help="only changes with a smaller number")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the history of a domain."""
    with _report_errors(as_json):
        entries = _open_store(store).history(domain, limit=limit, before=before)
        columns = ("number", "at", "actor", "action", "from", "to")
        cells = [(one.seq, one.at, one.actor, one.action, one.from_version, one.to_version) for one in entries]
        _show([asdict(entry) for entry in entries], as_json, table(domain, columns, cells))


@store_app.command(epilog="\b\nExample:\n  caspl store gc --keep 5 --dry-run --store store/")
def gc(
    keep: Annotated[int, typer.Option(min=1, help="number of versions to keep per domain")] = 20,
    grace_h: Annotated[
        float, typer.Option(min=0, help="minimum age in hours of unreferenced bundles to remove")
    ] = 24.0,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="report only, change nothing")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Retire old versions and remove unreferenced files; live versions are always kept."""
    with _report_errors(as_json):
        opened = _open_store(store)
        report = opened.gc(keep_versions=keep, grace_s=grace_h * 3600, dry_run=is_dry_run, actor=_actor())
        will = "would retire" if is_dry_run else "retired"
        line = f"{will} {len(report.retired)} versions, {len(report.removed_blobs)} files, {report.freed_bytes} bytes"
        _show(asdict(report), as_json, line)


@store_app.command("rm", epilog="\b\nExample:\n  caspl store rm shelf 1 --store store/")
def remove(
    domain: DomainArgument, version: VersionArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Retire a version that is not live; `gc` frees its space."""
    with _report_errors(as_json):
        _open_store(store).retire(domain, version, actor=_actor())
        _show({"domain": domain, "version": version}, as_json, f"{domain} version {version} is retired")


@store_app.command(epilog="\b\nExample:\n  caspl store check --store store/")
def check(
    is_repaired: Annotated[
        bool, typer.Option("--repair", help="repair the store where possible; damaged files move to quarantine/")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check every record and bundle; exit code 1 if the store is damaged."""
    with _report_errors(as_json):
        found, repairs = check_store(store, repair=is_repaired)
        _show(check_facts(found, repairs), as_json, *check_lines(found, repairs))
    if not found.is_sound:
        raise typer.Exit(EXIT_FAILURE)


def _check_file(path: Path, digest: str | None) -> tuple[dict[str, object], bool]:
    data = _read_file(path)
    try:
        if digest is not None:
            check_digest(data, digest)
        bundle: Bundle = read_bundle(data)
    except BundleInvalidError as error:
        return {"file": str(path), "is_valid": False, "code": error.code, "detail": str(error)}, False
    return {"file": str(path), "is_valid": True, "digest": bundle.digest, "domain": bundle.manifest.domain}, True


@bundle_app.command(epilog="\b\nExample:\n  caspl bundle inspect shelf.safetensors")
def inspect(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show a bundle's manifest and tensors."""
    with _report_errors(as_json):
        data = _read_file(file)
        bundle = read_bundle(data)
        _show(bundle_facts(bundle, len(data)), as_json, *bundle_tables(bundle, len(data)))


@bundle_app.command(epilog="\b\nExample:\n  caspl bundle verify shelf.safetensors")
def verify(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, help="bundle files")],
    digest: Annotated[str | None, typer.Option(help="expected digest of the file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Validate bundles; exit code 3 if one is invalid."""
    with _report_errors(as_json):
        results = [_check_file(path, digest) for path in files]
    facts = [fact for fact, _ in results]
    _show(facts, as_json, *(_result_lines(facts)))
    if not all(is_valid for _, is_valid in results):
        raise typer.Exit(EXIT_INVALID)


def _result_lines(facts: Sequence[dict[str, object]]) -> list[str]:
    return [
        f"{fact['file']}: ok, {fact['domain']}, {fact['digest']}"
        if fact["is_valid"]
        else f"{fact['file']}: {fact['code']}: {fact['detail']}"
        for fact in facts
    ]


@bundle_app.command(epilog="\b\nExample:\n  caspl bundle diff old.safetensors new.safetensors")
def diff(first: FileArgument, second: FileArgument, as_json: JsonOption = False) -> None:
    """Show the differences between two bundles."""
    with _report_errors(as_json):
        changes = bundle_differences(read_bundle(_read_file(first)), read_bundle(_read_file(second)))
        fields = [(change["field"], change["first"], change["second"]) for change in changes["fields"]]
        tensors = [(item["name"], item["change"], item.get("max_abs_difference")) for item in changes["tensors"]]
        views = (
            table("Manifest", ("field", "first", "second"), fields),
            table("Tensors", ("name", "change", "largest difference"), tensors),
        )
        _show(changes, as_json, *(views if fields or tensors else ("no differences",)))
