"""Atomic writes, digests, and bundle files read within the size limit."""

import hashlib
import os
from pathlib import Path

from prompt_store.bundle import Bundle, read_bundle
from prompt_store.durable import sync_folder
from prompt_store.header import MAX_BUNDLE_BYTES
from training.errors import BoostBundleError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` atomically; when this returns, the file and the folders to it survive a power failure."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # The PID keeps the temporary files of concurrent writers apart; the last rename wins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        for folder in (path.parent, *(created.parent for created in missing)):
            sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)


def digest_of(data: bytes) -> str:
    """SHA-256 of `data`, as `sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_bundle_file(path: Path) -> Bundle:
    """Read and validate a bundle, without reading past the size limit.

    Raises:
        BoostBundleError: the file cannot be read.
        BundleInvalidError: the file is not a valid bundle.
    """
    try:
        with path.open("rb") as file:
            return read_bundle(file.read(MAX_BUNDLE_BYTES + 1))
    except OSError as error:
        msg = f"Cannot read the bundle {path}: {error.strerror}."
        raise BoostBundleError(msg) from error
