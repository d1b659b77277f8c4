"""The commands `caspl push` and `caspl pull`; exit codes as in `prompt_store.cli`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from prompt_store.bundle import Bundle
from prompt_store.command_line import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    actor,
    load_keys,
    read_bundle_file,
    read_signature_file,
    report_errors,
    show,
)
from prompt_store.errors import ConflictError, PromptStoreError, VersionExistsError
from prompt_store.manifest import check_domain
from prompt_store.remotes.address import parse_address, printable
from prompt_store.remotes.artifact import (
    BUNDLE_SUFFIX,
    Artifact,
    check_artifact,
    file_names,
    make_artifact,
    signature_names,
)
from prompt_store.remotes.remote import Remote, open_remote
from prompt_store.stores import open_store

push_app = typer.Typer(add_completion=False, rich_markup_mode=None)
pull_app = typer.Typer(add_completion=False, rich_markup_mode=None)

PlainHttpOption = Annotated[
    bool, typer.Option("--plain-http", help="allow HTTP without encryption to other hosts than this machine")
]
SignaturesOption = Annotated[
    list[Path] | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        readable=True,
        help="signature of FILE, may be repeated  [FILE.sig, FILE.2.sig and so on]",
    ),
]


@push_app.command(epilog="\b\nExample:\n  caspl push flowers.safetensors oci://registry.example/caspl/flowers:2")
def push(
    bundle: Annotated[
        str, typer.Argument(metavar="FILE|DOMAIN", help="a bundle file, or a domain of the store: its live version")
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DEST", help="oci://HOST/NAME[:TAG], s3://BUCKET/PREFIX or hf://OWNER/REPOSITORY[@BRANCH]"
        ),
    ],
    signature: SignaturesOption = None,
    version: Annotated[int | None, typer.Option(min=1, help="another version of DOMAIN than the live one")] = None,
    is_public: Annotated[
        bool, typer.Option("--public", help="with hf://: a repository that does not exist yet becomes a public one")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Push a bundle with its signatures and ML-BOM to a registry, a bucket or the Hugging Face Hub."""
    if is_public and not destination.startswith("hf://"):
        raise typer.BadParameter(
            "--public is for hf:// only; the settings of a registry or bucket determine its visibility."
        )
    with report_errors(as_json), _opened(destination, plain_http) as remote:
        if Path(bundle).is_file():
            if version is not None:
                raise typer.BadParameter("--version selects a version of a domain, but a file is given.")
            data, signatures = read_bundle_file(Path(bundle)), _read_signatures(Path(bundle), signature)
        else:
            if signature:
                raise typer.BadParameter("--signature belongs to a file; a domain has its signatures in the store.")
            data, signatures = _read_version(bundle, version, store)
        artifact, content = make_artifact(data, signatures)
        pushed = remote.push(artifact, is_public=is_public)
        facts = {
            "domain": content.manifest.domain,
            "digest": content.digest,
            "address": pushed,
            "n_signatures": len(signatures),
        }
        show(facts, as_json, f"{content.manifest.domain} ({content.digest}), {_signed(signatures)}", f"is at {pushed}")


