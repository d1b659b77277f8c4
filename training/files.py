"""Files that runs leave behind and take up: written whole or not at all, named by their digest, read within limits."""

import hashlib
import os
from pathlib import Path

from prompt_store.bundle import Bundle, read_bundle
from prompt_store.header import MAX_BUNDLE_BYTES
from training.errors import BoostBundleError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` atomically; it is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: several processes may write the same file, and the last one wins whole.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def digest_of(data: bytes) -> str:
    """`sha256:…` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_bundle_file(path: Path) -> Bundle:
    """Read and validate a bundle; never more of the file than a bundle may have.

    Raises:
        BoostBundleError: there is no such file.
        BundleInvalidError: it is no valid bundle.
    """
    try:
        with path.open("rb") as file:
            return read_bundle(file.read(MAX_BUNDLE_BYTES + 1))
    except OSError as error:
        msg = f"Expected a bundle at {path}, but it cannot be read: {error.strerror}."
        raise BoostBundleError(msg) from error
