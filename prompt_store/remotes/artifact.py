"""A bundle with its signatures and its ML-BOM: names of the files, and the checks after a download."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prompt_store.bom import bundle_bom
from prompt_store.bundle import Bundle, read_bundle
from prompt_store.digest import check_digest, digest_bytes
from prompt_store.errors import BundleInvalidError, ConflictError
from prompt_store.signature_files import MAX_SIGNATURES
from prompt_store.signatures import parse_signature

if TYPE_CHECKING:
    from prompt_store.signing_keys import SignaturePolicy

BUNDLE_SUFFIX: Final = ".safetensors"
SIGNATURE_SUFFIX: Final = ".sig"
BOM_SUFFIX: Final = ".cdx.json"
MAX_BOM_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True)
class Artifact:
    """The files of a bundle, not checked.

    Attributes:
        bundle: the bundle's file.
        signatures: signature files.
        bom: the CycloneDX document, if there is one.
        others: names of further files at the source, which were not downloaded.
    """

    bundle: bytes
    signatures: tuple[bytes, ...] = ()
    bom: bytes | None = None
    others: tuple[str, ...] = ()


def make_artifact(data: bytes, signatures: Sequence[bytes]) -> tuple[Artifact, Bundle]:
    """Check a bundle and its signatures, and make its ML-BOM; the signatures are not verified, for there is no key.

    Raises:
        BundleInvalidError: not a valid bundle.
        SignatureError: not a signature of this bundle.
        ConflictError: `too_many_signatures`.
    """
    bundle = read_bundle(data)
    if len(signatures) > MAX_SIGNATURES:
        message = f"{len(signatures)} signatures; a bundle has at most {MAX_SIGNATURES}."
        raise ConflictError(message, code="too_many_signatures")
    for signature in signatures:
        parse_signature(signature, bundle.digest)
    document = bundle_bom(bundle, f"{bundle.manifest.domain}{BUNDLE_SUFFIX}", len(data))
    bom = json.dumps(document, ensure_ascii=False, sort_keys=True, indent=1).encode() + b"\n"
    return Artifact(data, tuple(signatures), bom), bundle


def check_artifact(
    artifact: Artifact,
    *,
    policy: "SignaturePolicy | None" = None,
    digest: str | None = None,
    domain: str | None = None,
) -> Bundle:
    """Check a downloaded artifact: first the digest and the signatures, then the bundle.

    Args:
        artifact: the files.
        policy: accepts the signatures; None accepts a bundle without any.
        digest: the expected one of the bundle's file, if it is known.
        domain: the expected one, if it is known.

    Raises:
        DigestMismatchError: another file.
        SignatureError: `signature_required` or `signature_invalid`.
        BundleInvalidError: not a valid bundle; `manifest_mismatch`, a bundle for another domain.
    """
    found = digest_bytes(artifact.bundle) if digest is None else check_digest(artifact.bundle, digest)
    for signature in artifact.signatures:
        parse_signature(signature, found)
    if policy is not None:
        policy.check(found, artifact.signatures)
    bundle = read_bundle(artifact.bundle)
    if domain is not None and bundle.manifest.domain != domain:
        message = f"The bundle is for domain {bundle.manifest.domain}, not {domain}."
        raise BundleInvalidError("manifest_mismatch", message, field="domain")
    return bundle


def signature_names(bundle_name: str) -> Iterator[str]:
    """The names of the signature files beside a bundle's file: `NAME.sig`, `NAME.2.sig` and so on."""
    yield f"{bundle_name}{SIGNATURE_SUFFIX}"
    for number in range(2, MAX_SIGNATURES + 1):
        yield f"{bundle_name}.{number}{SIGNATURE_SUFFIX}"


def file_names(bundle_name: str, artifact: Artifact) -> dict[str, bytes]:
    """The files of an artifact by name, the bundle first."""
    files = {bundle_name: artifact.bundle}
    files |= dict(zip(signature_names(bundle_name), artifact.signatures, strict=False))
    if artifact.bom is not None:
        files[f"{bundle_name.removesuffix(BUNDLE_SUFFIX)}{BOM_SUFFIX}"] = artifact.bom
    return files
