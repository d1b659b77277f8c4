"""Signature files of bundles, in the layout of OpenSSF Model Signing 1.0.

A signature is a sigstore bundle (JSON) with a DSSE envelope around an in-toto statement, which has the SHA-256 of the
bundle's file. It is bound to that file alone: to the domain in its manifest, but to no version number. `signing_keys`
makes and verifies them.
"""

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from prompt_store.errors import SignatureError
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

MAX_SIGNATURE_BYTES: Final = 8 * 1024
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"


def _decoded(text: object) -> bytes:
    """Decode base64 that is canonical, so that no bit of it can change unnoticed."""
    try:
        data = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data


Base64 = Annotated[bytes, BeforeValidator(_decoded)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)


class _Signature(_Part):
    sig: Base64
    keyid: Literal[""] = ""


class _Envelope(_Part):
    payload: Base64
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[tuple[_Signature, ...], Field(min_length=1, max_length=1)]


class _PublicKey(_Part):
    hint: str


class _Material(_Part):
    public_key: _PublicKey
    tlog_entries: Annotated[tuple[Any, ...], Field(max_length=0)] = ()


class SignatureFile(_Part):
    """A signature file; the signature itself is not verified."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


def signature_path(bundle: Path) -> Path:
    """Return the default path of a bundle's signature."""
    return bundle.with_name(f"{bundle.name}.sig")


def statement_about(digest: str, name: str) -> bytes:
    """Return the statement to sign: a model of one file, as canonical JSON.

    Args:
        digest: of the bundle.
        name: of its file, for readers.
    """
    resource = digest.removeprefix("sha256:")
    return dump_canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": _root(resource)}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": [],
                },
                "resources": [{"name": ".", "algorithm": "sha256", "digest": resource}],
            },
        }
    )


def signed_message(payload: bytes) -> bytes:
    """Return the bytes to sign for a statement: DSSE's pre-authentication encoding."""
    return b" ".join((f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)}".encode(), payload))


def write_signature(payload: bytes, signature: bytes, hint: str) -> bytes:
    """Return the signature file of a signed statement; `hint` names the key."""
    return dump_canonical(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def _root(resource: str) -> str:
    """Model Signing's digest of a model: over the digests of its files, here one."""
    return hashlib.sha256(bytes.fromhex(resource)).hexdigest()


def parse_signature(data: bytes, digest: str) -> None:
    """Check that a file is a signature of this bundle, by any key; it is not verified.

    Raises:
        SignatureError: `signature_invalid`, another format, or a signature of another bundle.
    """
    check_statement(read_signature(data).dsse_envelope.payload, digest)


def read_signature(data: bytes) -> SignatureFile:
    """Parse a signature file.

    Raises:
        SignatureError: another format.
    """
    if len(data) > MAX_SIGNATURE_BYTES:
        raise SignatureError(f"A signature file has at most {MAX_SIGNATURE_BYTES} bytes.")
    try:
        return SignatureFile.model_validate(load_object(data))
    except (StrictJsonError, ValidationError) as error:
        raise SignatureError("Not a signature file. `caspl bundle sign` writes one.") from error


def key_hint(data: bytes) -> str:
    """Return the hint of the key that a signature file names; the signature is not verified.

    Raises:
        SignatureError: not a signature file.
    """
    return read_signature(data).verification_material.public_key.hint


def check_statement(payload: bytes, digest: str) -> None:
    """Check that a signed statement is about this bundle and nothing else.

    Raises:
        SignatureError: it is not.
    """
    try:
        statement = load_object(payload)
        resource, subject = statement["predicate"]["resources"], statement["subject"]
        types = (statement["_type"], statement["predicateType"])
        is_valid = types == (STATEMENT_TYPE, PREDICATE_TYPE) and len(resource) == len(subject) == 1
        found = f"{resource[0]['algorithm']}:{resource[0]['digest']}"
        root = subject[0]["digest"]["sha256"]
    except (StrictJsonError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SignatureError(
            "The signed content is not a statement about a bundle. Sign with `caspl bundle sign`."
        ) from error
    if not is_valid:
        raise SignatureError("The signed content is not a statement about one bundle. Sign with `caspl bundle sign`.")
    if found != digest or root != _root(digest.removeprefix("sha256:")):
        raise SignatureError("The signature is for another bundle. Send the signature of this file.")
