"""Digests: a bundle is identified by the SHA-256 of its bytes, written `sha256:<64 hex digits>`."""

import hashlib
import hmac
import re
from typing import Final

from prompt_store.errors import BundleInvalidError, DigestMismatchError

DIGEST_PATTERN: Final = r"sha256:[0-9a-f]{64}"
_DIGEST: Final = re.compile(DIGEST_PATTERN)


def digest_bytes(data: bytes) -> str:
    """Return `sha256:<64 hex digits>` of the given bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    """Whether the text is a digest in canonical form (lower case, no whitespace)."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(data: bytes, expected: str) -> str:
    """Verify that the bytes have the expected digest, and return it.

    Raises:
        BundleInvalidError: `digest_invalid`, `expected` is not a digest in canonical form.
        DigestMismatchError: `digest_mismatch`.
    """
    if not is_digest(expected):
        raise BundleInvalidError("digest_invalid", "A digest has the form sha256:<64 lower-case hex digits>.")
    found = digest_bytes(data)
    if not hmac.compare_digest(found, expected):
        raise DigestMismatchError(
            "digest_mismatch", f"The digest is {found}, expected {expected}. Send the file again."
        )
    return found
