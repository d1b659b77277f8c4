"""The command `caspl store`, and `caspl bundle` from `bundle_commands`.

Exit codes: 0 success, 1 failure, 2 usage error, 3 invalid bundle. With `--json` the result is one JSON value on
stdout, and an error is one JSON object on stderr.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prompt_store.bundle import peek_manifest, read_bundle
from prompt_store.bundle_commands import bundle_app as bundle_app  # the entry point of `caspl bundle`
from prompt_store.command_line import (
    DEFAULT_STORE,
    EXIT_FAILURE,
    DomainArgument,
    FileArgument,
    JsonOption,
    StoreOption,
    VersionArgument,
    actor,
    load_keys,
    read_bundle_file,
    read_signature_file,
    report_errors,
    show,
    show_error,
)
from prompt_store.errors import StoreCorruptError
from prompt_store.signatures import signature_path
from prompt_store.stores import check_store, open_store
from prompt_store.tables import audit_table, check_facts, check_lines, signed_by, store_rows, table

store_app = typer.Typer(
    help="Manage a bundle store: versions, activation, rollback.",
    epilog="\b\nExample:\n  caspl store ls --store store/",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@store_app.command("ls", epilog="\b\nExample:\n  caspl store ls --store store/")
def list_versions(
    domain: Annotated[str | None, typer.Argument(help="only this domain")] = None,
    public_key: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, readable=True, help="verify signatures with this Ed25519 key, may be repeated"
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List domains and versions with the keys that signed them; * marks the live version."""
    n_errors = 0
    with report_errors(as_json):
        keys = load_keys(public_key) if public_key else None
        opened, rows = open_store(store), []
        for name in opened.domains() if domain is None else [domain]:
            try:
                rows += store_rows(opened, name, keys)
            except StoreCorruptError as error:
                show_error(error, as_json, f"{name}: ")
                n_errors += 1
        cells = [
            (
                row["domain"],
                row["version"],
                "*" if row["is_live"] else "",
                row["size_bytes"],
                row["created_at"],
                signed_by(row["signatures"]),
            )
            for row in rows
        ]
        columns = ("domain", "version", "live", "bytes", "created", "signed by")
        show(rows, as_json, table(store, columns, cells))
    if n_errors:
        raise typer.Exit(EXIT_FAILURE)


