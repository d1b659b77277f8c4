"""The command `caspl bundle`; exit codes as in `cli`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prompt_store.bom import bundle_bom
from prompt_store.bundle import Bundle, read_bundle
from prompt_store.command_line import (
    EXIT_INVALID,
    FileArgument,
    JsonOption,
    read_bundle_file,
    read_signature_file,
    report_errors,
    show,
)
from prompt_store.digest import check_digest
from prompt_store.errors import BundleInvalidError, SignatureError
from prompt_store.signatures import signature_path
from prompt_store.tables import bundle_differences, bundle_facts, bundle_tables, table

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

bundle_app = typer.Typer(
    help="Inspect, verify and sign bundle files.",
    epilog="\b\nExample:\n  caspl bundle inspect shelf.safetensors",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


def _check_file(path: Path, digest: str | None) -> tuple[dict[str, object], bool]:
    data = read_bundle_file(path)
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
    with report_errors(as_json):
        data = read_bundle_file(file)
        bundle = read_bundle(data)
        show(bundle_facts(bundle, len(data)), as_json, *bundle_tables(bundle, len(data)))


@bundle_app.command(epilog="\b\nExample:\n  caspl bundle verify shelf.safetensors")
def verify(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, help="bundle files")],
    digest: Annotated[str | None, typer.Option(help="expected digest of the file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Validate bundles; exit code 3 if one is invalid."""
    with report_errors(as_json):
        results = [_check_file(path, digest) for path in files]
    facts = [fact for fact, _ in results]
    show(facts, as_json, *(_result_lines(facts)))
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
    with report_errors(as_json):
        changes = bundle_differences(read_bundle(read_bundle_file(first)), read_bundle(read_bundle_file(second)))
        fields = [(change["field"], change["first"], change["second"]) for change in changes["fields"]]
        tensors = [(item["name"], item["change"], item.get("max_abs_difference")) for item in changes["tensors"]]
        views = (
            table("Manifest", ("field", "first", "second"), fields),
            table("Tensors", ("name", "change", "largest difference"), tensors),
        )
        show(changes, as_json, *(views if fields or tensors else ("no differences",)))


@bundle_app.command(epilog="\b\nExample:\n  caspl bundle sign shelf.safetensors --key key.pem")
def sign(
    file: FileArgument,
    key: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, readable=True, help="Ed25519 private key (PEM file)")
    ],
    output: Annotated[Path | None, typer.Option(help="signature file to write  [FILE.sig]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle, in the layout of OpenSSF Model Signing; `openssl genpkey -algorithm ed25519` makes a key."""
    from prompt_store.signing_keys import sign_bundle

    target = output or signature_path(file)
    with report_errors(as_json):
        bundle = read_bundle(read_bundle_file(file))
        private = _private_key(key)
        signature = sign_bundle(bundle.digest, file.name, private)
        if target.exists() and read_signature_file(target) != signature:
            raise SignatureError(
                f"{target} exists and has another signature. Remove it, or name another file with --output.",
                code="signature_exists",
            )
        target.write_bytes(signature)
        facts = {"file": str(file), "digest": bundle.digest, "signature": str(target)}
        show(facts, as_json, f"{target}: signature of {bundle.digest}, domain {bundle.manifest.domain}")


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from prompt_store.signing_keys import load_private_key

    try:
        return load_private_key(path)
    except SignatureError as error:
        if error.code != "key_encrypted" or not sys.stdin.isatty():
            raise
    return load_private_key(path, typer.prompt(f"Password of {path}", hide_input=True, err=True))


@bundle_app.command(
    "verify-signature", epilog="\b\nExample:\n  caspl bundle verify-signature shelf.safetensors --public-key key.pub"
)
def verify_signature_file(
    file: FileArgument,
    public_key: Annotated[
        list[Path],
        typer.Option(exists=True, dir_okay=False, readable=True, help="accepted Ed25519 public key, may be repeated"),
    ],
    signature: Annotated[Path | None, typer.Option(help="signature file  [FILE.sig]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle and its signature; exit code 1 if the signature is not accepted."""
    from prompt_store.signing_keys import load_public_key, verify_signature

    source = signature or signature_path(file)
    with report_errors(as_json):
        bundle = read_bundle(read_bundle_file(file))
        if not source.exists():
            raise SignatureError(
                f"There is no signature file {source}. Name it with --signature, or sign the bundle.",
                code="signature_required",
            )
        key = verify_signature(
            read_signature_file(source), bundle.digest, [load_public_key(path) for path in public_key]
        )
        facts = {"file": str(file), "digest": bundle.digest, "domain": bundle.manifest.domain, "key": key.hint}
        show(facts, as_json, f"{file}: ok, {bundle.manifest.domain}, {bundle.digest}, signed by key {key.hint[:16]}")


@bundle_app.command(epilog="\b\nExample:\n  caspl bundle bom shelf.safetensors --output shelf.cdx.json")
def bom(
    file: FileArgument,
    output: Annotated[Path | None, typer.Option(help="file to write  [standard output]")] = None,
) -> None:
    """Write a bundle's CycloneDX 1.6 ML-BOM: hashes, backbone, data, recipe and metrics, as JSON."""
    with report_errors(as_json=False):
        data = read_bundle_file(file)
        text = json.dumps(bundle_bom(read_bundle(data), file.name, len(data)), ensure_ascii=False, indent=1)
        if output is None:
            typer.echo(text)
        else:
            output.write_text(f"{text}\n", encoding="utf-8")
