"""Digests: the identity of a bundle is the SHA-256 of its bytes, written `sha256:<64 hex digits>`.

Knows nothing about what the bytes mean. A digest is checked with `is_digest` before it becomes part of a path.
"""

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
    """Tell whether the text is a digest in the one spelling we use (lower case, nothing around it)."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(data: bytes, expected: str) -> str:
    """Compare the bytes with the digest that was announced for them.

    Returns:
        the digest, when it matches.

    Raises:
        BundleInvalidError: `digest_invalid`, the announced digest is not written as we write digests.
        DigestMismatchError: `digest_mismatch`, these are other bytes.
    """
    if not is_digest(expected):
        raise BundleInvalidError(
            "digest_invalid", "expected a digest of the form sha256:<64 lower-case hex digits>; send it in that form"
        )
    found = digest_bytes(data)
    if not hmac.compare_digest(found, expected):
        raise DigestMismatchError(
            "digest_mismatch", f"expected {expected}, received bytes with {found}; send the file again"
        )
    return found
