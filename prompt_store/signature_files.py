"""The signatures of stored bundles: immutable files beside the blobs, named by the digests of bundle and signature.

A bundle may have several, for instance by an old key and its successor. They are not verified here, but by
`signing_keys.SignaturePolicy`.
"""

from pathlib import Path
from typing import Final

from prompt_store.blobs import put_file
from prompt_store.digest import digest_bytes
from prompt_store.disk import Disk, list_directory, open_directory, read_file
from prompt_store.durable import create_directory, error_name, is_transient, to_store_error
from prompt_store.errors import ConflictError, SignatureError
from prompt_store.layout import Layout
from prompt_store.signatures import MAX_SIGNATURE_BYTES, parse_signature

MAX_SIGNATURES: Final = 16


def put_signature(layout: Layout, disk: Disk, data: bytes, bundle_digest: str) -> None:
    """Store a signature of a bundle durably, unless it is there already.

    Raises:
        SignatureError: it is not a signature of this bundle.
        ConflictError: `too_many_signatures`.
        StorageFullError: not enough space.
        StoreReadOnlyError: the store is not writable or the disk failed.
    """
    parse_signature(data, bundle_digest)
    path = layout.signature(bundle_digest, digest_bytes(data))
    others = [name for name in _names(layout, bundle_digest) if name != path.name]
    if len(others) >= MAX_SIGNATURES:
        place = path.parent.relative_to(layout.root)
        message = (
            f"The bundle has {len(others)} signatures, the maximum. Remove files that are not needed from {place}/."
        )
        raise ConflictError(message, code="too_many_signatures")
    for parent in (layout.signatures, path.parent):
        create_directory(disk, parent)
    put_file(layout, disk, path, data)


def read_signatures(layout: Layout, bundle_digest: str) -> list[bytes]:
    """Return the stored signatures of a bundle.

    Raises:
        SignatureError: `signature_invalid`, one is unreadable or damaged, and no intact one is left.
        StoreReadOnlyError: `storage_busy`.
    """
    intact: list[bytes] = []
    problem = ""
    for name in _names(layout, bundle_digest):
        path = layout.signatures / name[:2] / name
        try:
            with open_directory(path.parent) as directory:
                data = read_file(path.name, max_bytes=MAX_SIGNATURE_BYTES, dir_fd=directory)
        except OSError as error:
            if is_transient(error):
                raise to_store_error(error) from error
            problem = f"unreadable ({error_name(error)})"
            continue
        if data is not None and is_intact(path, data):
            intact.append(data)
        else:
            problem = "damaged"
    if problem and not intact:
        raise SignatureError(f"The stored signature of {bundle_digest} is {problem}. Add the signature file again.")
    return intact


def is_intact(path: Path, data: bytes) -> bool:
    """Whether a signature file has the digest in its name."""
    return path.stem.partition("-")[2] == digest_bytes(data).removeprefix("sha256:")


def _names(layout: Layout, bundle_digest: str) -> list[str]:
    prefix = layout.signature(bundle_digest, bundle_digest).stem.partition("-")[0]
    try:
        entries = list_directory(layout.signatures / prefix[:2])
    except FileNotFoundError:
        return []
    except OSError as error:
        if is_transient(error):
            raise to_store_error(error) from error
        message = f"The signatures of {bundle_digest} are unreadable ({error_name(error)}). Run `caspl store check`."
        raise SignatureError(message) from error
    return [name for name, kind in entries.items() if kind == "file" and name.startswith(f"{prefix}-")]
