"""Ed25519 keys that sign bundles and verify signatures.

The only module that imports `cryptography`, which takes 50 ms: commands and services import it when they need it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from prompt_store.errors import SignatureError
from prompt_store.signatures import (
    check_statement,
    read_signature,
    signed_message,
    statement_about,
    write_signature,
)


class TrustedKey:
    """An Ed25519 public key; `hint` is the SHA-256 of its PEM file's canonical form, in hex digits.

    `name` is for readers: that of the file, without its suffix.
    """

    def __init__(self, key: Ed25519PublicKey, name: str = "") -> None:
        self._key = key
        self.name = name
        self.hint = hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def has_signed(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature of a message is by this key."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def load_public_key(path: Path) -> TrustedKey:
    """Read an Ed25519 public key in PEM.

    Raises:
        SignatureError: `key_invalid`, not such a key.
        OSError: the file cannot be read.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_a_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path, "public")
    return TrustedKey(key, path.stem)


def load_private_key(path: Path, password: str | None = None) -> Ed25519PrivateKey:
    """Read an Ed25519 private key in PEM.

    Args:
        path: the file.
        password: of an encrypted key.

    Raises:
        SignatureError: `key_invalid`, not such a key; `key_encrypted`, without its password.
        OSError: the file cannot be read.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password.encode() if password else None)
    except TypeError as error:  # encrypted without a password, or the other way round
        message = (
            f"{path} is encrypted. Run this in a terminal, to type its password."
            if not password
            else f"{path} is not encrypted."
        )
        raise SignatureError(message, code="key_encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_a_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path, "private")
    return key


def _not_a_key(path: Path, kind: str) -> SignatureError:
    if kind == "private":
        problem, command = ", or its password is wrong", "genpkey -algorithm ed25519 -out key.pem"
    else:
        problem, command = "", "pkey -in key.pem -pubout -out key.pub"
    message = f"{path} is not an Ed25519 {kind} key in PEM{problem}. `openssl {command}` writes one."
    return SignatureError(message, code="key_invalid")


def sign_bundle(digest: str, name: str, key: Ed25519PrivateKey) -> bytes:
    """Sign a bundle; deterministic.

    Args:
        digest: of the bundle.
        name: of its file, for readers.
        key: the private key.

    Returns:
        the signature file.
    """
    payload = statement_about(digest, name)
    return write_signature(payload, key.sign(signed_message(payload)), TrustedKey(key.public_key()).hint)


def verify_signature(data: bytes, digest: str, keys: Sequence[TrustedKey]) -> TrustedKey:
    """Verify the signature of a bundle.

    Args:
        data: the signature file.
        digest: the bundle's.
        keys: the keys to accept.

    Returns:
        the key that signed.

    Raises:
        SignatureError: `signature_invalid`, it is not a signature of this bundle by one of the keys.
    """
    parsed = read_signature(data)
    hint, envelope = parsed.verification_material.public_key.hint, parsed.dsse_envelope
    key = next((key for key in keys if key.hint == hint), None)
    if key is None:
        trusted = ", ".join(key.hint[:16] for key in keys)
        raise SignatureError(f"The signature is by another key. Sign the bundle with one of these: {trusted}.")
    if not key.has_signed(envelope.signatures[0].sig, signed_message(envelope.payload)):
        raise SignatureError(
            "The signature does not match its content: it was changed after signing. Sign the bundle again."
        )
    check_statement(envelope.payload, digest)
    return key


class SignaturePolicy:
    """Accepts the bundles that one of `keys` has signed."""

    def __init__(self, keys: Sequence[TrustedKey]) -> None:
        self.keys = tuple(keys)

    def signer(self, data: bytes, digest: str) -> TrustedKey:
        """Return the key that made a signature of this bundle; raises what `verify_signature` raises."""
        return verify_signature(data, digest, self.keys)

    def check(self, digest: str, signatures: Sequence[bytes]) -> None:
        """Check a bundle by its signatures; one by any of the keys is enough.

        Raises:
            SignatureError: `signature_required`, there is none; `signature_invalid`, no signature is accepted.
        """
        problem = SignatureError(
            "Only signed bundles are accepted, and this one has no signature. Sign it with `caspl bundle sign`.",
            code="signature_required",
        )
        for data in signatures:
            try:
                verify_signature(data, digest, self.keys)
            except SignatureError as error:
                problem = error
            else:
                return
        raise problem