@store_app.command(epilog="\b\nExample:\n  caspl store add shelf.safetensors --activate --store store/")
def add(
    file: FileArgument,
    domain: Annotated[str | None, typer.Option(help="domain; default: the domain in the bundle")] = None,
    is_activated: Annotated[bool, typer.Option("--activate", help="make the new version live")] = False,
    signature: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            help="its signature, stored beside the version  [FILE.sig, if it exists]",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Validate a bundle and publish it as the next version; creates the store if needed."""
    source = signature or signature_path(file)
    with report_errors(as_json):
        data = read_bundle_file(file)
        name = domain if domain is not None else peek_manifest(data).domain
        read_bundle(data)
        opened = open_store(store, create=True)
        signed = read_signature_file(source) if source.exists() else None
        added = opened.add(name, data, signature=signed, actor=actor())
        if is_activated:
            opened.activate(name, added.version, actor=actor())
        what = "added" if added.created else "already exists"
        live = ", live" if is_activated else ""
        with_signature = "" if signed is None else f", with the signature {source}"
        facts = {"domain": name, **asdict(added), "is_activated": is_activated, "is_signed": signed is not None}
        show(facts, as_json, f"{name} version {added.version} {what}{live} ({added.digest}){with_signature}")


@store_app.command("add-signature", epilog="\b\nExample:\n  caspl store add-signature shelf 2 shelf.safetensors.sig")
def add_signature(
    domain: DomainArgument,
    version: VersionArgument,
    signature: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="a signature of this version's bundle")
    ],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Store a signature beside a version that exists, such as one by a new key."""
    with report_errors(as_json):
        open_store(store).add_signature(domain, version, read_signature_file(signature))
        facts = {"domain": domain, "version": version, "signature": str(signature)}
        show(facts, as_json, f"{domain} version {version} has the signature {signature}")


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
    with report_errors(as_json):
        info = open_store(store).activate(domain, version, expected_live=expected_live, actor=actor())
        show({"domain": domain, **asdict(info)}, as_json, f"{domain} version {info.version} is live")


@store_app.command(epilog="\b\nExample:\n  caspl store rollback shelf --store store/")
def rollback(domain: DomainArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Make the previously live version live; repeat to go further back."""
    with report_errors(as_json):
        info = open_store(store).rollback(domain, actor=actor())
        show({"domain": domain, **asdict(info)}, as_json, f"{domain} version {info.version} is live again")


@store_app.command(epilog="\b\nExample:\n  caspl store history shelf --store store/")
def history(
    domain: DomainArgument,
    limit: Annotated[int, typer.Option(min=1, help="maximum number of changes; the newest are shown")] = 100,
    before: Annotated[int | None, typer.Option(min=1, help="only changes with a smaller number")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the history of a domain."""
    with report_errors(as_json):
        entries = open_store(store).history(domain, limit=limit, before=before)
        columns = ("number", "at", "actor", "action", "from", "to")
        cells = [
            (one.seq, one.at, one.actor, f"{one.action} {one.detail}".rstrip(), one.from_version, one.to_version)
            for one in entries
        ]
        show([asdict(entry) for entry in entries], as_json, table(domain, columns, cells))


@store_app.command(epilog="\b\nExample:\n  caspl store audit --verify --store store/")
def audit(
    is_verified: Annotated[
        bool, typer.Option("--verify", help="only verify the log; exit code 1 if entries or records are not intact")
    ] = False,
    expected: Annotated[
        str | None,
        typer.Option(
            "--expect", help="with --verify: fail unless the log has this entry, number:digest, of an earlier run"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="maximum number of changes; the newest are shown")] = 100,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the changes of all domains and of API keys, with their actors; or verify the log."""
    with report_errors(as_json):
        report = open_store(store).audit()
    problems = report.problems(expected)
    last = f"{report.n_entries}:{report.head}"
    lines = [*problems, f"Intact entries: {report.n_entries}. The last one is {last}"]
    if is_verified:
        show({"is_intact": not problems, "problems": problems, "last": last}, as_json, *lines)
    else:
        rows = report.rows[-limit:]
        show(
            {"last": last, "problems": problems, "changes": [asdict(row) for row in rows]},
            as_json,
            audit_table(rows),
            *lines,
        )
    if is_verified and problems:
        raise typer.Exit(EXIT_FAILURE)


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
    with report_errors(as_json):
        opened = open_store(store)
        report = opened.gc(keep_versions=keep, grace_s=grace_h * 3600, dry_run=is_dry_run, actor=actor())
        will = "would retire" if is_dry_run else "retired"
        line = f"{will} {len(report.retired)} versions, {len(report.removed_blobs)} files, {report.freed_bytes} bytes"
        show(asdict(report), as_json, line)


@store_app.command("rm", epilog="\b\nExample:\n  caspl store rm shelf 1 --store store/")
def remove(
    domain: DomainArgument, version: VersionArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Retire a version that is not live; `gc` frees its space."""
    with report_errors(as_json):
        open_store(store).retire(domain, version, actor=actor())
        show({"domain": domain, "version": version}, as_json, f"{domain} version {version} is retired")


@store_app.command(epilog="\b\nExample:\n  caspl store check --store store/")
def check(
    is_repaired: Annotated[
        bool, typer.Option("--repair", help="repair the store where possible; damaged files move to quarantine/")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check every record and bundle; exit code 1 if the store is damaged."""
    with report_errors(as_json):
        found, repairs = check_store(store, repair=is_repaired)
        show(check_facts(found, repairs), as_json, *check_lines(found, repairs))
    if not found.is_sound:
        raise typer.Exit(EXIT_FAILURE)