@pull_app.command(epilog="\b\nExample:\n  caspl pull oci://registry.example/caspl/flowers:2 --store store --activate")
def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="oci://HOST/NAME[:TAG][@DIGEST], s3://BUCKET/PREFIX[@DIGEST] or hf://OWNER/REPOSITORY[@REVISION]",
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="file to write  [DOMAIN.safetensors]")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="add it to this store instead, a directory or s3://BUCKET/PREFIX; created if needed"),
    ] = None,
    is_activated: Annotated[bool, typer.Option("--activate", help="with --store: make the version live")] = False,
    domain: Annotated[str | None, typer.Option(help="fail unless the bundle is for this domain")] = None,
    digest: Annotated[str | None, typer.Option(help="fail unless the bundle has this digest")] = None,
    require_signature: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            help="fail unless this Ed25519 public key (PEM file) signed the bundle, may be repeated",
        ),
    ] = None,
    plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pull a bundle, verify it, and write a file or add it to a store."""
    if is_activated and store is None:
        raise typer.BadParameter("--activate needs --store.")
    if output is not None and store is not None:
        raise typer.BadParameter("--output writes a file, --store adds to a store; use one of them.")
    with report_errors(as_json), _opened(source, plain_http) as remote:
        policy = load_keys(require_signature) if require_signature else None
        artifact = remote.pull()
        content = check_artifact(artifact, policy=policy, digest=digest, domain=domain)
        facts: dict[str, Any] = {"domain": content.manifest.domain, "digest": content.digest, "source": source}
        others = [printable(name) for name in artifact.others]
        facts |= {"n_signatures": len(artifact.signatures), "not_pulled": others}
        if store is None:
            done, text = _write_files(output or Path(f"{content.manifest.domain}{BUNDLE_SUFFIX}"), artifact)
        else:
            done, text = _add(store, artifact, content, is_activated=is_activated)
        lines = [f"{text} ({content.digest}), {_signed(artifact.signatures)}"]
        if others:
            lines.append(f"not pulled: {', '.join(others)}")
        show(facts | done, as_json, *lines)


@contextmanager
def _opened(address: str, plain_http: bool) -> Iterator[Remote]:
    remote = open_remote(parse_address(address), plain_http=plain_http)
    try:
        yield remote
    finally:
        remote.close()


def _read_signatures(file: Path, given: Sequence[Path] | None) -> list[bytes]:
    paths = given or [path for name in signature_names(file.name) if (path := file.with_name(name)).exists()]
    return [read_signature_file(path) for path in paths]


def _read_version(domain: str, version: int | None, store: str) -> tuple[bytes, list[bytes]]:
    """A version's bundle and signatures; the live version if `version` is None."""
    if not Path(domain).exists() and (os.sep in domain or domain.endswith(BUNDLE_SUFFIX)):
        raise FileNotFoundError(f"There is no file {domain}.")
    opened = open_store(store)
    if version is None:
        live = opened.live(check_domain(domain))
        if live is None:
            raise ConflictError(f"No version of {domain} is live. Name one with --version.", code="domain_not_live")
        version = live.version
    data = opened.read(check_domain(domain), version)
    digest = next(info.digest for info in opened.versions(domain) if info.version == version)
    return data, opened.signatures(digest)


def _write_files(target: Path, artifact: Artifact) -> tuple[dict[str, Any], str]:
    """Write an artifact's files, the bundle last; a file with other content is not replaced.

    Returns:
        the result for `--json`, and as text.
    """
    files = {target.with_name(name): data for name, data in file_names(target.name, artifact).items()}
    for path, data in files.items():
        if path.exists() and path.read_bytes() != data:
            message = f"{path} exists and has other content. Remove it, or name another file with --output."
            raise PromptStoreError(message, code="file_exists")
    for path, data in reversed(files.items()):
        partial = path.with_name(f".{path.name}.part")
        partial.write_bytes(data)
        partial.replace(path)
    return {"files": [str(path) for path in files]}, str(target)


def _add(store: str, artifact: Artifact, bundle: Bundle, *, is_activated: bool) -> tuple[dict[str, Any], str]:
    """Add an artifact to a store, unless one of its versions has this content.

    Returns:
        the result for `--json`, and as text.
    """
    opened, domain = open_store(store, create=True), bundle.manifest.domain
    first = artifact.signatures[0] if artifact.signatures else None
    try:
        added = opened.add(domain, artifact.bundle, bundle=bundle, signature=first, actor=actor())
        version, is_new = added.version, added.created
    except VersionExistsError as error:
        version, is_new = error.version, False
    for signature in artifact.signatures:
        opened.add_signature(domain, version, signature)
    if is_activated:
        opened.activate(domain, version, actor=actor())
    state = "added" if is_new else "already exists"
    text = f"{domain} version {version} {state}{', live' if is_activated else ''}"
    return {"version": version, "is_new": is_new, "is_activated": is_activated}, text


def _signed(signatures: Sequence[bytes]) -> str:
    return {0: "not signed", 1: "1 signature"}.get(len(signatures), f"{len(signatures)} signatures")
